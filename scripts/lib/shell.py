"""A root shell in an appliance that runs in QEMU: at a terminal, or for one command."""

import argparse
import contextlib
import os
import select
import socket
import sys
import termios
import tty

import qemu
from steps import Failure, main, say

LEAVE = b"\x1d"


def cli():
    """scripts/shell"""
    parser = argparse.ArgumentParser(
        prog="scripts/shell",
        description="A root shell in an appliance that `scripts/run --keep` has started (it prints the command). With COMMAND, run "
        "that in it, print what it says and end with its status. One at a time.",
    )
    parser.add_argument("socket", metavar="SOCKET", help="where QEMU offers the appliance's shell")
    parser.add_argument("command", metavar="COMMAND", nargs="*", help="what to run in it instead of a shell")
    parser.add_argument("--timeout", type=float, default=60, metavar="SECONDS", help="the longest COMMAND may take (default: 60)")
    options = parser.parse_args()
    if options.command:
        return one_command(options)
    if not sys.stdin.isatty():
        raise Failure("a shell needs a terminal; give a COMMAND to run without one")
    with connected(socket.socket(socket.AF_UNIX), options.socket) as connection:
        say("Root in the appliance. Ctrl-] leaves; Ctrl-C and everything else goes to it.")
        interactive(connection)
    return 0


def one_command(options):
    """Runs one command; its status."""
    with connected(socket.socket(socket.AF_UNIX), options.socket):
        pass
    shell = qemu.Shell(options.socket, options.timeout)
    status, output = shell.command(" ".join(options.command), options.timeout)
    shell.close()
    sys.stdout.write(output)
    return status


def connected(connection, path):
    """The socket, connected."""
    try:
        connection.connect(path)
    except OSError as error:
        raise Failure(f"no appliance offers a shell at {path}: {error.strerror}") from error
    return connection


@contextlib.contextmanager
def raw(terminal):
    """The terminal passes every key on, while the block runs."""
    before = termios.tcgetattr(terminal)
    try:
        tty.setraw(terminal)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def interactive(connection):
    """Keys go there, what it says comes here, until Ctrl-] or until it is switched off."""
    here = sys.stdin.fileno()
    # Whoever ran a command before may have left it without echo and prompt.
    connection.sendall(b"stty sane; PS1='# '; PS2='> '\n")
    with raw(here):
        while True:
            ready, _, _ = select.select([here, connection], [], [])
            if here in ready:
                keys = os.read(here, 4096)
                if not keys or LEAVE in keys:
                    break
                connection.sendall(keys)
            if connection in ready:
                said = connection.recv(65536)
                if not said:
                    break
                os.write(sys.stdout.fileno(), said)
    say()


if __name__ == "__main__":
    main(cli)
