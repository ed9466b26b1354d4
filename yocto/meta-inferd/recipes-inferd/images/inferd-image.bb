SUMMARY = "The inferd appliance: nobody logs in"

require inferd-image.inc

# The console shows the log.
inferd_no_login() {
    for unit in getty@.service serial-getty@.service console-getty.service; do
        ln -sf /dev/null ${IMAGE_ROOTFS}${sysconfdir}/systemd/system/$unit
    done
    echo VARIANT_ID=production >>${IMAGE_ROOTFS}${nonarch_libdir}/os-release
}
ROOTFS_POSTPROCESS_COMMAND += "inferd_no_login"
