# Hailo's library refuses a driver and a firmware of another release, so the three packages take theirs from here.
INFERD_HAILORT_RELEASE = 4.23.0

include $(sort $(wildcard $(BR2_EXTERNAL_INFERD_PATH)/package/*/*.mk))

# Kconfig drops what a kernel does not have, or what lacks a dependency, without a word: every line of our fragments must
# be in the configuration that is built.
INFERD_LINUX_FRAGMENTS = $(filter $(BR2_EXTERNAL_INFERD_PATH)/%, \
	$(call qstrip,$(BR2_LINUX_KERNEL_CONFIG_FRAGMENT_FILES)))

define INFERD_LINUX_CHECK
	python3 -B $(BR2_EXTERNAL_INFERD_PATH)/../scripts/lib/builder.py kernel \
		$(LINUX_DIR)/.config $(INFERD_LINUX_FRAGMENTS)
endef
LINUX_PRE_BUILD_HOOKS += INFERD_LINUX_CHECK
