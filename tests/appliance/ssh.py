"""A client of SSH that logs in to a booted machine."""

import os
import subprocess

import hosttools
import qemu


class Ssh:
    """Two pairs of keys and a client."""

    def __init__(self, folder):
        self.folder, self.tools = folder, hosttools.Tools(["dropbear-bin"])
        self.keys = {name: self._pair(name) for name in ("given", "other")}

    def _pair(self, name):
        """Makes one; its public half."""
        run = {"check": True, "capture_output": True, "text": True}
        subprocess.run([self.tools.path("dropbearkey"), "-t", "ed25519", "-f", self.folder / name], **run)
        told = subprocess.run([self.tools.path("dropbearkey"), "-y", "-f", self.folder / name], **run).stdout
        return next(line for line in told.splitlines() if line.startswith("ssh-ed25519 "))

    def login(self, machine, name, command):
        """Runs a command in a machine as whoever has this key."""
        port = qemu.free_port()
        machine.qmp.execute("human-monitor-command", **{"command-line": f"hostfwd_add net tcp:127.0.0.1:{port}-:22"})
        client = [self.tools.path("dbclient"), "-y", "-y", "-T", "-i", self.folder / name, "-p", str(port), "root@127.0.0.1", command]
        environment = {"HOME": str(self.folder), "PATH": os.environ["PATH"]}
        return subprocess.run(client, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, env=environment, check=False)
