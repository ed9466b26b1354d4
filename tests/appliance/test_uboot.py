"""U-Boot on the reference board: which system it starts, by the records on `bootstate` and by what lies in the slots."""

import layout as layouts
import pytest
import uboot
from appliance import medium as media
from uboot import Record

# Emulation on a busy machine.
PATIENCE_S = 240
JUNK = b"\xff" * uboot.SIZE
LOWER, HIGHER = Record(7, "a").encoded(), Record(8, "b").encoded()
TORN = HIGHER[:16] + LOWER[16:]


@pytest.fixture(scope="module")
def parts(board, production_image):
    """The partitions of an image by name; only of a board that starts by U-Boot."""
    if board.backend != "uboot-env":
        pytest.skip(f"{board.name} starts by {board.backend}")
    return {part.name: part for part in layouts.read_gpt(production_image[0])[1]}


@pytest.fixture
def medium(production_image, parts, tmp_path):
    """A medium whose two slots hold the same system."""
    file = tmp_path / "medium.img"
    media.copy_sparse(production_image[0], file)
    for name in ("boot", "rootfs"):
        put(file, parts[f"{name}-b"].offset, get(file, parts[f"{name}-a"].offset, parts[f"{name}-a"].size))
    return file


def get(file, at, size):
    """Bytes of a medium."""
    with open(file, "rb") as medium:
        medium.seek(at)
        return medium.read(size)


def put(file, at, content):
    """Writes to a medium that is switched off."""
    with open(file, "r+b") as medium:
        medium.seek(at)
        medium.write(content)


def records(file, parts):
    """What the two places hold."""
    return [uboot.decoded(get(file, parts["bootstate"].offset + place, uboot.SIZE)) for place in uboot.PLACES]


@pytest.mark.parametrize("record", [Record(1, "a"), Record(200, "b"), Record(uboot.LAST_GENERATION, "a", "b")])
def test_a_record_is_read_as_it_was_written_and_not_at_all_with_a_bit_changed(record):
    sector = record.encoded()
    assert len(sector) == uboot.SIZE and uboot.decoded(sector) == record
    for bit in range(0, 8 * uboot.SIZE, 37):
        damaged = bytearray(sector)
        damaged[bit // 8] ^= 1 << bit % 8
        assert uboot.decoded(bytes(damaged)) is None


@pytest.mark.parametrize("values", [{"chosen": "c", "generation": 1}, {"chosen": "a"}, {"chosen": "a", "generation": "0x1"}, {"generation": 1}])
def test_a_record_that_says_nothing_sensible_is_none(values):
    assert uboot.decoded(uboot._environment(values, uboot.SIZE)) is None


# first record, second record: the system that is started, whether on trial, and what the records are then
STATES = {
    "nothing was ever chosen": (bytes(512), bytes(512), "a", None),
    "rubbish": (JUNK, JUNK, "a", None),
    "one record": (HIGHER, bytes(512), "b", None),
    "the newer one first": (HIGHER, LOWER, "b", None),
    "the newer one second": (LOWER, HIGHER, "b", None),
    "the newer one torn": (LOWER, TORN, "a", None),
    "a trial": (LOWER, Record(8, "a", "b").encoded(), "b", [Record(9, "a"), Record(8, "a", "b")]),
    "a trial whose number carries": (Record(1999, "b", "a").encoded(), JUNK, "a", [Record(1999, "b", "a"), Record(2000, "b")]),
    "a trial of nothing": (LOWER, Record(8, "b", "x").encoded(), "a", None),
    "more in it than a record's": (LOWER, uboot._environment({"chosen": "b", "generation": 8, "newest": 999}, uboot.SIZE), "b", None),
}


def test_the_newer_valid_record_names_the_system_and_a_trial_is_taken_out_before_it_begins(boot, medium, parts):
    for state, (first, second, system, after) in STATES.items():
        at = parts["bootstate"].offset
        put(medium, at + uboot.PLACES[0], first)
        put(medium, at + uboot.PLACES[1], second)
        with boot(medium, wait=False, keep_writes=True) as machine:
            said = machine.wait_for_console(r"inferd: U-Boot starts system (.)( inferd\.try=1)?\r?\n", PATIENCE_S)
        assert (said[1], bool(said[2])) == (system, after is not None), state
        assert records(medium, parts) == (after or [uboot.decoded(first), uboot.decoded(second)]), state
        assert after or get(medium, at + uboot.PLACES[0], 512) == first, state


def test_a_trial_lasts_for_one_start_and_the_chosen_system_stays(boot, medium, parts):
    put(medium, parts["bootstate"].offset, Record(1, "a", "b").encoded())
    with boot(medium, wait=False, keep_writes=True, restarts=True) as machine:
        machine.wait_for_console(r"INFERD-UP \S+ slot=b", PATIENCE_S)
        machine.reset()
        machine.wait_for_console(r"INFERD-UP \S+ slot=a", PATIENCE_S)
    record, at = uboot.read(medium, parts["bootstate"].offset)
    assert record == Record(2, "a")
    put(medium, at, uboot.next_record(record, chosen="b").encoded())
    # The host, where it is the boot loader, follows the record as well.
    with boot(medium, wait=False, direct=True) as machine:
        machine.wait_for_console(r"INFERD-UP \S+ slot=b", PATIENCE_S)


def test_a_system_that_cannot_be_loaded_gives_way_to_the_other_one(boot, medium, parts):
    put(medium, parts["bootstate"].offset, Record(1, "b").encoded())
    put(medium, parts["boot-b"].offset, bytes(1 << 20))
    with boot(medium, wait=False) as machine:
        machine.wait_for_console(r"inferd: system b cannot be loaded; U-Boot starts the other one", PATIENCE_S)
        machine.wait_for_console(r"INFERD-UP \S+ slot=a", PATIENCE_S)
