"""From a checkout to a card: the operator's tool built, the board's image found or made, its block map beside it, and `inferctl flash`."""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import board as boards
import image
import places
import release
import roots
import rust
from steps import Failure, main, say, step


def arguments():
    """The command line; what is not known here is `inferctl flash`'s."""
    parser = argparse.ArgumentParser(
        prog="scripts/flash",
        usage="scripts/flash --board BOARD [--new | --image FILE] [--root FILE] [--dev] [--minimal] [DEVICE] [options of inferctl flash]",
        description="Write a board's image to a card: the newest one that scripts/image made here, or a new one where there is none. "
        "Without DEVICE it asks which of the removable media. Options that are not named here go to `inferctl flash`: --yes, --list, "
        "--unmount, --provision inferd.toml, --json, --file (its --help has all).",
    )
    parser.add_argument("--board", choices=boards.names(), help="which board; only --list needs none")
    parser.add_argument("--image", type=Path, metavar="FILE", help="this image (.img or .img.zst), which must be the board's")
    parser.add_argument("--new", action="store_true", help="make the image anew, whatever is there")
    parser.add_argument(
        "--root", type=Path, metavar="FILE", help="the image that believes this root document (`inferctl root create`), made where there "
        "is none; one without accepts no bundle",
    )
    parser.add_argument("--dev", action="store_true", help="the image with a root shell and the developer's keys; never ship it")
    parser.add_argument("--minimal", action="store_true", help=image.MINIMAL)
    parser.add_argument("--api-key", metavar="KEY", help="put on the card; handed on in a file, so that sudo's command line does not show it")
    parser.add_argument("--no-sudo", action="store_true", help="never ask for root's rights")
    return parser.parse_known_args()


def cli():
    """scripts/flash"""
    options, rest = arguments()
    listing = "--list" in rest
    if not listing and not options.board:
        raise Failure("which board? --board " + " | ".join(boards.names()))
    # What --json prints is for a program: only inferctl's answer goes there, and what this and others say goes to standard error.
    answers = os.dup(1)
    if "--json" in rest:
        os.dup2(2, 1)
    with step("Building inferctl (the first build takes some minutes)"):
        inferctl = rust.build_for_host("inferctl")
    if listing:
        return ended([inferctl, "flash", *rest], answers)
    file = found(options)
    say(f"    {file}")
    warn(file, asks="--yes" not in rest and sys.stdin.isatty())
    command = [str(part) for part in (inferctl, "flash", file, *rest, "--board", options.board)]
    if os.geteuid() != 0 and "--file" not in rest and not options.no_sudo and shutil.which("sudo"):
        command = ["sudo", *command]
    with tempfile.NamedTemporaryFile("w", prefix="inferd-flash-") as key:  # for its owner's eyes only
        if options.api_key is not None:
            key.write(options.api_key)
            key.flush()
            command += ["--api-key-file", key.name]
        say(f"==> {shlex.join(command)}")
        sys.stdout.flush()
        return ended(command, answers)


def ended(command, answers):
    """The exit code of a program that Ctrl-C is for: it says how the card was left, and this waits for it. `answers`: where its output goes."""
    # A handler and not SIG_IGN, which the program would inherit. It is not killed when it is slow: below sudo that is nobody's but root's to do.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        with subprocess.Popen(command, stdout=answers) as running:
            return running.wait()
    finally:
        signal.signal(signal.SIGINT, before)


def found(options):
    """The image: the one named, the one that is there, or a new one; with a block map that is not older."""
    if options.image:
        if options.new:
            raise Failure("--new makes an image, --image names one")
        if options.root:
            raise Failure("--root is for an image that is made, --image names one")
        if not options.image.is_file():
            raise Failure(f"{options.image} is no file")
        return options.image
    asked = image.digest(roots.judged(options.root)) if options.root else None
    board = boards.load(options.board)
    file = image.default_output(board, dev=options.dev, minimal=options.minimal)
    if options.new or not file.is_file() or (asked and facts_of(file).get("root_sha256") != asked):
        if options.board not in boards.assembled():
            raise Failure(
                f"scripts/image makes no image for {options.board} (it does for {', '.join(boards.assembled())}); "
                "build one with buildroot/ or yocto/ and name it with --image"
            )
        kind = [f"--{name}" for name in ("dev", "minimal") if getattr(options, name)]
        kind += ["--root", options.root] if options.root else []
        made = subprocess.run([sys.executable, "-B", places.ROOT / "scripts/lib/image.py", "--board", options.board, *kind], check=False)
        if made.returncode != 0:
            raise Failure("the image was not made, see above")
    beside = file.with_name(file.name + ".bmap")
    if not beside.is_file() or beside.stat().st_mtime_ns <= file.stat().st_mtime_ns:
        with step(f"Mapping {file.name}"):
            beside.write_text(release.bmap(file))
    return file


def facts_of(file):
    """What the JSON beside an image says of it; nothing where there is none."""
    beside = file.with_name(f"{file.name.removesuffix('.zst')}.json")
    return release.facts_of(beside) if beside.is_file() else {}


def warn(file, *, asks):
    """Says what the facts beside an image have against it; one that does not start as it is, is written only when a person wants that."""
    facts = facts_of(file)
    if "root_sha256" in facts and facts["root_sha256"] is None:
        say(f"    {roots.NONE}")
    if facts.get("dev"):
        say("    a dev image, with a root shell and the developer's API key: never ship it")
    if facts.get("startable", True):
        return
    say(f"    the board does not start from it as it is: it lacks {' and '.join(facts.get('missing', ())) or 'something'}")
    if not asks or input("Write it all the same? Type yes: ").strip() != "yes":
        raise Failure("it was not written; `inferctl flash` writes it without a question about that")


if __name__ == "__main__":
    main(cli)
