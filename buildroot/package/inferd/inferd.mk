################################################################################
#
# inferd
#
################################################################################

INFERD_VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' $(BR2_EXTERNAL_INFERD_PATH)/../Cargo.toml)
INFERD_SITE = $(realpath $(BR2_EXTERNAL_INFERD_PATH)/..)
INFERD_SITE_METHOD = local
INFERD_OVERRIDE_SRCDIR_RSYNC_EXCLUSIONS = --exclude=/target
INFERD_LICENSE = Apache-2.0 or MIT
INFERD_LICENSE_FILES = LICENSE

# As in the overlay's passwd and group, which replace Buildroot's.
define INFERD_USERS
	inferd 900 inferd 900 * - - - the inference daemon
endef

# At the end of every build, before overlays: another document, or none, takes no rebuild of the package.
INFERD_ROOT = $(call qstrip,$(BR2_PACKAGE_INFERD_ROOT))
define INFERD_TRUST
	$(if $(INFERD_ROOT),\
		python3 -B $(INFERD_SITE)/scripts/lib/roots.py $(INFERD_ROOT) $(TARGET_DIR),\
		rm -f $(TARGET_DIR)/etc/inferd/root.imr)
endef
INFERD_TARGET_FINALIZE_HOOKS += INFERD_TRUST

ifeq ($(BR2_PACKAGE_INFERD_CARGO),y)

INFERD_RUST_FLOOR = $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' $(INFERD_SITE)/Cargo.toml)
INFERD_CARGO_BUILD_OPTS = --package inferd

ifeq ($(BR_BUILDING),y)
ifneq ($(firstword $(shell printf '%s\n' $(INFERD_RUST_FLOOR) $(RUST_BIN_VERSION) | sort -V)),$(INFERD_RUST_FLOOR))
$(error inferd needs Rust $(INFERD_RUST_FLOOR), and this Buildroot has $(RUST_BIN_VERSION): choose BR2_PACKAGE_INFERD_PREBUILT)
endif
endif

# A local package is not vendored. Cargo.lock has the checksum of every crate, and --locked keeps to it.
define INFERD_FETCH_CRATES
	cd $(@D) && $(TARGET_MAKE_ENV) $(PKG_CARGO_ENV) cargo fetch --locked --target $(RUSTC_TARGET_NAME)
endef
INFERD_PRE_CONFIGURE_HOOKS += INFERD_FETCH_CRATES

define INFERD_INSTALL_TARGET_CMDS
	$(INSTALL) -D -m 0755 $(@D)/target/$(RUSTC_TARGET_NAME)/release/inferd $(TARGET_DIR)/usr/bin/inferd
endef

$(eval $(cargo-package))

else

INFERD_PROGRAM = $(or $(call qstrip,$(BR2_PACKAGE_INFERD_PREBUILT_PATH)),$(INFERD_SITE)/target/$(ARCH)-unknown-linux-musl/release/inferd)

define INFERD_INSTALL_TARGET_CMDS
	python3 -B $(INFERD_SITE)/scripts/lib/rust.py $(INFERD_PROGRAM) $(ARCH)-unknown-linux-musl
	$(INSTALL) -D -m 0755 $(INFERD_PROGRAM) $(TARGET_DIR)/usr/bin/inferd
endef

$(eval $(generic-package))

endif
