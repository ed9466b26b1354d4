################################################################################
#
# hailort-driver
#
################################################################################

HAILORT_DRIVER_VERSION = $(INFERD_HAILORT_RELEASE)
HAILORT_DRIVER_SOURCE = hailort-drivers-$(HAILORT_DRIVER_VERSION).tar.gz
HAILORT_DRIVER_SITE = $(call github,hailo-ai,hailort-drivers,v$(HAILORT_DRIVER_VERSION))
HAILORT_DRIVER_LICENSE = GPL-2.0
HAILORT_DRIVER_LICENSE_FILES = LICENSE
HAILORT_DRIVER_MODULE_SUBDIRS = linux/pcie

define HAILORT_DRIVER_LINUX_CONFIG_FIXUPS
	$(call KCONFIG_ENABLE_OPT,CONFIG_MODULES)
	$(call KCONFIG_ENABLE_OPT,CONFIG_PCI)
	$(call KCONFIG_ENABLE_OPT,CONFIG_PCI_MSI)
	$(call KCONFIG_ENABLE_OPT,CONFIG_FW_LOADER)
endef

# The overlay's start script loads what stands here.
define HAILORT_DRIVER_INSTALL_TARGET_CMDS
	$(INSTALL) -d $(TARGET_DIR)/usr/lib/modules-load.d
	echo hailo_pci >$(TARGET_DIR)/usr/lib/modules-load.d/hailo.conf
endef

$(eval $(kernel-module))
$(eval $(generic-package))
