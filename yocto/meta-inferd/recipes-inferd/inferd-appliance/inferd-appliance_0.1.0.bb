SUMMARY = "What makes a board an inferd appliance"
DESCRIPTION = "The scripts that hand the medium over to the daemon and bring the network up, their units, the board's page and the models that are served from the first boot."
LICENSE = "Apache-2.0 | MIT"
LIC_FILES_CHKSUM = "file://LICENSE;md5=1f1e9d776565f658fe91c27b12580ade"

FILESEXTRAPATHS:prepend := "${INFERD_CHECKOUT}:"
SRC_URI = "file://LICENSE file://rootfs-overlay/usr file://rootfs-overlay/etc/inferd"
S = "${UNPACKDIR}"

PACKAGE_ARCH = "${MACHINE_ARCH}"

inherit systemd

python () {
    if not d.getVar('INFERD_BOARD'):
        raise bb.parse.SkipRecipe(f"no folder of board/ is the machine {d.getVar('MACHINE')}: set INFERD_BOARD")
}

SYSTEMD_SERVICE:${PN} = "inferd-boot.service inferd-network.service inferd-services.service inferd-sticks.service inferd-system.service inferd-door.service"

# Whom devices with the image believe: the absolute path of what `inferctl root create` has made. Without one they accept no bundle.
INFERD_ROOT ?= ""

do_install[file-checksums] += "${@d.expand('${INFERD_ROOT}:') + str(os.path.exists(d.getVar('INFERD_ROOT'))) if d.getVar('INFERD_ROOT') else ''}"
do_install[file-checksums] += "${INFERD_CHECKOUT}/board:True ${INFERD_CHECKOUT}/app/inferd/models:True ${INFERD_CHECKOUT}/scripts/lib:True"
do_install() {
    for name in boot network services sticks system door; do
        install -D -m 0644 ${S}/rootfs-overlay/usr/lib/systemd/system/inferd-$name.service ${D}${nonarch_libdir}/systemd/system/inferd-$name.service
        install -D -m 0755 ${S}/rootfs-overlay/usr/libexec/inferd/$name ${D}${libexecdir}/inferd/$name
    done
    install -m 0755 ${S}/rootfs-overlay/usr/libexec/inferd/dhcp-event ${D}${libexecdir}/inferd/dhcp-event
    install -m 0644 ${S}/rootfs-overlay/usr/libexec/inferd/common ${D}${libexecdir}/inferd/common
    # Models, and the page of the board: as scripts/image and Buildroot put them there.
    python3 -B ${INFERD_CHECKOUT}/scripts/lib/openembedded.py furnish ${INFERD_BOARD} ${D}
    if [ -n "${INFERD_ROOT}" ]; then
        python3 -B ${INFERD_CHECKOUT}/scripts/lib/roots.py "${INFERD_ROOT}" ${D}
    fi
    # The start script mounts partitions, by name and of its own medium; systemd would mount /boot by its type.
    install -d ${D}${sysconfdir}/systemd/system-generators
    ln -s /dev/null ${D}${sysconfdir}/systemd/system-generators/systemd-gpt-auto-generator
    install -d ${D}/data
    # Keys that may log in are those of the boot partition, and none is kept here. A link to nothing that is there yet: bitbake has no checksum of one.
    install -d -m 0700 ${D}${ROOT_HOME}
    ln -s ${@os.readlink(d.expand('${INFERD_CHECKOUT}/rootfs-overlay/root/.ssh'))} ${D}${ROOT_HOME}/.ssh
    ln -s /run/resolv.conf ${D}${sysconfdir}/resolv.conf
}

FILES:${PN} = "${nonarch_libdir}/systemd ${libexecdir}/inferd ${datadir}/inferd ${sysconfdir} ${ROOT_HOME} /data"
# Of a Raspberry Pi the drivers of its radio, and of what tells that its supply is too weak; other kernels have no such packages.
RRECOMMENDS:${PN} = "kernel-module-brcmfmac kernel-module-brcmfmac-wcc kernel-module-raspberrypi-hwmon"
RDEPENDS:${PN} = "busybox ${VIRTUAL-RUNTIME_inferd}"
VIRTUAL-RUNTIME_inferd ??= "inferd-bin"
