################################################################################
#
# inferd-rpi-firmware
#
################################################################################

# Of 2025-12, for kernels 6.12. Named and kept as Buildroot's own rpi-firmware is, whose archive it is: mirrors have it.
INFERD_RPI_FIRMWARE_VERSION = 063bcab6c8a90efb0d19f69d88cbbc7ec79cab68
INFERD_RPI_FIRMWARE_SOURCE = rpi-firmware-$(INFERD_RPI_FIRMWARE_VERSION).tar.gz
INFERD_RPI_FIRMWARE_DL_SUBDIR = rpi-firmware
INFERD_RPI_FIRMWARE_SITE = $(call github,raspberrypi,firmware,$(INFERD_RPI_FIRMWARE_VERSION))
INFERD_RPI_FIRMWARE_LICENSE = BSD-3-Clause
INFERD_RPI_FIRMWARE_LICENSE_FILES = boot/LICENCE.broadcom
INFERD_RPI_FIRMWARE_INSTALL_TARGET = NO
INFERD_RPI_FIRMWARE_INSTALL_IMAGES = YES
INFERD_RPI_FIRMWARE_FILES = start4.elf fixup4.dat overlays/ramoops-pi4.dtbo

define INFERD_RPI_FIRMWARE_INSTALL_IMAGES_CMDS
	$(foreach f,$(INFERD_RPI_FIRMWARE_FILES), \
		$(INSTALL) -D -m 0644 $(@D)/boot/$(f) $(BINARIES_DIR)/rpi-firmware/$(f)
	)
endef

$(eval $(generic-package))
