"""What is handed out of an image, and that it is the same bytes wherever and whenever it is made."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import board as boards
import hosttools
import layout as layouts
import places
import pytest
import release
import sbom
from appliance import given, images
from steps import Failure

MIB = 1 << 20
# What scripts/image reads of a checkout, and cargo where it is asked for the crates of a release.
PARTS = ("scripts", "board", "rootfs-overlay", "app", "Cargo.toml", "Cargo.lock")


@pytest.fixture(scope="module")
def made(board, inferctl, tmp_path_factory):
    """A release of a small image: its folder, and the image itself."""
    given.skip_for_another_builder("what scripts/image --release makes, byte for byte")
    folder = tmp_path_factory.mktemp("release")
    image = tmp_path_factory.mktemp("image") / "x.img"
    facts = images.assemble(board, image, minimal=True, system=("inferd-os", 5), squeeze=images.SHIPPED)
    key = folder / "release.key"
    subprocess.run([inferctl, "keygen", key], check=True, capture_output=True)
    release.make(image, folder, key, inferctl, sbom=sbom.make(facts, board))
    return folder, image


@pytest.fixture
def scratch(tmp_path):
    """A folder for images that are not kept when the test has ended."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def test_an_image_made_elsewhere_at_another_time_by_another_user_in_another_order_is_the_same(made, board, inferctl, scratch):
    folder, image = made
    checkout = scratch / "another checkout"
    for part in PARTS:
        copy_backwards(places.ROOT / part, checkout / part)
    output, again = scratch / "deeper" / "down" / "x.img", scratch / "again"
    command = [sys.executable, "-B", checkout / "scripts/lib/image.py", "--board", board.name, "--minimal", "-o", output]
    command += ["--inferd", images.daemon(board), "--no-default-model", "--model", checkout / "app/inferd/models/imu-motion", "--system-version", "5"]
    cargo = os.environ.get("CARGO_HOME", str(Path.home() / ".cargo"))
    subprocess.run(
        ["sh", "-c", 'umask 077; exec "$@"', "image", *command, "--release", again],
        env=dict(os.environ) | {"TZ": "Asia/Kathmandu", "LC_ALL": "C", "LANG": "tr_TR.UTF-8", "INFERD_BUILD_ID": images.BUILD_ID}
        | {"SOURCE_DATE_EPOCH": str(images.EPOCH), "INFERD_CACHE": str(places.cache()), "HOME": str(scratch)}
        | {"CARGO_HOME": cargo, "RUSTUP_HOME": os.environ.get("RUSTUP_HOME", str(Path.home() / ".rustup"))},
        cwd=scratch, check=True, capture_output=True,
    )
    assert difference(image, output) is None
    for file in ("x.img.zst", "x.img.bmap", "x.img.json", "x.img.cdx.json", "SHA256SUMS"):
        assert (again / file).read_bytes() == (folder / file).read_bytes(), file
    # The signature too: ed25519 has no random part.
    key = folder / "release.key"
    subprocess.run([inferctl, "sign", again / "SHA256SUMS", "--key", key], check=True, capture_output=True)
    assert (again / "SHA256SUMS.minisig").read_bytes() == (folder / "SHA256SUMS.minisig").read_bytes()


def copy_backwards(source, target):
    """Copies a folder so that the file system lists it in another order; times are those of the copy."""
    if source.is_symlink():
        target.symlink_to(source.readlink())
    elif source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(source.iterdir(), reverse=True):
            if path.name != "__pycache__":
                copy_backwards(path, target / path.name)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(source.stat().st_mode)


def difference(first, second):
    """Where two images differ first, in words: the partition, the place in it, and the bytes there; None where they do not."""
    with open(first, "rb") as one, open(second, "rb") as two:
        at = 0
        while True:
            left, right = one.read(MIB), two.read(MIB)
            if left != right:
                break
            if not left:
                return None
            at += len(left)
    inside = next((n for n, (a, b) in enumerate(zip(left, right)) if a != b), min(len(left), len(right)))
    place = at + inside
    if not left[inside:] or not right[inside:]:
        return f"one of them ends at byte {place}"
    parts = [part for part in layouts.read_gpt(first)[1] if part.offset <= place < part.offset + part.size]
    where = f"partition {parts[0].name}, byte {place - parts[0].offset}" if parts else f"outside of partitions, byte {place}"
    return f"{where}: {left[inside : inside + 16].hex(' ')} and {right[inside : inside + 16].hex(' ')}"


def test_what_differs_is_said_with_the_partitions_name(made, scratch):
    image, other = made[1], scratch / "other.img"
    shutil.copyfile(image, other)
    assert difference(image, other) is None
    data = next(part for part in layouts.read_gpt(image)[1] if part.name == "data")
    with open(other, "r+b") as file:
        file.seek(data.offset + 1029)
        file.write(b"\x99")
    said = difference(image, other)
    assert said.startswith("partition data, byte 1029: ") and " and 99 " in said
    os.truncate(other, data.offset + 5)
    assert difference(image, other) == f"one of them ends at byte {data.offset + 5}"


def test_the_checksums_are_those_that_sha256sum_checks_and_minisign_believes_them(made):
    folder, _ = made
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True, capture_output=True)
    named = [line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]
    assert named == ["x.img.bmap", "x.img.cdx.json", "x.img.json", "x.img.zst"]
    minisign = hosttools.Tools(["minisign"]).path("minisign")
    verify = [minisign, "-Vm", folder / "SHA256SUMS", "-p", folder / "minisign.pub"]
    subprocess.run(verify, check=True, capture_output=True)


def test_bmaptool_takes_the_map_and_copies_all_that_means_something(made, board, scratch):
    folder, image = made
    card = scratch / "card"
    used_card(card, image)
    tree = hosttools.Tools(["bmap-tools"]).tree / "usr"
    programs = hosttools.Tools(["zstd"]).path("zstd").parent
    environment = dict(os.environ) | {"PYTHONPATH": str(tree / "lib/python3/dist-packages")}
    environment["PATH"] = f"{programs}:{environment['PATH']}"
    subprocess.run(
        [sys.executable, tree / "bin/bmaptool", "copy", "--bmap", folder / "x.img.bmap", folder / "x.img.zst", card],
        env=environment, check=True, capture_output=True,
    )
    whole(card, image)


def test_a_used_card_is_a_good_system_though_only_the_map_was_written(made, inferctl, scratch):
    folder, image = made
    card = scratch / "card"
    used_card(card, image)
    command = [inferctl, "--json", "flash", folder / "x.img.zst", card, "--file", "--yes", "--pub", folder / "release.pub"]
    said = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert said["bmap"] and said["signature"] and said["checksum"] == "SHA256SUMS"
    assert said["written_bytes"] < image.stat().st_size * 2 / 3
    whole(card, image)


def used_card(card, image):
    """A card of the image's size, full of something else."""
    with open(card, "wb") as file:
        for _ in range(image.stat().st_size // MIB + 1):
            file.write(b"\xa5" * MIB)


def whole(card, image):
    """Everything that is read of a card is the image's: the table, file systems to their last block, roots as far as they go, and the
    beginning of what is empty."""
    disk, parts = layouts.read_gpt(image)
    with open(card, "rb") as found, open(image, "rb") as meant:
        for part in parts:
            found.seek(part.offset)
            meant.seek(part.offset)
            same = common(found, meant, part.size)
            content = image_content(meant, part)
            assert same >= max(content, MIB), f"{part.name} differs from byte {same} on"
        first = parts[0].offset
        found.seek(0)
        meant.seek(0)
        assert found.read(first) == meant.read(first), "the partition table"
        end = parts[-1].offset + parts[-1].size
        found.seek(end)
        meant.seek(end)
        tail = meant.read()
        assert tail and found.read(len(tail)) == tail, f"the backup of the partition table of {disk}"


def common(one, two, most):
    """How many bytes are the same."""
    at = 0
    while at < most:
        left, right = one.read(min(MIB, most - at)), two.read(min(MIB, most - at))
        if left != right:
            return at + next(n for n, (a, b) in enumerate(zip(left, right)) if a != b)
        at += len(left)
    return at


def image_content(file, part):
    """How much of a partition its content takes: all of a file system that is written to, a squashfs by its own word."""
    file.seek(part.offset)
    head = file.read(MIB)
    if head[:4] == b"hsqs":
        return int.from_bytes(head[40:48], "little")
    return part.size if head[510:512] == b"\x55\xaa" or head[1080:1082] == b"\x53\xef" else 0


def test_a_key_without_a_release_is_refused():
    assert "--release-key signs" in refused("--release-key", "x")


def test_an_image_with_a_root_shell_is_not_released():
    assert "it is not released" in refused("--dev", "--release", "x")


def test_an_image_that_no_board_starts_from_is_not_written_unasked(scratch, inferctl):
    image, card = scratch / "x.img", scratch / "card"
    # It begins as a disk does.
    image.write_bytes(b"new" * 170 + b"\x55\xaa" + b"new" * MIB)
    card.write_bytes(b"used" * MIB)
    facts = {"board": "rpi4", "startable": False, "missing": ["start4.elf for boot-a and boot-b"]}
    (scratch / "x.img.json").write_text(json.dumps(facts))
    command = [places.ROOT / "scripts/flash", "--board", "rpi4", "--image", image, card, "--file", "--yes"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode != 0 and "it lacks start4.elf" in done.stdout and card.read_bytes() == b"used" * MIB
    (scratch / "x.img.json").write_text(json.dumps(facts | {"startable": True, "dev": True}))
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True)
    assert "a dev image, with a root shell" in done.stdout and card.read_bytes().startswith(b"newnew")


def refused(*arguments):
    """What scripts/image says to arguments that it refuses."""
    command = [sys.executable, "-B", places.ROOT / "scripts/lib/image.py", "--board", "qemu-aarch64", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    return done.stdout + done.stderr


@pytest.fixture
def released(scratch, inferctl, monkeypatch):
    """`released(name)` puts a release of a made-up image into one folder: `key=False` for one that is not signed. Gives the folder."""
    monkeypatch.setattr(release, "bmap", lambda image: f"map of {image.name}\n")
    for name in ("release", "another"):
        subprocess.run([inferctl, "keygen", scratch / f"{name}.key"], check=True, capture_output=True)

    def put(name, key="release", **facts):
        image = scratch / f"{name}.img"
        image.write_text(f"content of {name}")
        (scratch / f"{name}.img.json").write_text(json.dumps({"dev": False, "startable": True, "missing": [], **facts}))
        release.make(image, scratch / "out", key and scratch / f"{key}.key", inferctl)
        return scratch / "out"

    return put


@pytest.mark.parametrize(
    ("facts", "says"),
    [({"dev": True}, "root shell"), ({"startable": False, "missing": ["start4.elf for boot-a"]}, "does not start as it is .*start4.elf")],
)
def test_what_is_nothing_to_ship_is_not_released(released, scratch, facts, says):
    with pytest.raises(Failure, match=says):
        released("a", **facts)
    assert not (scratch / "out").exists()


@pytest.mark.parametrize(("text", "says"), [("{bad", "is no JSON"), ("[]", "does not say what an image is"), ('{"dev": false, "startable": true}', "judged by: missing")])
def test_a_damaged_word_about_an_image_is_said(scratch, text, says):
    (scratch / "a.img").write_text("content of a")
    (scratch / "a.img.json").write_text(text)
    with pytest.raises(Failure, match=says):
        release.make(scratch / "a.img", scratch / "out")
    assert not (scratch / "out").exists()


@pytest.mark.parametrize("key", ["release", None])
def test_one_list_is_of_every_release_in_the_folder(released, inferctl, scratch, key):
    released("a", key)
    folder = released("b", key)
    (folder / "notes.txt").write_text("nobody's")
    folder = released("a", key)
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    files = [f"{name}.img.{kind}" for name in "ab" for kind in ("bmap", "json", "zst")]
    assert lines == [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}" for name in files]
    rest = {"SHA256SUMS.minisig", "minisign.pub"} if key else set()
    assert {path.name for path in folder.iterdir()} == {*files, "SHA256SUMS", "notes.txt", *rest}, "and nothing half made"
    if key:
        subprocess.run([inferctl, "verify", folder / "SHA256SUMS", "--pub", scratch / "release.pub"], check=True, capture_output=True)


def test_nothing_gets_into_a_signed_list_that_was_not_signed_as_it_is(released):
    folder = released("a")
    before = (folder / "SHA256SUMS").read_bytes(), (folder / "SHA256SUMS.minisig").read_bytes()
    with pytest.raises(Failure, match="is signed; a release without --release-key"):
        released("b", key=None)
    with pytest.raises(Failure, match="not this key's signature"):
        released("b", key="another")
    (folder / "a.img.json").write_text("{}")
    with pytest.raises(Failure, match="a.img.json is not what .*SHA256SUMS says"):
        released("b")
    (folder / "SHA256SUMS").write_text(release.line_of(folder / "a.img.json"))
    with pytest.raises(Failure, match="not this key's signature"):
        released("b")
    assert not list(folder.glob("b.*")) and (folder / "SHA256SUMS.minisig").read_bytes() == before[1]
    (folder / "SHA256SUMS").write_bytes(before[0])
    assert released("a"), "its own release may be made anew"


def test_a_release_that_nobody_signed_is_not_signed_beside_another_one(released):
    released("a", key=None)
    with pytest.raises(Failure, match="nobody has signed .*a.img.bmap"):
        released("b")


def test_a_packed_image_has_its_name_only_when_it_is_whole(released, scratch, monkeypatch):
    folder = released("a")
    before = (folder / "a.img.zst").read_bytes()

    def full(command, **_):
        Path(command[command.index("-o") + 1]).write_bytes(before[:5])
        raise Failure("no space left on the disk")

    monkeypatch.setattr(release, "run", full)
    with pytest.raises(Failure, match="no space left"):
        release.pack(scratch / "a.img", folder / "a.img.zst")
    assert (folder / "a.img.zst").read_bytes() == before


def test_the_bill_of_materials_names_every_crate_and_package_with_where_it_is_from(board):
    facts = {"minimal": False, "onnxruntime": "1.2", "packages": {"busybox-static": "1:1.37.0-6+b3"}, "build": "b7", "sha256": "0" * 64}
    page = json.loads(sbom.make(facts, board))
    assert (page["bomFormat"], page["specVersion"], page["version"]) == ("CycloneDX", "1.6", 1)
    assert not page.keys() & {"serialNumber"} and "timestamp" not in page["metadata"], "the same bytes for the same image"
    image = page["metadata"]["component"]
    assert image["type"] == "firmware" and board.name in image["name"] and image["version"] == "b7"
    parts = {part["bom-ref"]: part for part in page["components"]}
    assert len(parts) == len(page["components"]) and all(part["purl"] == ref for ref, part in parts.items())
    for part in parts.values():
        assert part.keys() <= {"type", "bom-ref", "name", "version", "purl", "licenses", "hashes"} and part["type"] == "library"
        assert all(hash["alg"] == "SHA-256" and len(hash["content"]) == 64 for hash in part.get("hashes", []))
    assert f"pkg:deb/debian/busybox-static@1%3A1.37.0-6%2Bb3?arch={board.debian.architecture}" in parts
    assert parts["pkg:pypi/onnxruntime@1.2"]["licenses"] == [{"expression": "MIT"}]
    lock = {(p["name"], p["version"]): p for p in tomllib.loads((places.ROOT / "Cargo.lock").read_text())["package"]}
    crates = {ref: part for ref, part in parts.items() if ref.startswith("pkg:cargo/")}
    for ref, part in crates.items():
        assert part["licenses"] and ref == f"pkg:cargo/{part['name']}@{part['version']}".replace("+", "%2B")
        known = lock[part["name"], part["version"]].get("checksum")
        assert [hash["content"] for hash in part.get("hashes", [])] == ([known] if known else [])
    names = {part["name"] for part in crates.values()}
    assert names >= {"inferd", "inferd-engine-host", "tokio", "rustls", "ort"} and not names & {"serde_derive", "thiserror-impl", "inferctl", "cc"}
    edges = {edge["ref"]: edge["dependsOn"] for edge in page["dependencies"]}
    assert edges.keys() == crates.keys() | {"image"} and all(set(to) <= parts.keys() for to in edges.values())
    reached, left = set(), ["image"]
    while left:
        left += [to for to in edges.get(left.pop(), []) if to not in reached and not reached.add(to)]
    assert reached == parts.keys(), "nothing is there that nobody needs"
    small = json.loads(sbom.make(facts | {"minimal": True, "onnxruntime": None}, board))["components"]
    assert not {part["name"] for part in small} & {"inferd-engine-host", "ort", "onnxruntime"}


@pytest.mark.parametrize(("licence", "said"), [("MIT/Apache-2.0", {"expression": "MIT OR Apache-2.0"}), ("(MIT OR Apache-2.0) AND BSD-3-Clause", {"expression": "(MIT OR Apache-2.0) AND BSD-3-Clause"}), ("see the file", {"license": {"name": "see the file"}})])
def test_a_licence_is_an_expression_or_a_name(licence, said):
    assert sbom.component("pkg:cargo/x@1", "x", "1", licence)["licenses"] == [said]


@pytest.mark.parametrize(("file", "name"), [("rpi4.img", "rpi4"), ("inferd-image-raspberrypi4-64.wic", "inferd-image-raspberrypi4-64")])
def test_an_image_of_another_builder_is_released_as_its_json_says_and_can_be_flashed(scratch, inferctl, file, name):
    image, folder, key = small_disk(scratch / file), scratch / "out", scratch / "release.key"
    subprocess.run([inferctl, "keygen", key], check=True, capture_output=True)

    def finished(*options):
        command = [sys.executable, "-B", places.ROOT / "scripts/lib/release.py", image, folder, "--key", key, *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    missing = finished()
    assert missing.returncode and f"{file}.json is not there" in missing.stdout + missing.stderr
    facts = {"board": "rpi4", "dev": False, "startable": True, "missing": [], "sha256": hashlib.sha256(image.read_bytes()).hexdigest()}
    beside = scratch / f"{file}.json"
    beside.write_text(json.dumps(facts | {"sha256": "0" * 64}))
    other = finished()
    assert other.returncode and f"is not the image that {file}.json tells of" in other.stdout + other.stderr and not folder.exists()
    beside.write_text(json.dumps(facts))
    done = finished()
    assert done.returncode == 0, done.stdout + done.stderr
    files = {f"{name}.img.{kind}" for kind in ("zst", "bmap", "json")}
    assert {path.name for path in folder.iterdir()} == files | {"SHA256SUMS", "SHA256SUMS.minisig", "minisign.pub"}
    card = scratch / "card"
    card.write_bytes(bytes(image.stat().st_size))
    command = [inferctl, "--json", "flash", folder / f"{name}.img.zst", card, "--file", "--yes", "--board", "rpi4", "--pub", scratch / "release.pub"]
    said = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert said["bmap"] and said["signature"] and said["checksum"] == "SHA256SUMS"
    used = MIB + len(CONTENT)
    assert card.read_bytes()[:used] == image.read_bytes()[:used] and image.read_bytes()[MIB:used] == CONTENT
    assert finished("--name", "door").returncode == 0 and (folder / "door.img.zst").exists(), "several share a folder"


CONTENT = b"content of a root filesystem " * 9999


def small_disk(file):
    """An image with one partition."""
    tools = hosttools.Tools(hosttools.IMAGE)
    settings, root = file.with_name("genimage.cfg"), file.with_name("root")
    root.mkdir()
    file.with_name("content").write_bytes(CONTENT)
    settings.write_text(f'image {file.name} {{\n hdimage {{\n partition-table-type = "gpt"\n align = 1M\n }}\n partition rootfs-a {{ image = "content"\n size = 2M }}\n}}\n')
    where = ["--config", settings, "--inputpath", file.parent, "--outputpath", file.parent, "--rootpath", root, "--tmppath", file.with_name("tmp")]
    subprocess.run([tools.path("genimage"), *where], check=True, capture_output=True)
    return file
