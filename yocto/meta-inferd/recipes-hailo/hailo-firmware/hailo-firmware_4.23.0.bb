SUMMARY = "Firmware of the Hailo-8"
DESCRIPTION = "Hailo's own, under Hailo's licence, which the build prints. Downloaded from Hailo by whoever builds; nothing here redistributes it."
HOMEPAGE = "https://hailo.ai"
LICENSE = "Hailo-Firmware-EULA"
NO_GENERIC_LICENSE[Hailo-Firmware-EULA] = "hailort-${PV}/hailort/hailo_firmware_eula"
LIC_FILES_CHKSUM = "file://hailort-${PV}/hailort/hailo_firmware_eula;md5=c4d4dede4192ecc4fa9b00b8a9d4d477"
# Whoever agrees adds "hailo-firmware" to LICENSE_FLAGS_ACCEPTED.
LICENSE_FLAGS = "hailo-firmware"

# Hailo publishes the licence with the library, not with the firmware.
SRC_URI = " \
    https://hailo-hailort.s3.eu-west-2.amazonaws.com/Hailo8/${PV}/FW/hailo8_fw.${PV}.bin;name=firmware \
    https://github.com/hailo-ai/hailort/archive/v${PV}/hailort-${PV}.tar.gz;name=hailort \
"
SRC_URI[hailort.sha256sum] = "f2a3dd80b9ccbbb58624a228d4857375c57b0c76c3a07812f43fb7596639e2de"
# Nobody who wrote this could download it: the hash is the one that two other projects publish (buildroot/README.md).
SRC_URI[firmware.sha256sum] = "1ba9528972091ec17bebc0dc7ea2e6f4449efe70664890f6387ccbc7b60626ee"
# Archives that GitHub makes, each with the hash that Buildroot compares as well: should one come out otherwise, the build stops.
INSANE_SKIP += "src-uri-bad"
S = "${UNPACKDIR}"

inherit allarch

do_unpack[postfuncs] += "show_licence"
python show_licence() {
    with open(os.path.join(d.getVar('UNPACKDIR'), f"hailort-{d.getVar('PV')}/hailort/hailo_firmware_eula")) as file:
        bb.plain(file.read())
}

do_install() {
    install -D -m 0644 ${S}/hailo8_fw.${PV}.bin ${D}${nonarch_base_libdir}/firmware/hailo/hailo8_fw.bin
    install -D -m 0644 ${S}/hailort-${PV}/hailort/hailo_firmware_eula ${D}${datadir}/licenses/hailo/hailo_firmware_eula
}

FILES:${PN} = "${nonarch_base_libdir}/firmware ${datadir}/licenses"
# Not among what is collected for others.
COPYLEFT_LICENSE_EXCLUDE = "Hailo-Firmware-EULA"
