require inferd.inc

SUMMARY = "Edge inference daemon and its keeper, prebuilt"
DESCRIPTION = "One static program that needs nothing of the system it runs on, made by cargo for the musl target of the architecture."

# Whoever builds it elsewhere says where it lies.
INFERD_PREBUILT ?= "${INFERD_CHECKOUT}/target/${TARGET_ARCH}-unknown-linux-musl/release/inferd"

do_install[file-checksums] += "${INFERD_PREBUILT}:${@os.path.exists(d.getVar('INFERD_PREBUILT'))}"
do_install() {
    # One that is not static, or for another processor, is refused.
    python3 -B ${INFERD_CHECKOUT}/scripts/lib/rust.py ${INFERD_PREBUILT} ${TARGET_ARCH}-unknown-linux-musl
    install -D -m 0755 ${INFERD_PREBUILT} ${D}${bindir}/inferd
    inferd_install_system
}

RCONFLICTS:${PN} = "inferd"
INHIBIT_PACKAGE_STRIP = "1"
INHIBIT_SYSROOT_STRIP = "1"
INHIBIT_PACKAGE_DEBUG_SPLIT = "1"
INSANE_SKIP:${PN} = "already-stripped"
