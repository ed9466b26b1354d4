# meta-hailo's library beside our driver and firmware would be of another release: one of the two in an image, never both.
RCONFLICTS:${PN}:append:inferd-os = " hailort"
