"""Signatures of releases: minisign's own program believes ours, and we believe its."""

import hashlib
import subprocess

import pytest
from flash.conftest import bmap


@pytest.fixture
def key(inferctl, tmp_path):
    """A key pair of inferctl."""
    assert inferctl("keygen", tmp_path / "release.key").returncode == 0
    return tmp_path / "release.key"


def test_minisign_believes_a_signature_of_ours_and_finds_a_changed_file(inferctl, tools, key, tmp_path):
    file, public = tmp_path / "SHA256SUMS", tmp_path / "minisign.pub"
    file.write_text("a list\n")
    done = inferctl("sign", file, "--key", key, "--write-pub", public, "--comment", "inferd 1.2")
    assert done.returncode == 0, done.stderr
    verify = [tools("minisign"), "-V", "-m", file, "-p", public]
    checked = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert checked.returncode == 0 and "inferd 1.2" in checked.stdout, checked.stderr
    line = done.stdout.rsplit("-P ", 1)[1].strip()
    assert subprocess.run([tools("minisign"), "-Vm", file, "-P", line], capture_output=True, check=False).returncode == 0
    file.write_text("a changed list\n")
    assert subprocess.run(verify, capture_output=True, check=False).returncode != 0
    assert inferctl("verify", file, "--pub", public).returncode == 1


def test_we_believe_a_signature_of_minisign_and_no_other_key(inferctl, tools, key, tmp_path):
    file, public, secret = tmp_path / "x", tmp_path / "m.pub", tmp_path / "m.key"
    file.write_bytes(b"x" * 3_000_000)
    subprocess.run([tools("minisign"), "-G", "-W", "-p", public, "-s", secret], check=True, capture_output=True)
    subprocess.run([tools("minisign"), "-S", "-s", secret, "-m", file], check=True, capture_output=True)
    assert inferctl("verify", file, "--pub", public).returncode == 0
    assert inferctl("verify", file, "--pub", key.with_suffix(".pub")).returncode == 1


def test_a_release_is_flashed_only_when_the_named_key_signed_all_that_is_used(inferctl, flash, image, card, key):
    public, sums = key.with_suffix(".pub"), image.with_name("SHA256SUMS")
    before = card.read_bytes()

    def attempt():
        return flash(image, card, "--file", "--yes", "--pub", public)

    assert attempt()[1]["code"] == "signature", "nothing is signed"
    sums.write_text(f"{hashlib.sha256(image.read_bytes()).hexdigest()}  x.img\n")
    inferctl("sign", sums, "--key", key)
    # A map that the signed list does not name could leave out what matters.
    map_file = image.with_name("x.img.bmap")
    content = image.read_bytes()
    map_file.write_text(bmap(len(content), [(0, 0)], lambda at, length: content[at : at + length]))
    assert attempt()[1]["code"] == "signature"
    map_file.unlink()
    assert card.read_bytes() == before
    code, said = attempt()
    assert code == 0 and said["signature"] and said["checksum"] == "SHA256SUMS"
    image.write_bytes(content[:-1] + b"\0")
    assert attempt()[1]["code"] == "checksum"


def test_what_lies_beside_a_signed_image_is_used_only_when_it_is_signed_too(inferctl, flash, image, card, key, zstd):
    public, sums = key.with_suffix(".pub"), image.with_name("SHA256SUMS")
    content, before = image.read_bytes(), card.read_bytes()
    packed = zstd(image)

    def refused(file, code="signature"):
        answer = flash(file, card, "--file", "--yes", "--board", "rpi4", "--pub", public)
        assert (answer[0], answer[1]["code"], answer[1]["touched"]) == (1, code, False), answer
        assert card.read_bytes() == before

    def stated(*files):
        sums.write_text("".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files))
        assert inferctl("sign", sums, "--key", key).returncode == 0

    facts, some = image.with_name("x.img.json"), bmap(len(content), [(0, 0)], lambda at, length: content[at : at + length])
    facts.write_text('{"board": "rpi4"}')
    # The second name that a map is looked for by.
    other_map = image.with_name("x.img.zst.bmap")
    stated(image, packed, facts)
    other_map.write_text(some)
    refused(packed)
    other_map.unlink()
    # An image that is signed itself says nothing of its map, nor of its board.
    map_file = image.with_name("x.img.bmap")
    map_file.write_text(some)
    assert inferctl("sign", image, "--key", key).returncode == 0
    refused(image)
    map_file.unlink()
    stated(image, packed)
    refused(image)
    # What the list names is what it says.
    stated(image, packed, facts)
    facts.write_text('{"board":  "rpi4"}')
    refused(image, "checksum")
    stated(image, packed, facts)
    assert flash(image, card, "--file", "--yes", "--board", "rpi4", "--pub", public)[0] == 0
