SUMMARY = "Kernel module of Hailo's accelerators on PCIe"
HOMEPAGE = "https://github.com/hailo-ai/hailort-drivers"
LICENSE = "GPL-2.0-only"
LIC_FILES_CHKSUM = "file://LICENSE;md5=39bba7d2cf0ba1036f2a6e2be52fe3f0"

# Of the releases that know the Hailo-8; the master has left it.
SRC_URI = "git://github.com/hailo-ai/hailort-drivers.git;protocol=https;branch=hailo8;tag=v${PV}"
SRCREV = "ce1087bfe8132c99b41374e3128fc78612a3f492"

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
