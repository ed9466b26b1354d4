"""The layer, without OpenEmbedded: what it has of other rooms agrees with them, and what it downloads is pinned."""

import hashlib
import json
import re
import subprocess
import tomllib
import xml.etree.ElementTree as ET
from importlib import resources

import board as boards
import builder
import hosttools
import jsonschema
import layout as layouts
import places
import pytest
import roots
import rpi
import yaml
import openembedded
from buildroot import tree
from steps import Failure

LAYER = openembedded.LAYER
RECIPES = sorted(LAYER.rglob("*.bb"))
KAS = sorted((places.ROOT / "yocto/kas").glob("*.yml"))
HAILO = ("hailort", "hailort-driver", "hailo-firmware")
# What a start4.elf says of itself.
WORDS = b"\0VC_BUILD_ID_TIME: 18:28:41\0VC_BUILD_ID_TIME: Jan 16 2025\0"


def variables(path):
    """What a .conf, .bb or .inc sets at its top level; lines that go on are joined."""
    text = path.read_text().replace("\\\n", " ")
    return dict(re.findall(r'(?m)^([\w:.\[\]{}$/-]+) *(?:\?\?|\?|:|\+)?= *"(.*)"$', text))


def recipe(name):
    """The one recipe called `name`."""
    (path,) = LAYER.rglob(f"{name}_*.bb")
    return path


def test_what_is_generated_is_what_the_generator_makes():
    for path, text in openembedded.generated().items():
        assert path.read_text() == text, f"`python3 -B scripts/lib/openembedded.py generate` writes {path.relative_to(places.ROOT)} anew"


def test_a_wks_that_nobody_generates_is_not_left_behind():
    assert set((LAYER / "files/wic").iterdir()) == {path for path in openembedded.generated() if path.suffix == ".in"}


def test_the_list_of_crates_has_every_crate_of_the_lock_with_its_checksum():
    lock = tomllib.loads((places.ROOT / "Cargo.lock").read_text())
    text = openembedded.CRATES.read_text()
    for package in lock["package"]:
        if "source" in package:
            assert f"crate://crates.io/{package['name']}/{package['version']} " in text
            assert f'SRC_URI[{package["name"]}-{package["version"]}.sha256sum] = "{package["checksum"]}"' in text


def test_a_crate_that_has_no_checksum_is_refused():
    with pytest.raises(Failure, match="without a checksum: own"):
        openembedded.crates('[[package]]\nname = "own"\nversion = "1.0.0"\nsource = "git+https://example.org/own"\n')


@pytest.mark.parametrize("name", openembedded.laid_out())
def test_a_wks_has_our_partitions_in_our_order(name):
    layout = layouts.load(boards.load(name))
    rows = [line for line in (LAYER / f"files/wic/inferd-{name}.wks.in").read_text().splitlines() if line.startswith("part ")]
    found = [re.search(r"--part-name (\S+) --uuid (\S+) --part-type (\S+) .*--fixed-size (\d+)M", row).groups() for row in rows]
    assert found == [(part.name, part.uuid, part.type, str(part.size >> 20)) for part in layout.partitions]
    assert variables(LAYER / "recipes-inferd/images/inferd-image.inc")["INFERD_DISK_GUID"] == layout.disk_uuid


def test_every_board_is_a_machine_or_is_said_not_to_be():
    machines = {key.split(":")[1]: value for key, value in variables(LAYER / "conf/layer.conf").items() if key.startswith("INFERD_BOARD:")}
    assert machines == {machine: name for name, machine in openembedded.MACHINES.items()}
    assert set(boards.names()) - set(openembedded.MACHINES) == {"qemu-x86_64"}


def test_the_kernels_fragments_are_buildroots_own_files():
    fragments = sorted((LAYER / "files/linux").glob("*.cfg"))
    assert {path.resolve() for path in fragments} == set((places.ROOT / "buildroot/linux").glob("*.fragment"))
    assert {path.name for path in fragments} == {f"inferd-{path.resolve().stem}.cfg" for path in fragments}


def test_a_layer_has_what_yocto_check_layer_looks_for():
    conf = variables(LAYER / "conf/layer.conf")
    assert conf["BBFILE_COLLECTIONS"] == "inferd" and conf["LAYERDEPENDS_inferd"] == "core"
    assert conf["LAYERSERIES_COMPAT_inferd"] == "wrynose", "only what was tried"
    assert all((LAYER / name).stat().st_size for name in ("README.md", "SECURITY.md", "COPYING"))
    assert not (LAYER / "wic").exists(), "this series wants wks files in files/wic"
    folders = {path.relative_to(LAYER / "dynamic-layers").parts[0] for path in (LAYER / "dynamic-layers").rglob("*.bbappend")}
    assert folders == {"raspberrypi", "tegra", "meta-hailo-libhailort"} and all(f"{name}:${{LAYERDIR}}" in conf["BBFILES_DYNAMIC"] for name in folders)


@pytest.mark.parametrize("path", sorted(LAYER.rglob("*.bbappend")), ids=lambda path: path.name)
def test_other_layers_recipes_are_changed_for_our_distribution_only(path):
    text = path.read_text()
    if text.startswith("require "):
        assert text == "require ${INFERD_FILES}/linux/inferd-kernel.inc\n"
        text = (LAYER / "files/linux/inferd-kernel.inc").read_text()
    changed = re.findall(r"(?m)^([A-Za-z]\S*) *(?:\(\)|[?+:]*=)", text)
    assert changed and all(name.startswith("INFERD_") or name.endswith(":inferd-os") for name in changed)


def test_recipes_are_of_the_version_of_the_workspace():
    version = tomllib.loads((places.ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    ours = [path for path in RECIPES if path.is_relative_to(LAYER / "recipes-inferd") and "_" in path.stem]
    assert ours and {path.stem.rpartition("_")[2] for path in ours} == {version}
    assert variables(LAYER / "conf/distro/inferd.conf")["DISTRO_VERSION"] == version


def test_every_recipe_has_a_licence_and_the_digest_of_our_own_is_right():
    ours = hashlib.md5((places.ROOT / "LICENSE").read_bytes(), usedforsecurity=False).hexdigest()
    for path in RECIPES:
        text = "".join(file.read_text() for file in (path, *path.parent.glob("*.inc")))
        assert re.search(r'(?m)^LICENSE = "', text), path
        if "file://LICENSE;md5=" in text and "recipes-inferd" in str(path):
            assert f"file://LICENSE;md5={ours}" in text, path


def downloads(path):
    """What a recipe downloads: each address with its options and, by its name, the commit or the hash that pins it."""
    text = "".join(file.read_text() for file in (path, *path.parent.glob("*.inc"))).replace("${PV}", path.stem.rpartition("_")[2])
    pins = re.findall(r'(?m)^SRCREV(?:_([a-z]\w*))? = "([^"]*)"', text), re.findall(r'SRC_URI\[(?:(\S+)\.)?sha256sum\] = "([^"]*)"', text)
    commits, hashes = (dict(found) for found in pins)
    found = []
    for word in "".join(re.findall(r'SRC_URI \+?= "([^"]*)"', text)).split():
        url, *options = word.split(";")
        options = dict(option.partition("=")[::2] for option in options)
        if url.startswith("git://"):
            found.append((url, options, commits.pop(options.get("name", ""), None)))
        elif url.startswith("https://"):
            found.append((url, options, hashes.pop(options.get("name", ""), None)))
        elif url.startswith("crate://"):
            found.append((url, options, hashes.pop("-".join(url.split("/")[-2:]), None)))
    assert not commits and not hashes, "pins of nothing"
    return found


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_download_is_pinned_by_a_commit_or_a_hash(path):
    for url, options, pin in downloads(path):
        git = url.startswith("git://")
        assert re.fullmatch("[0-9a-f]{40}" if git else "[0-9a-f]{64}", pin or ""), url
        assert not git or (options["protocol"] == "https" and options["branch"]), "bitbake refuses a commit that its branch has not"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_no_recipe_takes_an_archive_that_a_host_of_git_makes_or_skips_a_check_of_its_own(path):
    assert not [url for url, _, _ in downloads(path) if re.search(r"git(hu|la)b\.com/.+/archive/", url)]
    assert not re.search(r"(?m)^INSANE_SKIP\b(?!:)", path.read_text()), "a check of the recipe itself, not of a package"


def test_hailos_sources_are_those_of_the_other_builder():
    names = ["HAILORT_SITE", "HAILORT_EXTRA_DOWNLOADS", "HAILORT_DRIVER_SITE", "HAILO_FIRMWARE_SITE", "HAILO_FIRMWARE_SOURCE"]
    theirs = tree.evaluated(names)
    archives = f"{theirs['HAILORT_SITE']} {theirs['HAILORT_EXTRA_DOWNLOADS']} {theirs['HAILORT_DRIVER_SITE']}"
    wanted = dict(re.findall(r"https://(\S+?)(?:/-)?/archive/([^/\s]+)", archives))
    library, driver, firmware = (downloads(recipe(name)) for name in HAILO)
    # There by a tag or by a commit; here by both where there is a tag, and bitbake compares them.
    used = {url.removeprefix("git://").removesuffix(".git"): {options.get("tag"), pin} for url, options, pin in library + driver}
    assert set(used) == set(wanted) and len(used) == 10
    assert not [url for url, reference in wanted.items() if reference not in used[url]]
    (url, _, pin), (licence, _, commit) = firmware
    assert url == f"{theirs['HAILO_FIRMWARE_SITE']}/{theirs['HAILO_FIRMWARE_SOURCE']}"
    assert f"sha256  {pin}  {url.rpartition('/')[2]}\n" in (places.ROOT / "buildroot/package/hailo-firmware/hailo-firmware.hash").read_text()
    assert (licence, commit) == (library[0][0], library[0][2]), "the licence is the library's release's"


def test_what_hailorts_cmake_would_clone_lies_where_it_looks():
    unpacked = {options["destsuffix"].removeprefix("${BP}/") for _, options, _ in downloads(recipe("hailort")) if "destsuffix" in options}
    assert unpacked == {f"hailort/external/{name}" for name in re.findall(r"=([\w-]+-src)", " ".join(tree.evaluated(["HAILORT_EXTERNALS"]).values()))}
    licences = variables(recipe("hailort"))["LIC_FILES_CHKSUM"]
    assert all(f"file://{folder}/" in licences for folder in unpacked), "each has a licence of its own"


def test_hailort_is_configured_as_the_other_builder_does_and_for_a_cmake_that_forgot_the_releases_it_names():
    ours, theirs = variables(recipe("hailort")), tree.evaluated(["HAILORT_CONF_OPTS", "HAILORT_LICENSE_FILES"])
    options = set(ours["EXTRA_OECMAKE"].split())
    # Buildroot asks every package for shared libraries; hailort installs none of those it bundles.
    assert options | {"-DBUILD_SHARED_LIBS=OFF"} == set(theirs["HAILORT_CONF_OPTS"].split())
    assert {"-DHAILO_OFFLINE_COMPILATION=ON", "-DCMAKE_POLICY_VERSION_MINIMUM=3.5"} <= options
    # ninja is a recipe's own, out of reach of the cmake that its CMake starts for protoc.
    assert ours["OECMAKE_GENERATOR"] == "Unix Makefiles"
    licences = {re.sub("^file://|;.*$", "", word) for word in ours["LIC_FILES_CHKSUM"].split()}
    assert licences == set(theirs["HAILORT_LICENSE_FILES"].split())


def test_library_driver_and_firmware_are_of_one_release_and_of_the_other_builders():
    (release,) = {recipe(name).stem.rpartition("_")[2] for name in HAILO}
    assert variables(LAYER / "conf/layer.conf")["INFERD_HAILORT_RELEASE"] == release
    assert f"INFERD_HAILORT_RELEASE = {release}\n" in (places.ROOT / "buildroot/external.mk").read_text()


def test_an_image_for_a_hailo_takes_driver_and_library_by_the_names_of_our_recipes():
    wanted = variables(LAYER / "recipes-inferd/images/inferd-image.inc")["INFERD_BOARD_PACKAGES:raspberrypi5"]
    # kernel-module-hailo-pci would be looked for among the kernel's own modules, and found to be none of them when the image is put together.
    assert wanted.split()[:2] == ["hailort-driver", "hailort"]
    assert "bb.utils.contains('LICENSE_FLAGS_ACCEPTED', 'hailo-firmware', 'hailo-firmware', '', d)" in wanted


def test_the_firmware_wants_a_yes_and_shows_its_licence():
    found = variables(recipe("hailo-firmware"))
    assert found["LICENSE_FLAGS"] == "hailo-firmware"
    assert "show_licence" in found["do_unpack[postfuncs]"]
    readme = (places.ROOT / "yocto/README.md").read_text()
    assert 'LICENSE_FLAGS_ACCEPTED += "hailo-firmware"' in readme


def test_units_scripts_and_rules_are_the_overlays_and_there_is_no_second_one():
    assert not [path for path in (places.ROOT / "yocto").rglob("*") if path.suffix in (".service", ".rules")]
    text = "".join(path.read_text() for path in (LAYER / "recipes-inferd").rglob("*") if path.suffix in (".bb", ".inc"))
    for folder in ("systemd/system", "systemd/system.conf.d", "systemd/pstore.conf.d", "udev/rules.d"):
        for path in (places.OVERLAY / "usr/lib" / folder).iterdir():
            assert (f"{folder}/{path.name}" if folder.endswith(".d") else path.name) in text, path
    assert "install -D -m 0755 ${S}/rootfs-overlay/usr/lib/systemd/system-shutdown/inferd " in text
    run = {line.removeprefix("ExecStart=") for path in (places.OVERLAY / "usr/lib/systemd/system").iterdir() for line in path.read_text().splitlines()}
    for script in (places.OVERLAY / "usr/libexec/inferd").iterdir():
        if script.name in ("keeper", "shutdown"):
            continue  # systemd's own work
        assert re.search(rf"\b{script.name}\b", text), script.name
        assert f"/usr/libexec/inferd/{script.name}" in run or script.name in ("dhcp-event", "common"), f"no unit runs {script.name}"


def test_busybox_is_the_other_builders_with_what_the_scripts_call():
    (fragment,) = (LAYER / "recipes-core/busybox/busybox").iterdir()
    assert fragment.resolve() == places.ROOT / "buildroot/busybox/common.fragment"
    assert f"file://{fragment.name}" in (LAYER / "recipes-core/busybox/busybox_%.bbappend").read_text()
    assert {"CONFIG_NTPD=y", "CONFIG_ARPING=y"} <= set(fragment.read_text().splitlines())


@pytest.mark.parametrize("name", [name for name in openembedded.laid_out() if boards.load(name).backend == "rpi-tryboot"])
def test_what_the_first_boot_may_be_asked_for_is_in_a_raspberry_pis_image(name):
    found = variables(LAYER / "recipes-inferd/images/inferd-image.inc")
    assert {"${INFERD_ON_DEMAND}", "${INFERD_BOARD_PACKAGES}"} <= set(found["IMAGE_INSTALL"].split())
    asked = f"{found['INFERD_ON_DEMAND']} {found[f'INFERD_ON_DEMAND:append:{openembedded.MACHINES[name]}']}".replace("${INFERD_RADIO}", found["INFERD_RADIO"])
    theirs = tree.defconfig(tree.TREE / f"configs/inferd_{name.replace('-', '_')}_defconfig")
    packages = {"DROPBEAR": "dropbear", "WPA_SUPPLICANT": "wpa-supplicant", "WIRELESS_REGDB": "wireless-regdb-static"}
    assert all(theirs[f"BR2_PACKAGE_{symbol}"] == "y" for symbol in packages)
    assert set(packages.values()) <= set(asked.split())


def test_nobody_logs_in_over_ssh_by_what_the_image_itself_has():
    # A socket of dropbear's own would let in whom nobody was asked about, and keys are only those of the boot partition.
    assert variables(LAYER / "conf/distro/inferd.conf")["SYSTEMD_AUTO_ENABLE:pn-dropbear"] == "disable"
    assert (places.OVERLAY / "root/.ssh").readlink().as_posix() == "/run/inferd/ssh"
    (link,) = re.findall(r"(?m)^ +ln -s (.*) \$\{D\}\$\{ROOT_HOME\}/\.ssh$", recipe("inferd-appliance").read_text())
    assert link == "${@os.readlink(d.expand('${INFERD_CHECKOUT}/rootfs-overlay/root/.ssh'))}"


def test_the_user_is_the_one_of_the_overlay():
    found = variables(LAYER / "recipes-inferd/inferd/inferd.inc")
    name, _, uid, gid, *_ = next(line for line in (places.OVERLAY / "etc/passwd").read_text().splitlines() if line.startswith("inferd:")).split(":")
    assert f"--gid {gid} {name}" in found["GROUPADD_PARAM:${PN}"]
    assert f"--uid {uid} --gid {gid}" in found["USERADD_PARAM:${PN}"] and found["USERADD_PARAM:${PN}"].endswith(f" {name}")


@pytest.mark.parametrize("name", [name for name in openembedded.laid_out() if boards.load(name).backend == "rpi-tryboot"])
def test_a_raspberry_pi_gets_the_device_trees_of_its_page(name):
    found = variables(LAYER / "conf/distro/inferd.conf")[f"RPI_KERNEL_DEVICETREE:{openembedded.MACHINES[name]}"]
    assert found.split() == [f"{tree}.dtb" for tree in boards.load(name).kernel.device_trees]


def test_kas_files_are_of_kas_own_schema_and_pin_every_layer():
    schema = json.loads(resources.files("kas").joinpath("schema-kas.json").read_text())
    machines = set()
    for path in KAS:
        page = yaml.safe_load(path.read_text())
        jsonschema.validate(page, schema)
        for name, repo in page.get("repos", {}).items():
            assert "url" not in repo or re.fullmatch("[0-9a-f]{40}", repo["commit"]), f"{path.name}: {name} is not pinned"
        if path.stem != "common":
            assert page["header"]["includes"] == ["yocto/kas/common.yml"]
            machines.add((path.stem, page["machine"]))
    names = {"qemuarm64": "qemu-aarch64"}
    assert {(names.get(file, file), machine) for file, machine in machines} == set(openembedded.MACHINES.items())


STORAGE = """<?xml version="1.0"?>
<partition_layout version="01.00.0000">
    <device type="spi" instance="0" sector_size="512"><partition name="mb1" id="2" type="mb1_bootloader"><size> 262144 </size></partition></device>
    <device type="sdcard" instance="0" sector_size="512" num_sectors="SD_SECTORS">
        <partition name="master_boot_record" type="protective_master_boot_record"><size> 512 </size></partition>
        <partition name="UDA" id="15" type="data"><size> 400 </size><allocation_attribute> 0x808 </allocation_attribute></partition>
        <partition name="APP" id="1" type="data"><size> APPSIZE </size><allocation_attribute> 0x8 </allocation_attribute><filename> APPFILE </filename></partition>
        <partition name="APP_b" id="2" type="data"><size> APPSIZE </size><allocation_attribute> 0x8 </allocation_attribute></partition>
        <partition name="secondary_gpt" type="secondary_gpt"><size> 0xFFFFFFFFFFFFFFFF </size></partition>
    </device>
</partition_layout>
"""


def partitions(text):
    """The partitions of the card in a storage layout, with their facts."""
    device = ET.fromstring(text).find("device[@type='sdcard']")
    return {row.get("name"): {"id": row.get("id")} | {fact.tag: fact.text.strip() for fact in row} for row in device}


def test_what_is_beside_an_image_is_what_the_flasher_reads(office, tmp_path, monkeypatch):
    board = boards.load("rpi4")
    disk = tmp_path / "inferd-image-dev-raspberrypi4-64.wic"
    layout = layouts.load(board)
    tools = hosttools.Tools(hosttools.IMAGE)
    work = tmp_path / "work"
    work.mkdir()
    files = {content: work / content for content in ("boot", "system", "data", "rootfs")}
    for content, file in files.items():
        file.write_bytes(content.encode() * 4096)
    builder.image.disk(layout, files, tools, work, disk)
    roots.put(office.root, tmp_path / "rootfs")
    for verb in (("map",), ("facts", "inferd-image-dev", str(tmp_path / "rootfs"))):
        monkeypatch.setattr("sys.argv", ["openembedded.py", verb[0], "rpi4", str(disk), *verb[1:]])
        assert openembedded.cli() == 0
    facts = json.loads((tmp_path / f"{disk.name}.json").read_text())
    assert (facts["board"], facts["dev"], facts["sha256"]) == ("rpi4", True, hashlib.sha256(disk.read_bytes()).hexdigest())
    assert facts["root_sha256"] == hashlib.sha256(office.root.read_bytes()).hexdigest()
    # What was on a card before must not show where nothing of ours is written: the beginning of every partition is.
    blocks = [row.split("-") for row in re.findall(r"<Range[^>]*> ([\d-]+) <", (tmp_path / f"{disk.name}.bmap").read_text())]
    covered = {block for first, *last in blocks for block in range(int(first), int((last or [first])[0]) + 1)}
    assert {part.offset // 4096 for part in layouts.read_gpt(disk)[1]} <= covered


def test_the_image_has_its_map_and_facts_from_there_and_a_jetson_its_engines_and_what_makes_its_data_partition():
    text = (LAYER / "recipes-inferd/images/inferd-image.inc").read_text()
    assert variables(LAYER / "recipes-inferd/images/inferd-image.inc")["INFERD_FSTYPES"] == "squashfs-zst wic wic.bmap wic.json"
    assert "bmaptool" not in text.replace("bmaptool's", "")
    for verb in ("map", "facts"):
        assert f"openembedded.py {verb} ${{INFERD_BOARD}}" in text
    (tegra,) = re.findall(r'^INFERD_BOARD_PACKAGES:tegra = "(.*)"$', text, re.MULTILINE)
    assert {"e2fsprogs-mke2fs", "tensorrt-core", "tegra-libraries-cuda"} <= set(tegra.split()) and "onnxruntime" in tegra


def test_a_jetsons_image_has_what_its_machine_names_and_is_refused_without_what_it_needs(tmp_path, monkeypatch):
    text = (LAYER / "recipes-inferd/images/inferd-image.inc").read_text()
    (tegra,) = re.findall(r'^INFERD_BOARD_PACKAGES:tegra = "(.*)"$', text, re.MULTILINE)
    # Of a Raspberry Pi this would be every module of its kernel, for which its slot is too small.
    assert "packagegroup-machine-base" in tegra.split() and text.count("packagegroup-machine-base") == 1
    (check,) = re.findall(r"(?ms)^inferd_is_whole\(\) \{\n(.*?)^\}", text)
    assert check.split()[-3:] == ["whole", "${INFERD_BOARD}", "${IMAGE_ROOTFS}"]
    assert '\nROOTFS_POSTPROCESS_COMMAND:append:tegra = " inferd_is_whole"\n' in text

    def judged(board="jetson-orin-nano"):
        monkeypatch.setattr("sys.argv", ["openembedded.py", "whole", board, str(tmp_path)])
        return openembedded.cli()

    for pattern in openembedded.TEGRA_NEEDS:
        with pytest.raises(Failure, match=re.escape(f"  {pattern}: ")):
            judged()
        path = tmp_path / pattern.replace("**", "updates/drivers").replace("*", "").replace("[89]", "8").replace("?", "-").replace("modules//", "modules/6.8.12/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to("/what/only/the/board/has")
    assert judged() == 0
    (tmp_path / "usr/sbin/nvbootctrl").unlink()
    assert judged("rpi4") == 0
    with pytest.raises(Failure, match="lacks what packagegroup-machine-base brings:\n  usr/sbin/nvbootctrl: .*after three warm starts it gives a system up$"):
        judged()


def test_who_tells_a_jetsons_uefi_that_a_start_went_well_is_tried_again_and_waits_for_nothing_of_ours():
    (path,) = LAYER.rglob("tegra-redundant-boot_%.bbappend")
    said = [line for line in (path.parent / "tegra-redundant-boot/inferd.conf").read_text().splitlines() if "=" in line and not line.startswith("#")]
    assert {"Restart=on-failure", "RestartSec=10", "StandardError=journal+console"} <= set(said)
    assert not [line for line in said if line.split("=")[0] in ("After", "Requires", "BindsTo", "ExecCondition", "ExecStartPre", "ExecStart", "Type")]
    assert "${D}${systemd_system_unitdir}/nv_update_verifier.service.d/inferd.conf\n" in path.read_text()


def test_whom_an_image_believes_is_said_by_one_variable_and_an_image_that_believes_nobody_warns():
    recipe_of_it = recipe("inferd-appliance").read_text()
    assert 'roots.py "${INFERD_ROOT}" ${D}' in recipe_of_it and "'${INFERD_ROOT}:'" in re.search(r"(?m)^do_install\[file-checksums\] .*ROOT.*$", recipe_of_it)[0]
    image = (LAYER / "recipes-inferd/images/inferd-image.inc").read_text()
    assert re.search(r"root\.imr \] \|\|\n +bbwarn ", image) and 'ROOTFS_POSTPROCESS_COMMAND += "inferd_is_trusting"' in image
    assert yaml.safe_load((places.ROOT / "yocto/kas/common.yml").read_text())["env"]["INFERD_ROOT"] is None, "passed on where it is set"


def test_which_system_an_image_holds_is_said_by_variables_that_kas_passes_on_and_is_called_as_by_every_other_builder():
    found = variables(LAYER / "conf/distro/inferd.conf")
    names = {"INFERD_IMAGE_ID", "INFERD_IMAGE_VERSION"}
    passed = yaml.safe_load((places.ROOT / "yocto/kas/common.yml").read_text())["env"]
    assert names <= set(found) and set(passed) == names | {"INFERD_ROOT"} and set(passed.values()) == {None}
    assert f"or '{builder.image.SYSTEM_PRODUCT}'" in found["IMAGE_ID:pn-os-release"]


@pytest.mark.parametrize(("product", "version", "says"), [("", "1.2", "'1.2' is no version"), ("a b", "1", "'a b' is no name"), ("os", "", "which version of os")])
def test_a_system_that_no_bundle_could_be_called_is_refused(product, version, says, monkeypatch):
    monkeypatch.delenv("INFERD_IMAGE_VERSION", raising=False)
    monkeypatch.setattr("sys.argv", ["openembedded.py", "judge", product, version])
    with pytest.raises(Failure, match=says):
        openembedded.cli()


def test_a_jetsons_medium_gets_our_partitions_behind_its_second_system():
    board = boards.load("jetson-orin-nano")
    found = partitions(openembedded.with_our_partitions(STORAGE, board))
    assert list(found) == ["master_boot_record", "UDA", "APP", "APP_b", "boot", "models-a", "models-b", "data", "secondary_gpt"]
    sizes = {part.name: str(part.size) for part in layouts.load(board).partitions}
    assert [found[name]["size"] for name in ("models-a", "models-b")] == [sizes["models-a"], sizes["models-b"]] == [str(512 << 20)] * 2
    assert [name for name, facts in found.items() if facts.get("allocation_attribute") == "0x808"] == ["data"], "one takes the rest"
    assert len({facts["id"] for facts in found.values() if facts["id"]}) == 7, "each has an id of its own"
    assert {name: facts["filename"] for name, facts in found.items() if "filename" in facts} == {"APP": "APPFILE", "boot": openembedded.TEGRA_BOOT}
    assert found["boot"]["size"] == str(layouts.load(board).named("boot").size)


def test_a_jetson_has_a_fat_for_its_settings_and_nvidias_tools_are_given_it(tmp_path):
    board = boards.load("jetson-orin-nano")
    tools = hosttools.Tools([*hosttools.IMAGE])
    openembedded.parts(board, tmp_path / "nothing", tmp_path / "parts", tools, 1_000_000_000)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["boot.vfat"], "start script and NVIDIA's tools make the rest"
    command = [tools.path("mtype"), "-i", tmp_path / "parts/boot.vfat", "::inferd.toml.example"]
    assert subprocess.run(command, capture_output=True, check=True).stdout.decode() == builder.image.example(places.OVERLAY)
    text = (LAYER / "recipes-inferd/images/inferd-image.inc").read_text()
    (hook,) = re.findall(r"(?ms)^tegraflash_custom_pre:append:tegra \(\) \{\n(.*?)^\}", text)
    assert hook.split() == ["cp", "${INFERD_PARTS}/boot.vfat", f"./{openembedded.TEGRA_BOOT}"]


BOOT_ONLY = re.sub('(?s)    <device type="sdcard".*</device>\n', "", STORAGE)
NVME = STORAGE.replace('"sdcard"', '"nvme"')


@pytest.mark.parametrize(("internal", "external", "written", "changed"), [
    # jetson-orin-nano-devkit: its card is written, and NVIDIA's layout for an NVMe is there as well.
    (STORAGE, NVME, "internal-flash.xml", {"internal-flash.xml", "external-flash.xml"}),
    (STORAGE, None, "internal-flash.xml", {"internal-flash.xml"}),
    # jetson-orin-nano-devkit-nvme: the internal one is the boot flash alone.
    (BOOT_ONLY, NVME, "external-flash.xml", {"external-flash.xml"}),
])
def test_every_storage_layout_with_two_systems_gets_our_partitions(internal, external, written, changed, tmp_path, monkeypatch):
    texts = {name: text for name, text in {"internal-flash.xml": internal, "external-flash.xml": external}.items() if text}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["openembedded.py", "tegra", "jetson-orin-nano", written, "internal-flash.xml", "external-flash.xml"])
    assert openembedded.cli() == 0
    for name, text in texts.items():
        made = (tmp_path / name).read_text()
        assert made == (openembedded.with_our_partitions(text, boards.load("jetson-orin-nano")) if name in changed else text), name
    assert {path.name for path in tmp_path.iterdir()} == set(texts)


@pytest.mark.parametrize(("internal", "external", "written", "says"), [
    (STORAGE.replace("APP_b", "SPARE"), NVME, "internal-flash.xml", "internal-flash.xml: this storage layout has no APP_b"),
    (STORAGE, NVME.replace("APP_b", "SPARE"), "external-flash.xml", "external-flash.xml: this storage layout has no APP_b"),
    (STORAGE, None, "external-flash.xml", "there is no external-flash.xml"),
])
def test_a_medium_that_would_be_written_without_our_partitions_is_refused(internal, external, written, says, tmp_path):
    paths = [tmp_path / "internal-flash.xml", tmp_path / "external-flash.xml"]
    for path, text in zip(paths, (internal, external), strict=True):
        if text:
            path.write_text(text)
    with pytest.raises(Failure, match=says):
        openembedded.storage_layouts(boards.load("jetson-orin-nano"), written, paths)


def test_the_recipe_of_storage_layouts_names_the_one_that_is_written_as_the_images_class_does():
    (path,) = LAYER.rglob("tegra-storage-layout_%.bbappend")
    assert "${@'external' if d.getVar('TNSPEC_BOOTDEV') != d.getVar('TNSPEC_BOOTDEV_DEFAULT') else 'internal'}-flash.xml" in path.read_text()
    (task,) = re.findall(r"(?ms)^do_compile:append:inferd-os \(\) \{\n(.*?)^\}", path.read_text())
    assert task.split()[-5:] == ["tegra", "${INFERD_BOARD}", "${INFERD_WRITTEN_LAYOUT}", "internal-flash.xml", "external-flash.xml"]


@pytest.mark.parametrize(("text", "says"), [
    (STORAGE.replace("APP_b", "SPARE"), "USE_REDUNDANT_FLASH_LAYOUT_DEFAULT"),
    (STORAGE.replace('"UDA"', '"data"'), "has data already"),
])
def test_a_storage_layout_that_has_no_place_for_them_is_refused(text, says):
    with pytest.raises(Failure, match=says):
        openembedded.with_our_partitions(text, boards.load("jetson-orin-nano"))


@pytest.mark.parametrize("name", ["rpi4", "rpi5-hailo8"])
def test_the_parts_of_a_raspberry_pis_image_are_those_of_every_other_builder(name, tmp_path, monkeypatch):
    board = boards.load(name)
    deploy = tmp_path / "deploy"
    (deploy / "bootfiles").mkdir(parents=True)
    names = [board.kernel.image, "ramoops-pi4.dtbo", *(f"{tree.rpartition('/')[2]}.dtb" for tree in board.kernel.device_trees)]
    for file in [*names, *(f"bootfiles/{file}" for file in board.firmware.files)]:
        (deploy / file).write_bytes(file.encode() + (WORDS if file.endswith(".elf") else b""))
    tools = hosttools.Tools([*hosttools.IMAGE])
    openembedded.parts(board, deploy, tmp_path / "parts", tools, 1_000_000_000)
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["boot-a.vfat", "boot-b.vfat", "boot.vfat", "data.ext4"]
    (tmp_path / "parts/rootfs.squashfs").write_bytes(b"root" * 1024)
    monkeypatch.setattr("sys.argv", ["openembedded.py", "system", name, str(tmp_path / "parts"), str(tmp_path / "out")])
    assert openembedded.cli() == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["boot-a", "boot-b", "rootfs"]
    layout = layouts.load(board)

    def held(part, file):
        return subprocess.run([tools.path("mtype"), "-i", tmp_path / f"parts/{part}.vfat", f"::{file}"], capture_output=True, check=True).stdout

    assert held("boot", "autoboot.txt") == rpi.autoboot(layout, "a")
    # What the first boot may be told comes first, then the daemon's settings.
    assert held("boot", "inferd.toml.example") == b"".join(
        (places.OVERLAY / "etc/inferd" / name).read_bytes() for name in ("provision.toml", "inferd.toml")
    )
    for slot in rpi.SLOTS:
        for file, content in rpi.system_files(board, layout, slot).items():
            assert held(f"boot-{slot}", file) == content
    assert held("boot-a", board.kernel.image) == board.kernel.image.encode()
    for tree in board.kernel.device_trees:
        assert held("boot-a", f"{tree.rpartition('/')[2]}.dtb")
    for file in board.firmware.files:
        assert held("boot-a", file) == f"bootfiles/{file}".encode() + (WORDS if file.endswith(".elf") else b"")
    if name == "rpi4":
        assert held("boot-a", "overlays/ramoops-pi4.dtbo") == b"ramoops-pi4.dtbo"


def test_what_bitbake_has_not_deployed_is_named(tmp_path):
    with pytest.raises(Failure, match="has not made .*Image"):
        openembedded.parts(boards.load("rpi5-hailo8"), tmp_path / "nothing", tmp_path / "parts", hosttools.Tools([*hosttools.IMAGE]), 1)


def test_a_root_filesystem_gets_the_models_and_the_page_of_its_board(tmp_path):
    openembedded.furnish(boards.load("rpi4"), tmp_path)
    assert (tmp_path / "etc/inferd/board").read_text() == "rpi4\n"
    assert tomllib.loads((tmp_path / "etc/inferd/board.toml").read_text())["panel"] == {"led": "ACT"}, "the daemon looks for it there"
    assert (tmp_path / builder.image.MODELS_IN_IMAGE / "imu-motion/manifest.toml").is_file()
    assert not (tmp_path / "etc/os-release").exists(), "the distribution's"
