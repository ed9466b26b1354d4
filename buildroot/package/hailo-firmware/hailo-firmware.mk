################################################################################
#
# hailo-firmware
#
################################################################################

HAILO_FIRMWARE_VERSION = $(INFERD_HAILORT_RELEASE)
HAILO_FIRMWARE_SOURCE = hailo8_fw.$(HAILO_FIRMWARE_VERSION).bin
HAILO_FIRMWARE_SITE = https://hailo-hailort.s3.eu-west-2.amazonaws.com/Hailo8/$(HAILO_FIRMWARE_VERSION)/FW
HAILO_FIRMWARE_LICENSE = PROPRIETARY
HAILO_FIRMWARE_LICENSE_FILES = hailo_firmware_eula
HAILO_FIRMWARE_REDISTRIBUTE = NO
# Hailo publishes the licence with the library, not with the firmware.
HAILO_FIRMWARE_EXTRACT_DEPENDENCIES = hailort

define HAILO_FIRMWARE_EXTRACT_CMDS
	cp $(HAILO_FIRMWARE_DL_DIR)/$(HAILO_FIRMWARE_SOURCE) $(@D)/hailo8_fw.bin
	cp $(HAILORT_DIR)/hailort/hailo_firmware_eula $(@D)/hailo_firmware_eula
	cat $(@D)/hailo_firmware_eula
endef

define HAILO_FIRMWARE_INSTALL_TARGET_CMDS
	$(INSTALL) -D -m 0644 $(@D)/hailo8_fw.bin $(TARGET_DIR)/lib/firmware/hailo/hailo8_fw.bin
	$(INSTALL) -D -m 0644 $(@D)/hailo_firmware_eula $(TARGET_DIR)/usr/share/licenses/hailo/hailo_firmware_eula
endef

$(eval $(generic-package))
