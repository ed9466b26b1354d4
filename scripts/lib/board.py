"""A board's facts, read from board/NAME/board.toml and checked: whoever uses a `Board` need not check again."""

import tomllib
from dataclasses import dataclass

import places
from steps import Failure


# How a board's firmware picks the system that it starts, and tries another one once:
#   initramfs    it does not: the initramfs takes the root slot that the kernel's command line names
#   uboot-env    U-Boot: records on `bootstate` name the system, and another for one start (board/common/boot.cmd)
#   rpi-tryboot  Raspberry Pi: autoboot.txt names the boot partition, and another for one start after `reboot "0 tryboot"`
#   uefi-nv      Jetson: variables of its UEFI, which this project reads and never writes
BACKENDS = ("initramfs", "uboot-env", "rpi-tryboot", "uefi-nv")
# What runs models there: the engine that is built in, and those of vendors.
ENGINES = ("rten", "onnxruntime", "hailo", "tensorrt")


@dataclass(frozen=True)
class Debian:
    """What scripts/image takes from Debian."""

    architecture: str
    suite: str
    kernel: str
    kernel_suite: str  # where the kernel is from, if not from `suite`
    console: str  # what this kernel calls the console, if not as console.device says
    device_trees: tuple  # its names of those in kernel.device-trees, in their order; none: the same
    firmware: str  # the package of firmware.files, and its suite
    firmware_suite: str
    programs: tuple  # PACKAGE/PROGRAM each: what the root filesystem has beside BusyBox, for what inferd.toml may ask for
    radio_firmware: str  # the package of radio.firmware


@dataclass(frozen=True)
class Kernel:
    """The kernel that a builder from source makes."""

    source: str  # whose tree: linux, raspberrypi/linux
    version: str  # a release, or a commit of that tree
    defconfig: str
    image: str
    device_trees: tuple
    page_kib: int


@dataclass(frozen=True)
class Firmware:
    """What starts before the kernel."""

    files: tuple  # that lie beside the kernel
    floor: str  # the oldest release that a system update may rely on, as a date; "" where none is known
    files_floor: str = ""  # the oldest day of which those files may be


@dataclass(frozen=True)
class Radio:
    """What Wi-Fi takes, for who puts it into a root filesystem: it is loaded only where a network is asked for."""

    modules: tuple  # of Debian's kernel
    firmware: tuple  # files below /lib/firmware


@dataclass(frozen=True)
class Watchdog:
    """The one that resets the board, and the most it can be asked for. The keeper asks for 15 s (app/watch)."""

    device: str
    driver: str
    max_s: int


@dataclass(frozen=True)
class Panel:
    """What a person sees and presses: an LED of the kernel's, or lines of the header (BCM numbers). "" and 0 are none.

    The daemon reads it from the image (app/inferd/src/panel.rs), unless `panel.kind` of its settings says otherwise."""

    led: str
    led_gpio: int
    button_gpio: int


@dataclass(frozen=True)
class Qemu:
    """How QEMU plays the board."""

    package: str
    program: str
    machine: str
    cpu: str
    cpus: int
    memory_mib: int
    firmware: str  # what starts before the kernel, and the package of Debian's that has it; "" where the host starts the kernel
    firmware_package: str


@dataclass(frozen=True)
class Board:
    """One target machine. `debian`, `kernel` and `qemu` are None where nobody assembles, builds or emulates it."""

    name: str
    summary: str
    rust_target: str
    debian: Debian | None
    kernel: Kernel | None
    firmware: Firmware
    radio: Radio
    backend: str
    cmdline: str
    modules: tuple
    module_parameters: dict  # of those that have any: what insmod is given after the name
    console: str
    dev_shell: str
    watchdog: Watchdog
    panel: Panel
    engines: tuple
    sizes: dict
    qemu: Qemu | None

    @property
    def architecture_in_rust(self):
        """Rust's name of its processor: aarch64, x86_64."""
        return self.rust_target.split("-")[0]


def names():
    """Every board there is."""
    return sorted(path.parent.name for path in places.BOARDS.glob("*/board.toml"))


def assembled():
    """Those that scripts/image makes images for, from packages of Debian."""
    return [name for name in names() if load(name).debian]


def emulated():
    """Those that QEMU plays, of what scripts/image makes."""
    return [name for name in assembled() if load(name).qemu]


def load(name):
    """The board called `name`."""
    path = places.BOARDS / name / "board.toml"
    if name not in names():
        raise Failure(f"there is no board {name!r}; there are: {', '.join(names())}")
    return parse(path.read_text(), path)


def parse(text, origin):
    """A board.toml's text. Missing, unknown and mistyped keys, and values that mean nothing, are refused with their key."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Failure(f"{origin}: {error}") from error
    page = _Page(raw, origin)
    modules = [entry.partition(" ") for entry in page.words("boot.modules", default=[])]
    board = Board(
        name=page.take("name", str),
        summary=page.take("summary", str),
        rust_target=page.take("rust-target", str),
        debian=_debian(page) if "debian" in raw else None,
        kernel=_kernel(page) if "kernel" in raw else None,
        firmware=Firmware(page.words("firmware.files", default=[]), page.take("firmware.floor", str, ""), page.take("firmware.files-floor", str, "")),
        radio=Radio(page.words("radio.modules", default=[]), page.words("radio.firmware", default=[])),
        backend=page.one_of("boot.backend", BACKENDS),
        cmdline=page.take("boot.cmdline", str),
        modules=tuple(name for name, _, _ in modules),
        module_parameters={name: given for name, _, given in modules if given},
        console=page.take("console.device", str),
        dev_shell=page.take("console.dev-shell", str, ""),
        watchdog=_watchdog(page),
        panel=Panel(
            led=page.take("panel.led", str, ""),
            led_gpio=page.whole("panel.led-gpio", 0, 27, 0),
            button_gpio=page.whole("panel.button-gpio", 0, 27, 0),
        ),
        engines=page.words("engines.kinds", ENGINES),
        sizes=page.take("sizes", dict),
        qemu=_qemu(page) if "qemu" in raw else None,
    )
    page.finish()
    if board.panel.led and (board.panel.led_gpio or board.panel.button_gpio):
        raise Failure(f"{origin}: 'panel.led' is an LED of the kernel's, beside which the daemon has no lines of the header")
    if f"console={board.console}" not in board.cmdline.replace(",", " ").split():
        raise Failure(f"{origin}: 'boot.cmdline' does not name the console {board.console!r} of 'console.device'")
    if board.debian and not board.dev_shell:
        raise Failure(f"{origin}: 'console.dev-shell' is missing; an image made with --dev has a root shell there")
    if board.debian and bool(board.radio.firmware) != bool(board.debian.radio_firmware):
        raise Failure(f"{origin}: 'radio.firmware' and 'debian.radio-firmware', the package of it, belong together")
    if strange := [entry for entry in board.debian.programs if entry.count("/") != 1] if board.debian else []:
        raise Failure(f"{origin}: 'debian.programs' has {strange[0]!r}, not PACKAGE/PROGRAM")
    return board


def _debian(page):
    return Debian(
        *(page.take(f"debian.{key}", str) for key in ("architecture", "suite", "kernel")),
        kernel_suite=page.take("debian.kernel-suite", str, ""),
        console=page.take("debian.console", str, ""),
        device_trees=page.words("debian.device-trees", default=[]),
        firmware=page.take("debian.firmware", str, ""),
        firmware_suite=page.take("debian.firmware-suite", str, ""),
        programs=page.words("debian.programs", default=[]),
        radio_firmware=page.take("debian.radio-firmware", str, ""),
    )


def _kernel(page):
    return Kernel(
        source=page.take("kernel.source", str),
        version=page.take("kernel.version", str),
        defconfig=page.take("kernel.defconfig", str),
        image=page.take("kernel.image", str),
        device_trees=page.words("kernel.device-trees", default=[]),
        page_kib=page.one_of("kernel.page-kib", (4, 16, 64)),
    )


def _watchdog(page):
    return Watchdog(
        device=page.take("watchdog.device", str),
        driver=page.take("watchdog.driver", str),
        max_s=page.whole("watchdog.max-seconds", 15, 1 << 16),  # the keeper's timeout must fit
    )


def _qemu(page):
    return Qemu(
        package=page.take("qemu.package", str),
        program=page.take("qemu.program", str),
        machine=page.take("qemu.machine", str),
        cpu=page.take("qemu.cpu", str),
        cpus=page.take("qemu.cpus", int),
        memory_mib=page.take("qemu.memory-mib", int),
        firmware=page.take("qemu.firmware", str, ""),
        firmware_package=page.take("qemu.firmware-package", str, ""),
    )


class _Page:
    """Keys of a TOML page, taken one by one; what is left at the end is unknown."""

    def __init__(self, raw, origin):
        self.raw, self.origin = raw, origin

    def take(self, key, kind, default=None):
        table, *rest = key.split(".")
        holder, last = (self.raw.get(table, {}), rest[0]) if rest else (self.raw, table)
        if not isinstance(holder, dict):
            raise Failure(f"{self.origin}: {table!r} is {holder!r}, not a table")
        if last not in holder:
            if default is not None:
                return default
            raise Failure(f"{self.origin}: the key {key!r} is missing")
        value = holder.pop(last)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            raise Failure(f"{self.origin}: {key!r} is {value!r}, not of type {kind.__name__}")
        return value

    def one_of(self, key, choices):
        value = self.take(key, type(choices[0]))
        if value not in choices:
            raise Failure(f"{self.origin}: {key!r} is {value!r}, not one of {', '.join(map(str, choices))}")
        return value

    def whole(self, key, least, most, default=None):
        value = self.take(key, int, default)
        if not least <= value <= most:
            raise Failure(f"{self.origin}: {key!r} is {value}, not from {least} to {most}")
        return value

    def words(self, key, choices=None, default=None):
        values = self.take(key, list, default)
        for value in values:
            if not isinstance(value, str) or (choices and value not in choices):
                raise Failure(f"{self.origin}: {key!r} has {value!r}, not {'one of ' + ', '.join(choices) if choices else 'a word'}")
        return tuple(values)

    def finish(self):
        left = [f"{key}.{inner}" for key, value in self.raw.items() if isinstance(value, dict) for inner in value]
        left += [key for key, value in self.raw.items() if not isinstance(value, dict)]
        if left:
            raise Failure(f"{self.origin}: unknown keys: {', '.join(left)}")
