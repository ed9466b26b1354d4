"""Root filesystems with Debian's systemd as process 1, in images that are otherwise ours.

There is no image of ours with systemd that could be started here (yocto/ describes one). So the root filesystem of an ordinary image is
replaced: Debian's systemd, BusyBox for what the scripts call, the static daemon, its default model, the overlay, as the layer's recipes install it.
"""

import re
import shutil
import subprocess

import debian
import image
import layout as layouts
import places

SUITE = "trixie"
# Debian's static BusyBox, where it is the shell, takes its own mke2fs and its own sh, whatever PATH says.
PACKAGES = ("systemd", "systemd-sysv", "busybox-static", "libnss-systemd", "e2fsprogs", "dash", "dropbear-bin")
SCRIPTS = ("boot", "network", "services", "sticks", "system", "door")
# What a boot needs nothing of, by path below the tree.
LEFT_OUT = re.compile(
    r"usr/(share/(doc|man|locale|i18n|zsh|bash-completion|lintian|pam|info)|lib/udev/hwdb\.d|include)(/|$)|"
    r"usr/lib/[^/]+/(perl|gconv)(/|$)"
)


def root_filesystem(stage, daemon, board, root, settings, units):
    """Lays Debian's systemd, BusyBox, the daemon, its model and the overlay out as one root filesystem. `root`: the document that says whom it
    believes; `settings`: of its configuration, (section, key, value) each; `units`: the text of more services, by name."""
    tree = debian.Archive(board.debian.architecture, [SUITE]).tree(PACKAGES, closure=True).path
    skip = {str(path) for path in tree.rglob("*") if LEFT_OUT.match(path.relative_to(tree).as_posix())} | {str(path) for path in tree.glob(".*")}
    shutil.copytree(tree, stage, symlinks=True, ignore=lambda folder, names: [name for name in names if f"{folder}/{name}" in skip])
    for name in ("bin", "sbin", "lib", "lib64"):
        if (stage / "usr" / name).exists() and not (stage / name).is_symlink():
            (stage / name).symlink_to(f"usr/{name}")
    for name in ("dev", "proc", "sys", "run", "tmp", "data", "boot", "root"):
        (stage / name).mkdir(exist_ok=True)
    for name in image.applets((stage / "usr/bin/busybox").read_bytes()):
        if not any((stage / folder / name).exists() for folder in ("usr/bin", "usr/sbin")):
            (stage / "usr/bin" / name).symlink_to("busybox")
    for name in ("usr", "root"):
        shutil.copytree(places.OVERLAY / name, stage / name, symlinks=True, dirs_exist_ok=True)
    for name in ("etc/passwd", "etc/group", "etc/inferd/inferd.toml"):
        (stage / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(places.ROOT / "rootfs-overlay" / name, stage / name)
    image.furnish(stage, board, [places.DEFAULT_MODEL], "test")
    shutil.copyfile(root, stage / "etc/inferd/root.imr")
    config = stage / "etc/inferd/inferd.toml"
    for section, key, value in settings:
        config.write_text(image.with_setting(config.read_text(), section, key, value))
    (stage / "etc/machine-id").write_text("00000000000000000000000000000001\n")
    (stage / "etc/resolv.conf").symlink_to("/run/resolv.conf")
    put(stage / "usr/bin/inferd", daemon.read_bytes())
    wanted = stage / "etc/systemd/system/multi-user.target.wants"
    wanted.mkdir(parents=True)
    for name, text in units.items():
        (stage / f"usr/lib/systemd/system/{name}.service").write_text(text)
    for name in ("inferd", *(f"inferd-{script}" for script in SCRIPTS), *units):
        (wanted / f"{name}.service").symlink_to(f"/usr/lib/systemd/system/{name}.service")
    # By systemd's own presets; it moves what it finds to /var/lib, which can be written to in images of OpenEmbedded.
    (wanted.parent / "sysinit.target.wants").mkdir()
    (wanted.parent / "sysinit.target.wants/systemd-pstore.service").symlink_to("/usr/lib/systemd/system/systemd-pstore.service")
    (stage / "etc/fstab").write_text("tmpfs /var/lib tmpfs size=8m 0 0\n")
    (stage / "etc/systemd/system-generators").mkdir()
    (stage / "etc/systemd/system-generators/systemd-gpt-auto-generator").symlink_to("/dev/null")  # as the layer's recipe does
    (wanted.parent / "default.target").symlink_to("/usr/lib/systemd/system/multi-user.target")
    for name in ("getty-static.service", "getty.target", "systemd-update-done.service"):
        (wanted.parent / name).symlink_to("/dev/null")


def put(file, content):
    """A program of a root filesystem."""
    file.write_bytes(content)
    file.chmod(0o755)


def squashed(stage, squashfs, tools):
    """A root filesystem as it lies in a slot."""
    options = ["-noappend", "-no-progress", "-quiet", "-all-root", "-no-xattrs", "-comp", "zstd", "-Xcompression-level", "3"]
    subprocess.run([tools.path("mksquashfs"), stage, squashfs, *options], check=True)
    return squashfs


def put_on(disk, squashfs):
    """Puts a root filesystem into the first slot of an image."""
    part = next(part for part in layouts.read_gpt(disk)[1] if part.name == "rootfs-a")
    content = squashfs.read_bytes()
    assert len(content) <= part.size
    with open(disk, "r+b") as file:
        file.seek(part.offset)
        file.write(content)
