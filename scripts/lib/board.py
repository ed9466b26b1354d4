"""A board's facts, read from board/NAME/board.toml and checked: whoever uses a `Board` need not check again."""

import tomllib
from dataclasses import dataclass

import places
from steps import Failure


@dataclass(frozen=True)
class Qemu:
    """How QEMU plays the board."""

    package: str
    program: str
    machine: str
    cpu: str
    cpus: int
    memory_mib: int


@dataclass(frozen=True)
class Board:
    """One target machine."""

    name: str
    summary: str
    rust_target: str
    architecture: str
    suite: str
    kernel: str
    cmdline: str
    modules: tuple
    module_parameters: dict  # of those that have any: what insmod is given after the name
    console: str
    dev_shell: str
    watchdog: str
    watchdog_driver: str
    sizes: dict
    qemu: Qemu

    @property
    def architecture_in_rust(self):
        """Rust's name of its processor: aarch64, x86_64."""
        return self.rust_target.split("-")[0]


def names():
    """Every board there is."""
    return sorted(path.parent.name for path in places.BOARDS.glob("*/board.toml"))


def load(name):
    """The board called `name`."""
    path = places.BOARDS / name / "board.toml"
    if name not in names():
        raise Failure(f"there is no board {name!r}; there are: {', '.join(names())}")
    return parse(path.read_text(), path)


def parse(text, origin):
    """A board.toml's text. Missing, unknown and mistyped keys are refused with their name."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Failure(f"{origin}: {error}") from error
    page = _Page(raw, origin)
    modules = [entry.partition(" ") for entry in page.take("boot.modules", list)]
    board = Board(
        name=page.take("name", str),
        summary=page.take("summary", str),
        rust_target=page.take("rust-target", str),
        architecture=page.take("debian.architecture", str),
        suite=page.take("debian.suite", str),
        kernel=page.take("debian.kernel", str),
        cmdline=page.take("boot.cmdline", str),
        modules=tuple(name for name, _, _ in modules),
        module_parameters={name: given for name, _, given in modules if given},
        console=page.take("console.device", str),
        dev_shell=page.take("console.dev-shell", str),
        watchdog=page.take("watchdog.device", str),
        watchdog_driver=page.take("watchdog.driver", str),
        sizes=page.take("sizes", dict),
        qemu=Qemu(
            package=page.take("qemu.package", str),
            program=page.take("qemu.program", str),
            machine=page.take("qemu.machine", str),
            cpu=page.take("qemu.cpu", str),
            cpus=page.take("qemu.cpus", int),
            memory_mib=page.take("qemu.memory-mib", int),
        ),
    )
    page.finish()
    return board


class _Page:
    """Keys of a TOML page, taken one by one; what is left at the end is unknown."""

    def __init__(self, raw, origin):
        self.raw, self.origin = raw, origin

    def take(self, key, kind):
        table, *rest = key.split(".")
        holder, last = (self.raw.get(table, {}), rest[0]) if rest else (self.raw, table)
        if last not in holder:
            raise Failure(f"{self.origin}: the key {key!r} is missing")
        value = holder.pop(last)
        if not isinstance(value, kind):
            raise Failure(f"{self.origin}: {key!r} is {value!r}, not of type {kind.__name__}")
        return value

    def finish(self):
        left = [f"{key}.{inner}" for key, value in self.raw.items() if isinstance(value, dict) for inner in value]
        left += [key for key, value in self.raw.items() if not isinstance(value, dict)]
        if left:
            raise Failure(f"{self.origin}: unknown keys: {', '.join(left)}")
