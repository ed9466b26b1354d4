"""An image on a card: what is written, what is not, and what is never written to."""

import contextlib
import hashlib
import json
import lzma
import os
import pty
import signal
import subprocess
import threading
import tomllib

import pytest
from flash.conftest import BLOCK, MIB, beginning, bmap, disk, gpt_image, noise
from helpers import until


def test_an_image_is_on_the_card_as_it_is_and_the_rest_of_the_card_is_left(flash, image, card):
    code, said = flash(image, card, "--file", "--yes")
    size = image.stat().st_size
    assert code == 0 and said["flashed"] and said["verified"] and said["written_bytes"] == size == said["image_bytes"]
    assert beginning(card, size) == image.read_bytes()
    rest = card.read_bytes()[size:]
    marks = [MIB * n - size for n in (4,)] + [len(rest) - BLOCK]  # of the probe for a false size
    for at in marks:
        rest = rest[:at] + b"\xee" * BLOCK + rest[at + BLOCK :]
    assert rest == b"\xee" * len(rest)


def test_a_packed_image_lands_on_a_block_device_with_the_rates_it_was_written_at(flash, image, card, loop, zstd):
    packed = zstd(image)
    content = image.read_bytes()
    image.unlink()
    device = loop(card)
    code, said = flash(packed, device, "--file", "--yes")
    assert code == 0, said
    assert said["written_bytes"] == len(content) and said["device"] == str(device)
    for what in ("write", "verify"):
        assert said[f"{what}_bytes_per_second"] == pytest.approx(len(content) / said[f"{what}_seconds"], rel=0.01)
    assert beginning(device, len(content)) == content == beginning(card, len(content))


def test_of_an_image_with_a_block_map_only_what_it_maps_is_written(flash, image, card):
    content = image.read_bytes()
    ranges = [(1, 5), (300, 300), (700, 768)]  # the last block is cut short by the image's end
    map_file = image.with_name("x.img.bmap")
    map_file.write_text(bmap(len(content), ranges, lambda at, length: content[at : at + length]))
    code, said = flash(image, card, "--file", "--yes")
    assert code == 0 and said["bmap"]
    assert said["written_bytes"] == 5 * BLOCK + BLOCK + 68 * BLOCK + 512
    found = card.read_bytes()
    for first, last in ranges:
        assert found[first * BLOCK : (last + 1) * BLOCK][: len(content) - first * BLOCK] == content[first * BLOCK : (last + 1) * BLOCK]
    assert found[6 * BLOCK : 256 * BLOCK] == b"\xee" * (250 * BLOCK)
    code, said = flash(image, card, "--file", "--yes", "--no-bmap")
    assert code == 0 and said["written_bytes"] == len(content) and beginning(card, len(content)) == content


def test_a_huge_image_with_holes_is_not_read_where_its_map_has_nothing(inferctl, tmp_path):
    size, ends = 1 << 40, [(0, 255), ((1 << 28) - 256, (1 << 28) - 1)]
    image, card = tmp_path / "huge.img", tmp_path / "card"
    for file in (image, card):
        file.touch()
        os.truncate(file, size)
    with open(image, "r+b") as opened:
        for first, last in ends:
            opened.seek(first * BLOCK)
            opened.write(disk((last + 1 - first) * BLOCK, first))
    image.with_name("huge.img.bmap").write_text(bmap(size, ends, lambda at, length: part(image, at, length)))
    # Reading a TiB, holes or not, takes minutes of a processor.
    limited = 'ulimit -t 30; exec "$@"'
    command = ["sh", "-c", limited, "flash", inferctl.program, "--json", "flash", image, card, "--file", "--yes"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["written_bytes"] == 2 * MIB
    assert card.stat().st_blocks * 512 < 4 * MIB
    for first, last in ends:
        assert part(card, first * BLOCK, MIB) == disk(MIB, first), f"blocks {first} to {last}"


def part(file, at, length):
    """Some of a file's bytes."""
    with open(file, "rb") as opened:
        opened.seek(at)
        return opened.read(length)


@pytest.mark.parametrize("damage", ["checksum", "bmap", "map of another", "cut", "json"])
def test_a_damaged_image_is_refused(flash, image, card, zstd, damage):
    before = card.read_bytes()
    file, touched = image, False
    match damage:
        case "checksum":
            image.with_name("SHA256SUMS").write_text(f"{'0' * 64}  x.img\n")
        case "json":
            image.with_name("x.img.json").write_text(json.dumps({"board": "rpi4", "sha256": "0" * 64}))
            damage = "checksum"
        case "bmap":
            content = image.read_bytes()
            text = bmap(len(content), [(0, 9)], lambda at, length: content[at : at + length])
            image.with_name("x.img.bmap").write_text(text.replace("0-9", "0-8"))
        case "map of another":
            # A map that is good in itself, but not the one of the list.
            image.with_name("x.img.bmap").write_text(bmap(image.stat().st_size, [(0, 0)], lambda at, length: bytes(length)))
            image.with_name("SHA256SUMS").write_text(f"{'0' * 64}  x.img.bmap\n")
            damage = "checksum"
        case "cut":
            file, damage = zstd(image), "not-zstd"
            os.truncate(file, file.stat().st_size // 2)
    code, said = flash(file, card, "--file", "--yes")
    assert (code, said["code"], said["touched"]) == (1, damage, touched)
    assert card.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.img.sha256", "garbage\n"),
        ("x.img.sha256", f"{'0' * 64}  other.img\n"),
        ("SHA256SUMS", "00  x.img\n"),
        ("x.img.json", '{"sha256":"00"}'),
        ("x.img.json", '{"board":'),
    ],
)
def test_what_lies_beside_an_image_and_says_nothing_of_it_is_not_taken_for_nothing(flash, image, card, name, text):
    before = card.read_bytes()
    image.with_name(name).write_text(text)
    code, said = flash(image, card, "--file", "--yes")
    assert (code, said["code"], said["touched"]) == (1, "checksum", False) and name in said["error"], said
    assert card.read_bytes() == before
    # As `sha256sum ./x.img` writes it.
    image.with_name(name).unlink()
    image.with_name("x.img.sha256").write_text(f"{hashlib.sha256(image.read_bytes()).hexdigest()}  ./x.img\n")
    code, said = flash(image, card, "--file", "--yes")
    assert code == 0 and said["checksum"] == "x.img.sha256", said


def test_a_file_of_keys_that_holds_something_else_is_not_shown(flash, image, card, tmp_path):
    (other := tmp_path / "inferd.toml").write_text('[security]\nadmin_keys = ["0123456789abcdef"]\n')
    code, said = flash(image, card, "--file", "--yes", "--ssh-key", other)
    assert (code, said["touched"]) == (1, False) and "inferd.toml" in said["error"] and "0123456789abcdef" not in said["error"], said


def test_an_image_that_is_not_what_its_map_says_leaves_a_card_that_is_said_to_be_unusable(flash, image, card):
    content = image.read_bytes()
    image.with_name("x.img.bmap").write_text(bmap(len(content), [(0, 700)], lambda at, length: bytes(length)))
    code, said = flash(image, card, "--file", "--yes")
    assert (code, said["code"], said["touched"]) == (4, "bmap", True)
    assert "x.img.bmap" in said["error"] and "incomplete" in said["error"] and "--no-bmap" not in said["error"]


def test_a_packed_image_that_was_damaged_is_told_from_its_own_checksum_before_the_card_is_begun(flash, image, card, zstd):
    packed, before = zstd(image), card.read_bytes()
    with open(packed, "r+b") as opened:
        # Noise is not packed: what is changed is a byte of the image, and the frame stays one.
        opened.seek(MIB)
        opened.write(b"XXXX")
    code, said = flash(packed, card, "--file", "--yes")
    assert (code, said["code"], said["touched"]) == (1, "not-zstd", False) and "checksum" in said["error"]
    assert said["error"].endswith("nothing was written") and card.read_bytes() == before


def test_what_is_no_image_of_a_disk_is_not_written(flash, card, tmp_path, tools):
    before = card.read_bytes()
    settings, cut, packed, pipe = (tmp_path / name for name in ("inferd.toml", "cut.img", "x.img.xz", "pipe"))
    settings.write_text('[device]\nhostname = "x"\n' * 100)
    whole, _ = gpt_image(tmp_path / "x.img", tools)
    cut.write_bytes(whole.read_bytes()[:-512])
    packed.write_bytes(lzma.compress(whole.read_bytes(), preset=0))
    os.mkfifo(pipe)
    for file, why in ((settings, "table of partitions"), (cut, "it was cut"), (packed, "packed by xz"), (pipe, "save it to one")):
        code, said = flash(file, card, "--file", "--yes")
        assert (code, said["touched"]) == (1, False) and why in said["error"], said
        assert said["code"] == ("unreadable" if file == pipe else "not-an-image")
    assert card.read_bytes() == before
    assert flash(whole, card, "--file", "--yes")[0] == 0


def test_an_interrupt_says_that_the_card_is_incomplete(inferctl, image, card):
    # Long enough to be still written then.
    os.truncate(image, 2 << 30)
    os.truncate(card, 2 << 30)
    command = [inferctl.program, "flash", image, card, "--file", "--yes"]
    before = card.stat().st_mtime_ns
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: card.stat().st_mtime_ns != before, "it writes")
    running.send_signal(signal.SIGINT)
    _, said = running.communicate()
    assert running.returncode == 4 and "SIGINT" in said and "incomplete: flash it again" in said, said


def test_a_card_that_is_too_small_by_a_byte_is_refused(flash, image, card):
    os.truncate(card, image.stat().st_size - 1)
    before = card.read_bytes()
    code, said = flash(image, card, "--file", "--yes")
    assert (code, said["code"]) == (1, "too-small") and str(image.stat().st_size) in said["error"]
    assert card.read_bytes() == before
    os.truncate(card, image.stat().st_size)
    assert flash(image, card, "--file", "--yes")[0] == 0


def test_another_boards_image_is_refused_and_so_is_one_that_does_not_say(flash, image, card):
    before = card.read_bytes()
    assert flash(image, card, "--file", "--yes", "--board", "rpi4")[1]["code"] == "wrong-board"
    image.with_name("x.img.json").write_text(json.dumps({"board": "rpi5-hailo8"}))
    code, said = flash(image, card, "--file", "--yes", "--board", "rpi4")
    assert (code, said["code"]) == (1, "wrong-board") and "rpi5-hailo8, not for rpi4" in said["error"]
    assert card.read_bytes() == before
    assert flash(image, card, "--file", "--yes", "--board", "rpi5-hailo8")[0] == 0


def test_nothing_is_written_to_what_nobody_confirmed(flash, inferctl, image, card):
    before = card.read_bytes()
    code, said = flash(image, card, "--file")
    assert (code, said["code"]) == (1, "not-confirmed") and "--yes" in said["error"]
    assert answered(inferctl, "no", image, card, "--file") == 1
    assert card.read_bytes() == before
    assert answered(inferctl, "yes", image, card, "--file") == 0
    assert beginning(card, 3 * MIB) == beginning(image, 3 * MIB)


def test_a_device_that_became_another_one_while_the_question_stood_is_not_written_to(inferctl, image, card, loop, tmp_path):
    device = loop(card)
    other = tmp_path / "other"
    other.write_bytes(b"\xdd" * (9 * MIB))

    def swap():
        subprocess.run(["losetup", "--detach", device], check=True)
        # What still looks at the device keeps it a while longer.
        taken = ["losetup", device, other]
        try:
            until(lambda: subprocess.run(taken, capture_output=True, check=False).returncode == 0, "the device is free")
        except AssertionError:
            pytest.skip(f"something else keeps {device}")

    before = card.read_bytes()
    assert answered(inferctl, "yes", image, device, "--file", then=swap) == 1
    assert card.read_bytes() == before and other.read_bytes() == b"\xdd" * (9 * MIB)


def answered(inferctl, answer, *arguments, then=lambda: None):
    """Runs `inferctl flash` in a terminal, does `then` when it asks, and answers; the exit code. It is killed when it does not end."""
    terminal, inside = pty.openpty()
    with subprocess.Popen([inferctl.program, "flash", *arguments], stdin=inside, stdout=inside, stderr=inside) as process:
        os.close(inside)
        bound = threading.Timer(300, process.kill)
        bound.start()
        try:
            said = b""
            while b"Type yes: " not in said:
                said += os.read(terminal, 4096)  # raises when the other end is closed
            then()
            os.write(terminal, answer.encode() + b"\n")
            with contextlib.suppress(OSError):
                while os.read(terminal, 4096):
                    pass
        except BaseException:
            process.kill()
            raise
        finally:
            process.wait()
            bound.cancel()
            os.close(terminal)
    return process.returncode


def test_a_write_protected_card_is_refused(flash, image, card, loop):
    code, said = flash(image, loop(card, "-r"), "--file", "--yes")
    assert (code, said["code"]) == (1, "write-protected") and "switch" in said["error"]


def test_a_loop_device_is_only_taken_where_it_is_meant(flash, image, card, loop):
    assert flash(image, loop(card), "--yes")[1]["code"] == "not-a-disk"


def test_a_mounted_card_is_refused_until_it_may_be_unmounted(flash, image, card, loop, mounted, place, tools):
    subprocess.run([tools("mkfs.ext4"), "-q", "-F", card], check=True)
    device = loop(card)
    folder = mounted(device, place / "a folder")
    code, said = flash(image, device, "--file", "--yes")
    assert (code, said["code"]) == (1, "mounted") and str(folder) in said["error"] and "--unmount" in said["error"]
    assert os.path.ismount(folder)
    code, said = flash(image, device, "--file", "--yes", "--unmount")
    assert code == 0, said
    assert not os.path.ismount(folder) and beginning(device, 3 * MIB) == beginning(image, 3 * MIB)


def test_a_card_is_unmounted_as_often_as_it_is_mounted_and_nothing_else_with_it(flash, image, card, loop, mounted, place, tools):
    subprocess.run([tools("mkfs.ext4"), "-q", "-F", card], check=True)
    device = loop(card)
    folder = mounted(device, place / "card")
    mounted("none", folder, "-t", "tmpfs")
    (folder / "somebody's").touch()
    code, said = flash(image, device, "--file", "--yes", "--unmount")
    assert (code, said["code"]) == (1, "mounted") and "over it" in said["error"]
    assert (folder / "somebody's").exists() and beginning(card, BLOCK) != beginning(image, BLOCK)
    subprocess.run(["umount", folder], check=True)
    mounted(folder, folder, "--bind")
    code, said = flash(image, device, "--file", "--yes", "--unmount")
    assert code == 0, said
    assert not os.path.ismount(folder)


def test_an_image_is_not_written_onto_itself(flash, image, loop):
    before = image.read_bytes()
    second = image.with_name("second name")
    second.hardlink_to(image)
    for target in (image, second):
        code, said = flash(image, target, "--file", "--yes")
        assert (code, said["code"], said["touched"]) == (1, "image-itself", False)
    code, said = flash(image, loop(image), "--file", "--yes")
    assert (code, said["code"], said["touched"]) == (1, "image-itself", False)
    assert image.read_bytes() == before


def test_a_card_that_something_else_is_made_of_is_refused(flash, image, card, loop):
    device = loop(card)
    above = loop(device)
    code, said = flash(image, device, "--file", "--yes")
    assert (code, said["code"]) == (1, "in-use") and above.name in said["error"]


def test_the_disk_that_the_system_runs_from_is_refused(flash, tmp_path):
    number = os.stat("/").st_dev
    path = f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"
    if not os.path.exists(path):
        pytest.skip("/ lies on no block device here")
    real = os.path.realpath(path)
    whole = os.path.dirname(real) if os.path.exists(f"{real}/partition") else real
    device = f"/dev/{os.path.basename(whole)}"
    if not os.path.exists(device):
        pytest.skip(f"there is no {device} here")
    # Larger than the disk: if the code were wrong, that would be the next reason, and this machine would still be there.
    with open(f"{whole}/size", encoding="ascii") as sectors:
        size = int(sectors.read()) * 512
    image = tmp_path / "large.img"
    image.write_bytes(disk(MIB))
    os.truncate(image, size + MIB)
    code, said = flash(image, device, "--yes", "--file", "--unmount")
    assert code == 1 and said["code"] in ("system-disk", "in-use") and not said["touched"]


def test_a_card_that_is_pulled_out_is_said_to_be_incomplete_and_what_to_do(flash, image, loop, mounted, tmp_path):
    # A card of 8 MiB whose medium has room for two: what comes then ends in EIO.
    small = mounted("none", tmp_path / "small", "-t", "tmpfs", "-o", "size=2m")
    card = small / "card"
    card.touch()
    os.truncate(card, 8 * MIB)
    code, said = flash(image, loop(card), "--file", "--yes")
    assert (code, said["code"], said["touched"]) == (4, "medium-failed", True)
    assert "at byte" in said["error"] and "flash it again" in said["error"]


def test_without_a_removable_medium_it_says_so_and_lists_what_there_is(flash, inferctl, image):
    disks = json.loads(inferctl("--json", "flash", "--list").stdout)
    assert all(not disk["offered"] for disk in disks if disk["use"] == "system")
    if any(disk["offered"] for disk in disks):
        pytest.skip("a removable medium is in this machine")
    # Never --yes here: a medium that was put in meanwhile is only asked about, and nobody answers.
    code, said = flash(image)
    assert (code, said["code"]) == (1, "no-medium")


def test_a_configuration_is_on_the_boot_partition_and_one_that_is_none_is_refused_before_a_byte(flash, card, tmp_path, tools, zstd):
    image, at = gpt_image(tmp_path / "x.img", tools)
    config = tmp_path / "my settings.toml"
    before = card.read_bytes()
    config.write_text('[device\nhostname = "x"\n')
    code, said = flash(image, card, "--file", "--yes", "--provision", config)
    assert (code, said["code"], said["touched"]) == (1, "provision", False) and card.read_bytes() == before
    config.write_text('[device]\nhostname = "collar"\n')
    for _ in range(2):
        code, said = flash(image, card, "--file", "--yes", "--provision", config)
        assert code == 0 and said["provisioned"], said
        read = [tools("mtype"), "-i", f"{card}@@{at}", "::inferd.toml"]
        assert subprocess.run(read, check=True, capture_output=True).stdout == config.read_bytes()
    # What is typed beside it stands on the card too; of a key only its digest, and none that was only in the environment.
    typed = ("--hostname", "sleeve", "--api-key", "0123456789abcdef")
    assert flash(image, card, "--file", "--yes", *typed, env={"INFERD_API_KEY": "fedcba9876543210"})[0] == 0
    on_card = tomllib.loads(subprocess.run(read, check=True, capture_output=True, text=True).stdout)
    assert on_card["device"] == {"hostname": "sleeve"}
    assert on_card["security"] == {"api_key": f"sha256:{hashlib.sha256(b'0123456789abcdef').hexdigest()}"}
    assert not flash(image, card, "--file", "--yes", env={"INFERD_API_KEY": "fedcba9876543210"})[1]["provisioned"]
    # An image without a FAT for it cannot take one, nor one without room there, and both are told beforehand.
    before = card.read_bytes()
    plain = tmp_path / "plain.img"
    plain.write_bytes(disk(MIB))
    full = tmp_path / "full"
    full.write_bytes(noise(4 * MIB - 40 * BLOCK))
    subprocess.run([tools("mcopy"), "-i", f"{image}@@{at}", full, "::full"], check=True)
    config.write_text('[device]\nhostname = "collar"\n' + "# and much more\n" * 16000)
    for file in (plain, image, zstd(image)):
        code, said = flash(file, card, "--file", "--yes", "--provision", config)
        assert (code, said["code"], said["touched"]) == (1, "provision", False), said
    assert card.read_bytes() == before
