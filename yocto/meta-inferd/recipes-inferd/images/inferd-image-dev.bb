SUMMARY = "The inferd appliance with a root shell on its console: for a desk, never for a LAN"

require inferd-image.inc

IMAGE_FEATURES += "allow-empty-password allow-root-login empty-root-password serial-autologin-root"

inferd_is_dev() {
    echo VARIANT_ID=dev >>${IMAGE_ROOTFS}${nonarch_libdir}/os-release
}
ROOTFS_POSTPROCESS_COMMAND += "inferd_is_dev"
