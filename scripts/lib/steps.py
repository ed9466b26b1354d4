"""Steps: what a script is doing, how long it took, and what went wrong.

Every script here tells its story in numbered-by-time lines: one line when a step begins, one with the seconds when it
ends. A `Failure` is a sentence for the person at the keyboard; it never comes with a Python traceback.
"""

import contextlib
import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

TAIL_LINES = 40


class Failure(Exception):
    """Something the user can act on. `log` is a file whose last lines explain it."""

    def __init__(self, message, log=None):
        super().__init__(message)
        self.log = Path(log) if log else None


def say(text=""):
    """One line for the reader, at once even when the output is a pipe."""
    print(text, flush=True)


@contextlib.contextmanager
def step(what):
    """Announces `what`, then says how long it took. The value yielded is a list for a closing remark."""
    remark = []
    say(f"==> {what}")
    start = time.monotonic()
    yield remark
    note = f" ({', '.join(remark)})" if remark else ""
    say(f"    {time.monotonic() - start:.1f} s{note}")


def tail(path, lines=TAIL_LINES):
    """The last lines of a text file, whatever bytes are in it."""
    try:
        text = Path(path).read_bytes().decode("utf-8", "replace")
    except OSError as error:
        return f"(cannot read {path}: {error})"
    return "\n".join(text.splitlines()[-lines:])


def run(command, *, show=False, env=None, drop=(), cwd=None, stdin=None):
    """Runs a program and returns what it printed; that is shown when it fails, or as it comes with `show`.

    `env` is added to the environment, `drop` names what is taken out of it.
    """
    command = [str(part) for part in command]
    merged = {**os.environ, **{key: str(value) for key, value in (env or {}).items()}}
    merged = {key: value for key, value in merged.items() if key not in drop}
    try:
        done = subprocess.run(
            command,
            env=merged,
            cwd=cwd,
            stdin=stdin or subprocess.DEVNULL,
            stdout=None if show else subprocess.PIPE,
            stderr=None if show else subprocess.STDOUT,
            check=False,
        )
    except FileNotFoundError as error:
        raise Failure(f"{command[0]} is not installed ({error.strerror})") from error
    output = "" if show else done.stdout.decode("utf-8", "replace")
    if done.returncode != 0:
        shown = "" if show else "\n" + "\n".join(output.splitlines()[-TAIL_LINES:])
        raise Failure(f"`{shlex.join(command)}` ended with status {done.returncode}{shown}")
    return output


@contextlib.contextmanager
def workroom(folder):
    """A folder that is empty, this process's alone, and gone behind it; who comes second is told so."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    while True:
        folder.mkdir(exist_ok=True)
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(held), folder.stat()):
                break
        except BlockingIOError as error:
            os.close(held)
            raise Failure(f"somebody else is at work in {folder}; wait, or give another file to write") from error
        except FileNotFoundError:
            pass
        # It went with whoever had it before.
        os.close(held)
    try:
        for left in folder.iterdir():  # of one that was killed
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def main(function):
    """Runs a script's main function: a `Failure` becomes one clear message and status 1, Ctrl-C status 130."""
    try:
        sys.exit(function())
    except Failure as failure:
        say()
        print(f"error: {failure}", file=sys.stderr, flush=True)
        if failure.log:
            print(f"\nThe end of {failure.log}:\n{tail(failure.log)}", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        say()
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a full disk, no permission, a path that leads nowhere
        say()
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
