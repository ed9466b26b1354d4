"""What the start script mounts for data, when its file system turns out to be damaged."""

import contextlib
import os
import re
import subprocess
from pathlib import Path

import hosttools
import places
import pytest

BOOT = places.ROOT / "rootfs-overlay/usr/libexec/inferd/boot"


@contextlib.contextmanager
def mounted(image, folder, options):
    """The image there, through a loop device; the device's name. Left out, or failed, as the tests of cards are (tests/flash)."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "ext4", "-o", f"loop,{options}", image, folder], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        assert os.environ.get("INFERD_NEED_LOOPS") != "1", done.stderr
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        yield next(Path(device).name for device, at, *_ in lines if at == str(folder))
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_damaged_data_partition_is_written_to_no_more_and_counts_its_errors(tmp_path):
    image, data = tmp_path / "data.img", tmp_path / "data"
    image.touch()
    os.truncate(image, 16 << 20)
    subprocess.run([hosttools.Tools(hosttools.IMAGE).path("mkfs.ext4"), "-q", "-F", image], check=True, capture_output=True)
    # The script's own options.
    [options] = re.findall(r'^mount_data\(\) \{ mount -t ext4 -o (\S+) "\$1" /data; \}$', BOOT.read_text(), re.MULTILINE)
    with mounted(image, data, options) as device:
        counted = Path("/sys/fs/ext4", device)
        (data / "before").write_text("x")
        assert (counted / "errors_count").read_text() == "0\n"
        (counted / "trigger_fs_error").write_text("as if something were damaged")
        with pytest.raises(OSError, match="Read-only"):
            (data / "behind").write_text("x")
        assert (data / "before").read_text() == "x", "it is read on"
        assert (counted / "errors_count").read_text() == "1\n"
    # What the daemon then sees at every later start.
    with mounted(image, tmp_path / "again", options) as device:
        assert Path("/sys/fs/ext4", device, "errors_count").read_text() == "1\n"
