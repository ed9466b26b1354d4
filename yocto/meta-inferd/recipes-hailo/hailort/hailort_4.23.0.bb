SUMMARY = "Library of Hailo's accelerators"
HOMEPAGE = "https://github.com/hailo-ai/hailort"
# Its own, and those of what is linked into it (LICENSE-3RD-PARTY.md): protobuf, CLI11, Eigen, xxHash and readerwriterqueue beside more of MIT's.
LICENSE = "MIT & Apache-2.0 & BSD-2-Clause & BSD-3-Clause & MPL-2.0"
LIC_FILES_CHKSUM = " \
    file://hailort/LICENSE;md5=ed57bbf10be0c74ecf2c80710208b2b3 \
    file://hailort/LICENSE-3RD-PARTY.md;md5=87f8edc8e3d5342f8b0614df5bae3b58 \
    file://hailort/external/cli11-src/LICENSE;md5=9ad746b5f49c0fd53c08ca1faff1922c \
    file://hailort/external/dotwriter-src/LICENSE;md5=1accdb7c0604e459642c7a408366688c \
    file://hailort/external/eigen-src/COPYING.MPL2;md5=815ca599c9df247a0c7f619bab123dad \
    file://hailort/external/json-src/LICENSE.MIT;md5=f8a8f918f1513404c8366d7a63ab6d97 \
    file://hailort/external/protobuf-src/LICENSE;md5=37b5762e07f0af8c74ce80a8bda4266b \
    file://hailort/external/readerwriterqueue-src/LICENSE.md;md5=74e53ed227208b73f15a08361fd99b9d \
    file://hailort/external/spdlog-src/LICENSE;md5=9573510928429ad0cbe5ba4de77546e9 \
    file://hailort/external/xxhash-src/LICENSE;md5=13be6b481ff5616f77dda971191bb29b \
"

# What its CMake would clone, at the commits that it names, from the branches that have them; bitbake compares tag and commit.
# protoc is built for the machine that builds, by its own compiler.
SRC_URI = " \
    git://github.com/hailo-ai/hailort.git;protocol=https;branch=hailo8;tag=v${PV};name=hailort \
    git://github.com/hailo-ai/CLI11.git;protocol=https;branch=hailo;name=cli11;destsuffix=${BP}/hailort/external/cli11-src \
    git://github.com/hailo-ai/DotWriter.git;protocol=https;branch=master;name=dotwriter;destsuffix=${BP}/hailort/external/dotwriter-src \
    git://gitlab.com/libeigen/eigen.git;protocol=https;branch=3.4;tag=3.4.0;name=eigen;destsuffix=${BP}/hailort/external/eigen-src \
    git://github.com/ArthurSonzogni/nlohmann_json_cmake_fetchcontent.git;protocol=https;branch=master;tag=v3.9.1;name=json;destsuffix=${BP}/hailort/external/json-src \
    git://github.com/protocolbuffers/protobuf.git;protocol=https;branch=21.x;tag=v21.12;name=protobuf;destsuffix=${BP}/hailort/external/protobuf-src \
    git://github.com/cameron314/readerwriterqueue.git;protocol=https;branch=master;tag=v1.0.3;name=readerwriterqueue;destsuffix=${BP}/hailort/external/readerwriterqueue-src \
    git://github.com/gabime/spdlog.git;protocol=https;branch=v1.x;tag=v1.14.1;name=spdlog;destsuffix=${BP}/hailort/external/spdlog-src \
    git://github.com/Cyan4973/xxHash.git;protocol=https;branch=release;tag=v0.8.2;name=xxhash;destsuffix=${BP}/hailort/external/xxhash-src \
"
SRCREV_FORMAT = "hailort"
SRCREV_hailort = "08f088d3b443c7846af067269ce998c6d5d91449"
SRCREV_cli11 = "ae78ac41cf225706e83f57da45117e3e90d4a5b4"
SRCREV_dotwriter = "e5fa8f281adca10dd342b1d32e981499b8681daf"
SRCREV_eigen = "3147391d946bb4b6c68edd901f2add6ac1f31f8c"
SRCREV_json = "391786c6c3abdd3eeb993a3154f1f2a4cfe137a0"
SRCREV_protobuf = "f0dc78d7e6e331b8c6bb2d5283e06aa26883ca7c"
SRCREV_readerwriterqueue = "435e36540e306cac40fcfeab8cc0a22d48464509"
SRCREV_spdlog = "27cb4c76708608465c413f6d0e6b8d99a4d84302"
SRCREV_xxhash = "bbb27a5efb85b92a0486cf361a8635715a53f6ba"

inherit cmake

# protoc is made by a cmake of its own, which sees the host's programs alone: make is among them, ninja need not be.
OECMAKE_GENERATOR = "Unix Makefiles"
do_configure[cleandirs] += "${S}/hailort/external/protobuf-build ${S}/hailort/external/protobuf-install"
# CLI11, DotWriter and JSON name releases of CMake that CMake 4 no longer knows.
EXTRA_OECMAKE = " \
    -DCMAKE_POLICY_VERSION_MINIMUM=3.5 \
    -DHAILO_OFFLINE_COMPILATION=ON \
    -DHAILO_BUILD_SERVICE=OFF \
    -DHAILO_BUILD_EXAMPLES=OFF \
    -DHAILO_BUILD_GSTREAMER=OFF \
    -DHAILO_BUILD_UT=OFF \
"

# The file's name has the whole version, and so has its SONAME; libhailort.so is for compilers.
FILES:${PN} += "${libdir}/libhailort.so.${PV}"
