"""What an image carries of Debian's packages beside kernel and BusyBox: programs that `inferd.toml` may ask for (a Wi-Fi client, an SSH server, a
clock), with the libraries they need, and what a radio takes. An image made with --minimal has none of it.

Nothing here is started by itself: `rootfs-overlay/usr/libexec/inferd` does, where the boot partition asks for it.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import debian
import elf
import glibc
import modules
from steps import Failure

LICENSES = "usr/share/licenses"
FIRMWARE = "usr/lib/firmware"
# Which frequencies are allowed where, signed by Debian for its kernels.
RULES, RULES_PACKAGE = ("regulatory.db", "regulatory.db.p7s"), "wireless-regdb"
FOLDERS = ("usr/sbin", "usr/bin")


@dataclass(frozen=True)
class Programs:
    """What is put into an image, unpacked."""

    board: object
    tree: debian.Tree  # the programs' packages, and all that those need
    libraries: glibc.Glibc
    firmware: debian.Tree  # the radio's; of no path where there is none

    def needed(self):
        """The programs' files, and every library they need, by name."""
        found = [self._program(*entry.split("/")) for entry in self.board.debian.programs]
        beside = self.tree.path / self.libraries.folder.relative_to(self.libraries.root)
        return found, glibc.together(found, self.libraries, (beside,)).libraries if found else {}

    def install(self, root, kernel):
        """Puts all of it into a root filesystem; `kernel`: the kernel's package, unpacked. The packages of which something was taken, and their versions."""
        programs, libraries = self.needed()
        packages = {self._taken(file) for file in programs}
        for file in programs:
            # BusyBox may have an applet of that name.
            (root / "usr/bin" / file.name).unlink(missing_ok=True)
            shutil.copy(file, root / "usr/bin" / file.name)
        for name, file in libraries.items():
            if file.is_relative_to(self.tree.path):
                shutil.copy(file, self._folder(root) / name)
                packages.add(self._taken(file))
            else:
                shutil.copy(file, self._folder(root) / name)
        if programs:
            glibc.put_loader(root, self.libraries)
        versions = {name: self.tree.versions[name] for name in packages} | self.libraries.versions
        if self.board.radio.modules:
            versions |= self._radio(root, kernel)
            packages.add(RULES_PACKAGE)
        for name in packages:
            _license(self.tree.path, name, root)
        return versions

    def _radio(self, root, kernel):
        """The radio's drivers, which are loaded where a wireless network is asked for, its firmware, and the rules of countries."""
        modules.Modules(kernel).install(root, self.board.radio.modules, self.board.modules)
        folder = root / FIRMWARE
        folder.mkdir(parents=True, exist_ok=True)
        for name in RULES:
            shutil.copy(self.tree.path / FIRMWARE / f"{name}-debian", folder / name)
        if self.firmware.path:
            for name in self.board.radio.firmware:
                (folder / name).parent.mkdir(exist_ok=True)
                shutil.copy(self.firmware.path / FIRMWARE / name, folder / name)
            _license(self.firmware.path, self.board.debian.radio_firmware, root)
        return {RULES_PACKAGE: self.tree.versions[RULES_PACKAGE]} | self.firmware.versions

    def missing(self):
        """What the board would need and the archive at hand does not have: sentences."""
        if not self.board.radio.firmware or self.firmware.path:
            return []
        return [f"the radio's firmware ({self.board.debian.radio_firmware} of Debian's non-free-firmware): there is no Wi-Fi"]

    def _folder(self, root):
        folder = root / self.libraries.folder.relative_to(self.libraries.root)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _program(self, package, name):
        for folder in FOLDERS:
            if (self.tree.path / folder / name).is_file():
                return self.tree.path / folder / name
        raise Failure(f"the Debian package {package} has no program {name}")

    def _taken(self, file):
        return self.tree.files[str(Path(file).relative_to(self.tree.path))]


def prepare(board, refresh=False):
    """Fetches what an image of this board carries."""
    packages = [*dict.fromkeys(entry.split("/")[0] for entry in board.debian.programs)]
    packages += [RULES_PACKAGE] if board.radio.modules else []
    archive = debian.Archive(board.debian.architecture, [board.debian.suite])
    none = debian.Tree(None, {})
    tree = archive.tree(packages, closure=True, named=True, refresh=refresh) if packages else none
    radio = debian.not_free(board.debian.architecture, board.debian.suite, board.debian.radio_firmware if board.radio.firmware else "", refresh)
    return Programs(board, tree, glibc.Glibc(board.architecture_in_rust, refresh=refresh), radio)


def _license(tree, package, root):
    """What the licence of a package wants beside it."""
    notice = tree / f"usr/share/doc/{package}/copyright"
    if not notice.is_file():
        raise Failure(f"the Debian package {package} says nothing of its licence")
    (root / LICENSES / package).mkdir(parents=True, exist_ok=True)
    shutil.copy(notice, root / LICENSES / package / "copyright")
