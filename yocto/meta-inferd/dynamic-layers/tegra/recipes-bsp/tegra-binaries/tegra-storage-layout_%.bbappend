# boot, models-a, models-b and data behind the second root filesystem, in every layout that has one: a machine has one for its own medium and one for an
# NVMe. Which of them is written the image's class says (TEGRAFLASH_ROOTFS_EXTERNAL), by this comparison; that one must have them.
INFERD_WRITTEN_LAYOUT = "${@'external' if d.getVar('TNSPEC_BOOTDEV') != d.getVar('TNSPEC_BOOTDEV_DEFAULT') else 'internal'}-flash.xml"

# What they are made of, so that they are made anew when it changes.
FILESEXTRAPATHS:prepend:inferd-os := "${INFERD_CHECKOUT}:"
SRC_URI:append:inferd-os = " file://board file://scripts/lib/layout.py file://scripts/lib/openembedded.py"

do_compile:append:inferd-os () {
    python3 -B ${INFERD_CHECKOUT}/scripts/lib/openembedded.py tegra ${INFERD_BOARD} ${INFERD_WRITTEN_LAYOUT} internal-flash.xml external-flash.xml
}
