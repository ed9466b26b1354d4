SUMMARY = "Library of Hailo's accelerators"
HOMEPAGE = "https://github.com/hailo-ai/hailort"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://hailort/LICENSE;md5=ed57bbf10be0c74ecf2c80710208b2b3"

# What its CMake would clone, at the commits that it names. protoc is built for the machine that builds, by its own compiler.
EXTERNAL = "subdir=hailort-${PV}/hailort/external"
SRC_URI = " \
    https://github.com/hailo-ai/hailort/archive/v${PV}/hailort-${PV}.tar.gz;name=hailort \
    https://github.com/hailo-ai/CLI11/archive/ae78ac41cf225706e83f57da45117e3e90d4a5b4/CLI11-ae78ac41cf225706e83f57da45117e3e90d4a5b4.tar.gz;name=cli11;${EXTERNAL}/cli11-src;striplevel=1 \
    https://github.com/hailo-ai/DotWriter/archive/e5fa8f281adca10dd342b1d32e981499b8681daf/DotWriter-e5fa8f281adca10dd342b1d32e981499b8681daf.tar.gz;name=dotwriter;${EXTERNAL}/dotwriter-src;striplevel=1 \
    https://gitlab.com/libeigen/eigen/-/archive/3.4.0/eigen-3.4.0.tar.bz2;name=eigen;${EXTERNAL}/eigen-src;striplevel=1 \
    https://github.com/ArthurSonzogni/nlohmann_json_cmake_fetchcontent/archive/391786c6c3abdd3eeb993a3154f1f2a4cfe137a0/nlohmann_json_cmake_fetchcontent-391786c6c3abdd3eeb993a3154f1f2a4cfe137a0.tar.gz;name=json;${EXTERNAL}/json-src;striplevel=1 \
    https://github.com/protocolbuffers/protobuf/archive/f0dc78d7e6e331b8c6bb2d5283e06aa26883ca7c/protobuf-f0dc78d7e6e331b8c6bb2d5283e06aa26883ca7c.tar.gz;name=protobuf;${EXTERNAL}/protobuf-src;striplevel=1 \
    https://github.com/cameron314/readerwriterqueue/archive/435e36540e306cac40fcfeab8cc0a22d48464509/readerwriterqueue-435e36540e306cac40fcfeab8cc0a22d48464509.tar.gz;name=readerwriterqueue;${EXTERNAL}/readerwriterqueue-src;striplevel=1 \
    https://github.com/gabime/spdlog/archive/v1.14.1/spdlog-1.14.1.tar.gz;name=spdlog;${EXTERNAL}/spdlog-src;striplevel=1 \
    https://github.com/Cyan4973/xxHash/archive/v0.8.2/xxhash-0.8.2.tar.gz;name=xxhash;${EXTERNAL}/xxhash-src;striplevel=1 \
"
SRC_URI[hailort.sha256sum] = "f2a3dd80b9ccbbb58624a228d4857375c57b0c76c3a07812f43fb7596639e2de"
SRC_URI[cli11.sha256sum] = "12e815f9fa9fd21c9743af2280a5b77d20713ea36095da0e76f12a32f02bf92b"
SRC_URI[dotwriter.sha256sum] = "911e1eeb20485d3563d54215ec8cc9ac5e529a1773adbdbf5aed3d7dfd1f8052"
SRC_URI[eigen.sha256sum] = "b4c198460eba6f28d34894e3a5710998818515104d6e74e5cc331ce31e46e626"
SRC_URI[json.sha256sum] = "614ffcc9812aa2d2cbe0d602e258c2fe7d06eddd68dec0c51039f3f210a33ac6"
SRC_URI[protobuf.sha256sum] = "d594b561fb41bf243233d8f411c7f2b7d913e5c9c1be4ca439baf7e48384c893"
SRC_URI[readerwriterqueue.sha256sum] = "0a15f844f129ac585d751534e4eb1498fcbb890ed9cd08f5041573495b46a4b1"
SRC_URI[spdlog.sha256sum] = "1586508029a7d0670dfcb2d97575dcdc242d3868a259742b69f100801ab4e16b"
SRC_URI[xxhash.sha256sum] = "baee0c6afd4f03165de7a4e67988d16f0f2b257b51d0e3cb91909302a26a79c4"
# Archives that GitHub makes, each with the hash that Buildroot compares as well: should one come out otherwise, the build stops.
INSANE_SKIP += "src-uri-bad"

inherit cmake

EXTRA_OECMAKE = " \
    -DHAILO_OFFLINE_COMPILATION=ON \
    -DHAILO_BUILD_SERVICE=OFF \
    -DHAILO_BUILD_EXAMPLES=OFF \
    -DHAILO_BUILD_GSTREAMER=OFF \
    -DHAILO_BUILD_UT=OFF \
"

# The file's name has the whole version, and so has its SONAME; libhailort.so is for compilers.
FILES:${PN} += "${libdir}/libhailort.so.${PV}"
