SUMMARY = "The program that runs the engines of vendors for inferd, prebuilt"
DESCRIPTION = "It opens libhailort, ONNX Runtime or TensorRT when a model asks for them. Linked against glibc; made by `python3 -B scripts/lib/engines.py ARCH`."
LICENSE = "Apache-2.0 | MIT"
LIC_FILES_CHKSUM = "file://LICENSE;md5=1f1e9d776565f658fe91c27b12580ade"

FILESEXTRAPATHS:prepend := "${INFERD_CHECKOUT}:"
SRC_URI = "file://LICENSE"
S = "${UNPACKDIR}"

COMPATIBLE_HOST = "(aarch64|x86_64).*-linux"
COMPATIBLE_HOST:libc-musl = "null"

INFERD_ENGINE_HOST_PREBUILT ?= "${INFERD_CHECKOUT}/target/${TARGET_ARCH}-unknown-linux-gnu/release/inferd-engine-host"

do_install[file-checksums] += "${INFERD_ENGINE_HOST_PREBUILT}:${@os.path.exists(d.getVar('INFERD_ENGINE_HOST_PREBUILT'))}"
do_install() {
    install -D -m 0755 ${INFERD_ENGINE_HOST_PREBUILT} ${D}${nonarch_libdir}/inferd/inferd-engine-host
}

FILES:${PN} = "${nonarch_libdir}/inferd"
RDEPENDS:${PN} = "${VIRTUAL-RUNTIME_inferd}"
VIRTUAL-RUNTIME_inferd ??= "inferd-bin"
INHIBIT_PACKAGE_STRIP = "1"
INHIBIT_SYSROOT_STRIP = "1"
INHIBIT_PACKAGE_DEBUG_SPLIT = "1"
INSANE_SKIP:${PN} = "already-stripped"
