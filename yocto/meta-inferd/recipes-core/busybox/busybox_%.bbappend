FILESEXTRAPATHS:prepend:inferd-os := "${THISDIR}/busybox:"
SRC_URI:append:inferd-os = " file://inferd-applets.cfg"
