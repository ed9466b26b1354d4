"""A medium that loses power: which of the guest's last writes are on it afterwards.

QEMU records every write and every flush in order (the format of Linux's dm-log-writes). A killed QEMU alone is a kind
power cut: all that the guest had handed over is on the disk, in order and whole. A real disk owes the guest only what was
flushed. So after the kill, of the writes after the last flush a random part is taken back, 512-byte sector by sector: that
reorders and tears them. The cut can also be moved back to an earlier write: what the disk would hold had power failed then.
"""

import errno
import os
import struct
from collections import Counter
from dataclasses import dataclass

SECTOR = 512
ENTRY = struct.Struct("<QQQQ")
FLUSH, FUA, DISCARD = 1, 2, 4


@dataclass(frozen=True)
class Write:
    """One entry of the log: `data` begins at byte `at` of the log, and belongs at sector `sector`."""

    sector: int
    sectors: int
    flags: int
    at: int


@dataclass
class Cut:
    """What a power cut did to the medium."""

    writes: int = 0
    flushes: int = 0
    moved_back: int = 0
    undecided: int = 0
    lost: int = 0
    torn: int = 0
    unread_logs: int = 0


def read_log(path):
    """The log's entries, and whether that is all of it: of writes in flight when QEMU died, one may be missing between
    others. The log's superblock is of no use, it counts the entries before the last flush only."""
    entries = []
    size = path.stat().st_size
    with open(path, "rb") as log:
        if log.read(8) != b"rhswfsj\0":
            return entries, True
        at = SECTOR
        while at + SECTOR <= size:
            log.seek(at)
            sector, sectors, flags, _ = ENTRY.unpack(log.read(ENTRY.size))
            data = 0 if flags & DISCARD else sectors * SECTOR
            if at + SECTOR + data > size:
                return entries, True
            if not sectors and not flags:
                break
            entries.append(Write(sector, sectors, flags, at + SECTOR))
            at += SECTOR + data
        log.seek(at)
        return entries, not any(log.read())


def copy_sparse(source, target):
    """Makes `target` a copy of `source`, holes left out."""
    with open(source, "rb") as reader, open(target, "wb") as writer:
        size = os.fstat(reader.fileno()).st_size
        writer.truncate(size)
        at = 0
        while at < size:
            try:
                at = os.lseek(reader.fileno(), at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data behind this
                    return
                raise
            end = os.lseek(reader.fileno(), at, os.SEEK_HOLE)
            os.lseek(writer.fileno(), at, os.SEEK_SET)
            while at < end:
                at += os.sendfile(writer.fileno(), reader.fileno(), at, end - at)


class Medium:
    """An image that a machine writes to, with a second copy that never has what was lost."""

    def __init__(self, image, folder):
        self.path, self.safe, self.log = folder / "medium.img", folder / "safe.img", folder / "writes.log"
        copy_sparse(image, self.path)
        copy_sparse(image, self.safe)

    def cut(self, rng, *, keep, back=0):
        """Power failed `back` writes before the last one. Of what was not flushed, each write is on the medium with
        probability `keep`; one in four of the others is there in part."""
        entries, whole = read_log(self.log)
        if not whole:
            copy_sparse(self.path, self.safe)
            return Cut(writes=len(entries), unread_logs=1)
        end = max(len(entries) - back, 0)
        cut = Cut(writes=end, moved_back=len(entries) - end)
        cut.flushes = sum(1 for entry in entries[:end] if entry.flags & FLUSH)
        flushed = max((i for i, entry in enumerate(entries[:end]) if entry.flags & FLUSH), default=0)
        with open(self.log, "rb") as log, open(self.safe, "r+b") as safe:
            for index, entry in enumerate(entries[:end]):
                if not entry.sectors or entry.flags & DISCARD:
                    continue
                log.seek(entry.at)
                data = log.read(entry.sectors * SECTOR)
                due = index < flushed or entry.flags & FUA
                for first, last in [(0, entry.sectors)] if due else self._fate(entry, rng, keep, cut):
                    safe.seek((entry.sector + first) * SECTOR)
                    safe.write(data[first * SECTOR : last * SECTOR])
        copy_sparse(self.safe, self.path)
        return cut

    def _fate(self, entry, rng, keep, cut):
        """Which sectors of a write that was not flushed are on the medium, as (first, last + 1)."""
        cut.undecided += 1
        if rng.random() < keep:
            return [(0, entry.sectors)]
        if entry.sectors > 1 and rng.random() < 0.25:
            cut.torn += 1
            return [(i, i + 1) for i in range(entry.sectors) if rng.random() < 0.5]
        cut.lost += 1
        return []


def total(cuts):
    """The sums over many cuts."""
    sums = Counter()
    for cut in cuts:
        sums.update(vars(cut))
    return dict(sums)
