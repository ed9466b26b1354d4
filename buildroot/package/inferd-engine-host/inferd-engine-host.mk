################################################################################
#
# inferd-engine-host
#
################################################################################

INFERD_ENGINE_HOST_VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' $(BR2_EXTERNAL_INFERD_PATH)/../Cargo.toml)
INFERD_ENGINE_HOST_SITE = $(realpath $(BR2_EXTERNAL_INFERD_PATH)/..)
INFERD_ENGINE_HOST_SITE_METHOD = local
INFERD_ENGINE_HOST_OVERRIDE_SRCDIR_RSYNC_EXCLUSIONS = --exclude=/target
INFERD_ENGINE_HOST_LICENSE = Apache-2.0 or MIT
INFERD_ENGINE_HOST_LICENSE_FILES = LICENSE

INFERD_ENGINE_HOST_PROGRAM = $(or $(call qstrip,$(BR2_PACKAGE_INFERD_ENGINE_HOST_PATH)),$(INFERD_ENGINE_HOST_SITE)/target/$(ARCH)-unknown-linux-gnu/release/inferd-engine-host)

define INFERD_ENGINE_HOST_INSTALL_TARGET_CMDS
	$(INSTALL) -D -m 0755 $(INFERD_ENGINE_HOST_PROGRAM) $(TARGET_DIR)/usr/lib/inferd/inferd-engine-host
endef

$(eval $(generic-package))
