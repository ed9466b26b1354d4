SUMMARY = "Kernel module of Hailo's accelerators on PCIe"
HOMEPAGE = "https://github.com/hailo-ai/hailort-drivers"
LICENSE = "GPL-2.0-only"
LIC_FILES_CHKSUM = "file://LICENSE;md5=39bba7d2cf0ba1036f2a6e2be52fe3f0"

SRC_URI = "https://github.com/hailo-ai/hailort-drivers/archive/v${PV}/hailort-drivers-${PV}.tar.gz"
SRC_URI[sha256sum] = "245c7157746c2fd48b2fab4a990c8fb3b786921dd72c9e5348f5b5619ee05ec3"
# Archives that GitHub makes, each with the hash that Buildroot compares as well: should one come out otherwise, the build stops.
INSANE_SKIP += "src-uri-bad"
S = "${UNPACKDIR}/hailort-drivers-${PV}"

inherit module

# Its own Makefile runs depmod on the machine that builds.
do_compile() {
    unset CFLAGS CPPFLAGS CXXFLAGS LDFLAGS
    oe_runmake -C ${STAGING_KERNEL_DIR} M=${S}/linux/pcie O=${STAGING_KERNEL_BUILDDIR} \
        CC="${KERNEL_CC}" LD="${KERNEL_LD}" AR="${KERNEL_AR}" OBJCOPY="${KERNEL_OBJCOPY}" modules
}

do_install() {
    unset CFLAGS CPPFLAGS CXXFLAGS LDFLAGS
    oe_runmake -C ${STAGING_KERNEL_DIR} M=${S}/linux/pcie O=${STAGING_KERNEL_BUILDDIR} DEPMOD=echo \
        MODLIB="${D}${nonarch_base_libdir}/modules/${KERNEL_VERSION}" INSTALL_MOD_DIR=updates modules_install
}

KERNEL_MODULE_AUTOLOAD += "hailo_pci"
