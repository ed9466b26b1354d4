FILESEXTRAPATHS:prepend:inferd-os := "${THISDIR}/tegra-redundant-boot:"
SRC_URI:append:inferd-os = " file://inferd.conf"

do_install:append:inferd-os () {
    install -D -m 0644 ${S}/inferd.conf ${D}${systemd_system_unitdir}/nv_update_verifier.service.d/inferd.conf
}
FILES:${PN}:append:inferd-os = " ${systemd_system_unitdir}/nv_update_verifier.service.d"
