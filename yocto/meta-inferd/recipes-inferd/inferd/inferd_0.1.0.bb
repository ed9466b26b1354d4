require inferd.inc
require inferd-crates.inc

SUMMARY = "Edge inference daemon and its keeper, built with this tree's Rust"
SRC_URI += "file://Cargo.toml file://Cargo.lock file://app"

inherit cargo

CARGO_BUILD_FLAGS:append = " --package inferd"

# What Cargo.toml asks for. A tree whose Rust is older has the prebuilt program.
python () {
    import re
    manifest = os.path.join(d.getVar('INFERD_CHECKOUT'), 'Cargo.toml')
    bb.parse.mark_dependency(d, manifest)
    with open(manifest) as file:
        floor = re.search(r'(?m)^rust-version = "(.*)"', file.read())[1]
    here = (d.getVar('RUSTVERSION') or '0').rstrip('%')
    if bb.utils.vercmp_string(here, floor) < 0:
        raise bb.parse.SkipRecipe(f"inferd needs Rust {floor}, and this tree has {here}: take inferd-bin")
}

do_install() {
    install -D -m 0755 ${B}/target/${CARGO_TARGET_SUBDIR}/inferd ${D}${bindir}/inferd
    inferd_install_system
}

RCONFLICTS:${PN} = "inferd-bin"
