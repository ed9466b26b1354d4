SUMMARY = "Firmware of the Hailo-8"
DESCRIPTION = "Hailo's own, under Hailo's licence, which the build prints. Downloaded from Hailo by whoever builds; nothing here redistributes it."
HOMEPAGE = "https://hailo.ai"
LICENSE = "Hailo-Firmware-EULA"
NO_GENERIC_LICENSE[Hailo-Firmware-EULA] = "hailort/hailo_firmware_eula"
LIC_FILES_CHKSUM = "file://hailort/hailo_firmware_eula;md5=c4d4dede4192ecc4fa9b00b8a9d4d477"
# Whoever agrees adds "hailo-firmware" to LICENSE_FLAGS_ACCEPTED.
LICENSE_FLAGS = "hailo-firmware"

# Hailo publishes the licence with the library, not with the firmware.
SRC_URI = " \
    https://hailo-hailort.s3.eu-west-2.amazonaws.com/Hailo8/${PV}/FW/hailo8_fw.${PV}.bin;name=firmware \
    git://github.com/hailo-ai/hailort.git;protocol=https;branch=hailo8;tag=v${PV};name=hailort \
"
SRCREV_hailort = "08f088d3b443c7846af067269ce998c6d5d91449"
# Nobody who wrote this could download it: the hash is the one that two other projects publish (buildroot/README.md).
SRC_URI[firmware.sha256sum] = "1ba9528972091ec17bebc0dc7ea2e6f4449efe70664890f6387ccbc7b60626ee"

inherit allarch

do_unpack[postfuncs] += "show_licence"
python show_licence() {
    with open(os.path.join(d.getVar('S'), "hailort/hailo_firmware_eula")) as file:
        bb.plain(file.read())
}

do_install() {
    install -D -m 0644 ${UNPACKDIR}/hailo8_fw.${PV}.bin ${D}${nonarch_base_libdir}/firmware/hailo/hailo8_fw.bin
    install -D -m 0644 ${S}/hailort/hailo_firmware_eula ${D}${datadir}/licenses/hailo/hailo_firmware_eula
}

FILES:${PN} = "${nonarch_base_libdir}/firmware ${datadir}/licenses"
# Not among what is collected for others.
COPYLEFT_LICENSE_EXCLUDE = "Hailo-Firmware-EULA"
