"""The medium of the power cuts: what was flushed is always on it, and of the rest what the chance says."""

import random
import struct

import pytest
from appliance import medium as media

BLOCK = 4096


@pytest.fixture
def medium(tmp_path):
    """A medium of 16 blocks full of zeros."""
    image = tmp_path / "image"
    image.write_bytes(bytes(16 * BLOCK))
    (tmp_path / "rig").mkdir()
    return media.Medium(image, tmp_path / "rig")


def record(medium, *entries):
    """What QEMU leaves: each entry is ("write", block, byte) or ("flush",). QEMU has written to the medium itself too."""
    log = bytearray(b"rhswfsj\0".ljust(media.SECTOR, b"\0"))
    content = bytearray(medium.path.read_bytes())
    for kind, *what in entries:
        if kind == "flush":
            log += struct.pack("<QQQQ", 0, 0, media.FLUSH, 0).ljust(media.SECTOR, b"\0")
            continue
        block, byte = what
        data = bytes([byte]) * BLOCK
        log += struct.pack("<QQQQ", block * 8, 8, 0, 0).ljust(media.SECTOR, b"\0") + data
        content[block * BLOCK : (block + 1) * BLOCK] = data
    medium.path.write_bytes(content)
    medium.log.write_bytes(log)


def blocks(medium):
    """The content, as a set of bytes per block."""
    content = medium.path.read_bytes()
    return [set(content[at : at + BLOCK]) for at in range(0, len(content), BLOCK)]


def test_what_was_flushed_is_there_and_what_was_not_is_taken_back(medium):
    record(medium, ("write", 0, 1), ("write", 1, 1), ("flush",), ("write", 1, 2), ("write", 2, 2))
    # Every write may be lost or torn, none is kept whole.
    cut = medium.cut(random.Random(1), keep=0)
    first, second, third = blocks(medium)[:3]
    assert first == {1} and second in ({1}, {1, 2}) and third in ({0}, {0, 2})
    assert (cut.writes, cut.flushes, cut.undecided) == (5, 1, 2) and cut.lost + cut.torn == 2


def test_a_kind_cut_keeps_everything(medium):
    record(medium, ("write", 0, 1), ("flush",), ("write", 1, 2), ("write", 3, 3))
    medium.cut(random.Random(1), keep=1)
    assert blocks(medium)[:4] == [{1}, {2}, {0}, {3}]


def test_unflushed_writes_are_reordered_and_torn(medium):
    seen = set()
    for seed in range(60):
        record(medium, *[("write", block, 0) for block in range(4)], ("flush",))
        medium.cut(random.Random(seed), keep=1)
        record(medium, *[("write", block, 7) for block in range(4)])
        medium.cut(random.Random(seed), keep=0.5)
        seen.add(tuple("torn" if len(block) == 2 else "new" if block == {7} else "old" for block in blocks(medium)[:4]))
    assert any(state[0] == "old" and state[3] == "new" for state in seen), "never was a later write there without an earlier one"
    assert any("torn" in state for state in seen)
    assert ("old",) * 4 in seen or ("new",) * 4 in seen


def test_a_cut_can_be_moved_back_before_a_flush(medium):
    record(medium, ("write", 0, 1), ("flush",), ("write", 0, 2), ("flush",))
    medium.cut(random.Random(1), keep=0, back=3)
    assert blocks(medium)[0] <= {0, 1}
    record(medium, ("write", 0, 1), ("flush",), ("write", 0, 2), ("flush",))
    medium.cut(random.Random(1), keep=0, back=2)
    assert blocks(medium)[0] == {1}


def test_a_log_that_ends_within_a_write_ends_before_it(medium):
    record(medium, ("write", 0, 1), ("flush",), ("write", 1, 2))
    medium.log.write_bytes(medium.log.read_bytes()[:-100])
    medium.cut(random.Random(1), keep=1)
    assert blocks(medium)[:2] == [{1}, {0}]


def test_a_log_with_a_hole_is_not_trusted_and_nothing_is_taken_back(medium):
    record(medium, ("write", 0, 1), ("write", 1, 2), ("flush",))
    log = bytearray(medium.log.read_bytes())
    log[512 : 512 + 512] = bytes(512)
    medium.log.write_bytes(log)
    assert medium.cut(random.Random(1), keep=0).unread_logs == 1
    assert blocks(medium)[:2] == [{1}, {2}]
