################################################################################
#
# hailort
#
################################################################################

HAILORT_VERSION = $(INFERD_HAILORT_RELEASE)
HAILORT_SITE = $(call github,hailo-ai,hailort,v$(HAILORT_VERSION))
HAILORT_LICENSE = \
	MIT, Apache-2.0 (token bucket), BSD-2-Clause (xxHash, readerwriterqueue), \
	BSD-3-Clause (CLI11, protobuf), MPL-2.0 (Eigen)
HAILORT_LICENSE_FILES = \
	hailort/LICENSE \
	hailort/LICENSE-3RD-PARTY.md \
	hailort/external/cli11-src/LICENSE \
	hailort/external/dotwriter-src/LICENSE \
	hailort/external/eigen-src/COPYING.MPL2 \
	hailort/external/json-src/LICENSE.MIT \
	hailort/external/protobuf-src/LICENSE \
	hailort/external/readerwriterqueue-src/LICENSE.md \
	hailort/external/spdlog-src/LICENSE \
	hailort/external/xxhash-src/LICENSE
HAILORT_INSTALL_STAGING = YES
HAILORT_SUPPORTS_IN_SOURCE_BUILD = NO

# What its CMake would clone, at the commits that it names. protoc is built for the host, by the host's compiler.
HAILORT_EXTERNALS = \
	CLI11-ae78ac41cf225706e83f57da45117e3e90d4a5b4.tar.gz=cli11-src \
	DotWriter-e5fa8f281adca10dd342b1d32e981499b8681daf.tar.gz=dotwriter-src \
	eigen-3.4.0.tar.bz2=eigen-src \
	nlohmann_json_cmake_fetchcontent-391786c6c3abdd3eeb993a3154f1f2a4cfe137a0.tar.gz=json-src \
	protobuf-f0dc78d7e6e331b8c6bb2d5283e06aa26883ca7c.tar.gz=protobuf-src \
	readerwriterqueue-435e36540e306cac40fcfeab8cc0a22d48464509.tar.gz=readerwriterqueue-src \
	spdlog-1.14.1.tar.gz=spdlog-src \
	xxhash-0.8.2.tar.gz=xxhash-src

HAILORT_EXTRA_DOWNLOADS = \
	$(call github,hailo-ai,CLI11,ae78ac41cf225706e83f57da45117e3e90d4a5b4)/CLI11-ae78ac41cf225706e83f57da45117e3e90d4a5b4.tar.gz \
	$(call github,hailo-ai,DotWriter,e5fa8f281adca10dd342b1d32e981499b8681daf)/DotWriter-e5fa8f281adca10dd342b1d32e981499b8681daf.tar.gz \
	$(call gitlab,libeigen,eigen,3.4.0)/eigen-3.4.0.tar.bz2 \
	$(call github,ArthurSonzogni,nlohmann_json_cmake_fetchcontent,391786c6c3abdd3eeb993a3154f1f2a4cfe137a0)/nlohmann_json_cmake_fetchcontent-391786c6c3abdd3eeb993a3154f1f2a4cfe137a0.tar.gz \
	$(call github,protocolbuffers,protobuf,f0dc78d7e6e331b8c6bb2d5283e06aa26883ca7c)/protobuf-f0dc78d7e6e331b8c6bb2d5283e06aa26883ca7c.tar.gz \
	$(call github,cameron314,readerwriterqueue,435e36540e306cac40fcfeab8cc0a22d48464509)/readerwriterqueue-435e36540e306cac40fcfeab8cc0a22d48464509.tar.gz \
	$(call github,gabime,spdlog,v1.14.1)/spdlog-1.14.1.tar.gz \
	$(call github,Cyan4973,xxHash,v0.8.2)/xxhash-0.8.2.tar.gz

define HAILORT_EXTRACT_EXTERNALS
	$(foreach e,$(HAILORT_EXTERNALS), \
		mkdir -p $(@D)/hailort/external/$(lastword $(subst =, ,$(e))) && \
		$(TAR) --strip-components=1 -C $(@D)/hailort/external/$(lastword $(subst =, ,$(e))) \
			-xf $(HAILORT_DL_DIR)/$(firstword $(subst =, ,$(e)))
	)
endef
HAILORT_POST_EXTRACT_HOOKS += HAILORT_EXTRACT_EXTERNALS

# Shared libraries of what is bundled, which Buildroot asks of everything, are not installed, and its CMake refuses to export what needs them.
# CLI11, DotWriter and JSON name releases of CMake that CMake 4 no longer knows.
HAILORT_CONF_OPTS = \
	-DBUILD_SHARED_LIBS=OFF \
	-DCMAKE_POLICY_VERSION_MINIMUM=3.5 \
	-DHAILO_OFFLINE_COMPILATION=ON \
	-DHAILO_BUILD_SERVICE=OFF \
	-DHAILO_BUILD_EXAMPLES=OFF \
	-DHAILO_BUILD_GSTREAMER=OFF \
	-DHAILO_BUILD_UT=OFF

$(eval $(cmake-package))
