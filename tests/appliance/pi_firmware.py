"""A simulator of what a Raspberry Pi's boot firmware does between power and kernel, and QEMU started by its choice.

It reads a medium as the firmware does (GPT, FATs, autoboot.txt, config.txt, cmdline.txt) and keeps what outlives a reset there: the
tryboot flag, the count of boots, the partition that a reboot asked for. It follows documentation/computers/config_txt/autoboot.adoc and
raspberry-pi/eeprom-bootloader.adoc of Raspberry Pi and the release notes of the bootloader. Of what these leave open it takes, and no
board has been asked:

* an autoboot.txt longer than 512 bytes is read up to there, and a line that is no setting is passed over;
* without a valid `boot_partition` the first bootable FAT starts;
* a trial that PARTITION_WALK ends in another partition is still said to be one;
* of a Raspberry Pi 5 every device tree in the board's page is wanted, since the suitable one depends on the chip's stepping.
"""

import datetime
import re
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import cpio
import hosttools
import layout as layouts
import modules
import rpi
from appliance import conftest

AUTOBOOT_BYTES = 512
# `reboot N [tryboot]`, as the kernel says it on its console (kernel/reboot.c).
RESTARTED = re.compile(r"reboot: Restarting system with command '(.*)'")
# Since when a bootloader walks on past a partition that is not bootable, unless its settings say PARTITION_WALK=0. Both do so by default
# since 2025-08-13, but a Pi 4's found no start4.elf on its way until a week later (rpi-eeprom, issue 738).
WALKS = {"rpi4": "2025-08-20", "rpi5-hailo8": "2025-08-13"}
# It looks at no partition above.
LAST_WALKED = 8


@dataclass(frozen=True)
class Start:
    """What the firmware starts."""

    partition: int
    trial: bool
    kernel: bytes
    initramfs: bytes
    cmdline: str


class Firmware:
    """The firmware of one board with one medium. `built`: the day of its bootloader, by default the oldest one that the board's page
    allows. `walk`: what its settings say of PARTITION_WALK, by default nothing. `bootable`: the files without which a FAT is not bootable."""

    def __init__(self, medium, board, *, built=None, walk=None, bootable=None):
        self.medium, self.built = Path(medium), built or board.firmware.floor
        self.walk = self.built >= WALKS[board.name] if walk is None else walk
        trees = [f"{Path(tree).name}.dtb" for tree in board.kernel.device_trees]
        self.bootable = bootable or (["start4.elf"] if board.firmware.files else ["config.txt", *trees])
        self.tools = hosttools.Tools(hosttools.IMAGE)
        self.power_on()

    def power_on(self):
        """Power comes: nothing is remembered."""
        self.trial, self.asked, self.boots = False, 0, 0

    def reset(self, command=None):
        """The board restarts, with what `reboot` was given (`0 tryboot`, `2`, nothing); None: a watchdog or a panic, which says nothing
        and leaves what is remembered."""
        if command is not None:
            words = command.split()
            self.asked = int(words[0]) if words and words[0].isdigit() else 0
            self.trial = "tryboot" in words[1:]
        self.boots = min(self.boots + 1, 255)

    def choose(self):
        """The number of the partition that is started now, and whether on trial; None where nothing can be. The flag lasts for one start."""
        parts = layouts.read_gpt(self.medium)[1]
        trial, asked = self.trial, self.asked
        self.trial, self.asked = False, 0
        autoboot = settings(self._file(parts, 1, "autoboot.txt")[:AUTOBOOT_BYTES], {"all"} | ({"tryboot"} if trial else set()))
        wanted = asked or number(autoboot.get("boot_partition", ""))
        # Without tryboot_a_b a trial is one of tryboot.txt in the same partition, which these media do not have.
        if trial and autoboot.get("tryboot_a_b") != "1":
            return None
        if not wanted:
            row = range(1, len(parts) + 1)
        elif self.walk:
            row = [*range(wanted, LAST_WALKED + 1), *range(1, wanted)]
        else:
            row = [wanted]
        found = next((candidate for candidate in row if self._bootable(parts, candidate)), None)
        return found and (found, trial)

    def start(self):
        """What is started now, as config.txt of the chosen partition says; None where nothing can be."""
        chosen = self.choose()
        if chosen is None:
            return None
        partition, trial = chosen
        parts = layouts.read_gpt(self.medium)[1]

        def file(name):
            return self._file(parts, partition, name)

        config = settings(file("config.txt"), {"all"})
        # What stands for a start4.elf that nobody has at hand is another file: `bootable`.
        if self.bootable == ["start4.elf"] and not all(map(file, rpi.firmware_of(file("config.txt").decode()))):
            return None
        # `initramfs FILE ADDRESS` is the one setting without an equals sign.
        initramfs = next((key.split()[1] for key in config if key.startswith("initramfs ")), "")
        return Start(
            partition, trial, file(config.get("kernel", "kernel8.img")), file(initramfs) if initramfs else b"",
            file(config.get("cmdline", "cmdline.txt")).decode("ascii").strip(),
        )

    def sector_of_autoboot(self):
        """Where the one sector of autoboot.txt lies on the medium."""
        part = layouts.read_gpt(self.medium)[1][0]
        shown = self._mtools("mshowfat", part, "::autoboot.txt").decode()
        cluster = int(re.search(r"<(\d+)", shown)[1])
        with open(self.medium, "rb") as file:
            file.seek(part.offset)
            boot = file.read(64)
        per_cluster, reserved, fats, (sectors_per_fat,) = boot[13], *struct.unpack_from("<HB", boot, 14), struct.unpack_from("<I", boot, 36)
        return part.offset // layouts.SECTOR + reserved + fats * sectors_per_fat + (cluster - 2) * per_cluster

    def _bootable(self, parts, partition):
        return all(self._file(parts, partition, name) for name in self.bootable)

    def _file(self, parts, partition, name):
        """A file of a partition; nothing where there is none, or no FAT."""
        if not 1 <= partition <= len(parts):
            return b""
        return self._mtools("mtype", parts[partition - 1], f"::{name}", check=False)

    def _mtools(self, program, part, *arguments, check=True):
        command = [self.tools.path(program), "-i", f"{self.medium}@@{part.offset}", *arguments]
        return subprocess.run(command, capture_output=True, check=check).stdout


def settings(text, filters):
    """The settings of autoboot.txt or config.txt that these filters let pass; the last of a name counts."""
    found, passes = {}, True
    for line in text.decode("latin-1").splitlines():
        line = line.partition("#")[0].strip()
        if re.fullmatch(r"\[.*\]", line):
            passes = line[1:-1] in filters
        elif passes and re.fullmatch(r"[A-Za-z][\w ./-]*(=.*)?", line):
            key, _, value = line.partition("=")
            found[key.strip()] = value.strip()
    return found


def number(text):
    """A partition's number; 0 for what is none."""
    return int(text) if re.fullmatch(r"[0-9]{1,3}", text) else 0


def with_bootloader(tree, start, firmware):
    """A flattened device tree with /chosen/bootloader in it, as the firmware tells the kernel what it did."""
    built = int(datetime.datetime.fromisoformat(f"{firmware.built}T00:00:00+00:00").timestamp())
    values = {"partition": start.partition, "tryboot": int(start.trial), "count": firmware.boots, "build-timestamp": built}
    header = list(struct.unpack_from(">10I", tree))
    _, _, at_structure, at_strings, *_, strings_size, structure_size = header
    structure, strings = tree[at_structure : at_structure + structure_size], tree[at_strings : at_strings + strings_size]
    node = struct.pack(">I12s", 1, b"bootloader\0\0")
    for name, value in values.items():
        node += struct.pack(">IIII", 3, 4, len(strings), value)
        strings += name.encode() + b"\0"
    node += struct.pack(">I", 2)
    # A node's properties come before its children.
    begin = structure.index(struct.pack(">I8s", 1, b"chosen\0\0")) + 12
    while struct.unpack_from(">I", structure, begin)[0] == 3:
        begin += 12 + (struct.unpack_from(">I", structure, begin + 4)[0] + 3) // 4 * 4
    structure = structure[:begin] + node + structure[begin:]
    before = tree[40:at_structure]
    header[1], header[3] = 40 + len(before) + len(structure) + len(strings), 40 + len(before) + len(structure)
    header[8], header[9] = len(strings), len(structure)
    return struct.pack(">10I", *header) + before + structure + strings


def other_drivers(packages, wanted):
    """An archive to be put behind a board's initramfs, for a machine that its drivers do not fit: `wanted` is loaded instead of what the
    board's page names, in the page's form."""
    entries = [entry.partition(" ") for entry in wanted]
    parameters = {name.replace("-", "_"): given for name, _, given in entries}
    archive, order = cpio.Archive(), modules.Modules(packages).load_order([name for name, _, _ in entries])
    for name, content in order:
        archive.file(f"lib/modules/{name}.ko", content)
    archive.file("lib/modules/order", "".join(f"{name} {parameters.get(name, '')}".strip() + "\n" for name, _ in order).encode())
    return archive.bytes()


def initramfs_with(start, archive):
    """The initramfs of a start with an archive behind it."""
    return start.initramfs + bytes(-len(start.initramfs) % 512) + archive


class OnRaspi3b(conftest.Booted):
    """QEMU's Raspberry Pi 3 with the kernel, the root and the command line that the firmware chooses. It is the Raspberry Pi that QEMU knows
    best; `tree` is a device tree of that board, which an image of another one does not have. `card` is a copy of the firmware's
    medium of a size that cards have. `board` is any page of the architecture."""

    def __init__(self, board, card, firmware, drivers, tree, **options):
        super().__init__(board, card, direct=True, **options)
        self.firmware, self.drivers, self.tree = firmware, drivers, tree

    def _direct_start(self):
        start = self.firmware.start()
        (self.folder / "kernel").write_bytes(start.kernel)
        (self.folder / "initramfs").write_bytes(initramfs_with(start, self.drivers))
        return (*("-kernel", self.folder / "kernel", "-initrd", self.folder / "initramfs"), "-append", start.cmdline, "-dtb", self.tree)

    def _command(self, tools, start):
        command = [
            *(tools.path(self.board.qemu.program), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-machine", "raspi3b", "-accel", "tcg,thread=multi", *start),
            # The second UART is the mini UART of the header.
            *("-serial", "null", "-chardev", f"file,id=serial,path={self.serial}", "-serial", "chardev:serial"),
            *("-drive", f"if=sd,format=raw,file={self.image},cache=unsafe,snapshot=on"),
            *("-netdev", self._network(), "-device", "usb-net,netdev=net"),
            *("-qmp", f"unix:{self.folder}/qmp.sock,server=on,wait=off"),
        ]
        return [str(part) for part in command]


class Started(conftest.Booted):
    """QEMU's machine `virt`, started on what the firmware chooses. `board` is the page of that machine, `drivers` what is put behind the
    initramfs of the image for it."""

    def __init__(self, board, firmware, drivers, **options):
        super().__init__(board, firmware.medium, keep_writes=True, direct=True, **options)
        self.firmware, self.drivers, self.start = firmware, drivers, None

    def restart(self, timeout):
        """Waits until the guest has restarted the board, and starts what the firmware chooses then."""
        self.wait_exit(timeout)
        told = RESTARTED.search(self.console())
        self.firmware.reset(told and told[1])
        self.forget_shell()
        self._forget_monitor()
        self.power_on()

    def _direct_start(self):
        self.start = self.firmware.start()
        assert self.start, "the firmware finds nothing to start"
        files = {"kernel": self.start.kernel, "initramfs": initramfs_with(self.start, self.drivers)}
        files["tree"] = with_bootloader(self._tree(), self.start, self.firmware)
        for name, content in files.items():
            (self.folder / name).write_bytes(content)
        console = f"{self.start.cmdline} console={self.board.console}"
        return (*("-kernel", self.folder / "kernel", "-initrd", self.folder / "initramfs"), "-append", console, "-dtb", self.folder / "tree")

    def _tree(self):
        """The device tree that this machine would give a kernel."""
        qemu, file = self.board.qemu, self.folder / "virt.dtb"
        command = [hosttools.Tools([qemu.package]).path(qemu.program), "-nodefaults", "-display", "none", "-cpu", qemu.cpu]
        command += ["-machine", f"{qemu.machine},dumpdtb={file}", "-smp", str(self.cpus), "-m", f"{qemu.memory_mib}M"]
        subprocess.run(command, check=True, capture_output=True)
        return file.read_bytes()
