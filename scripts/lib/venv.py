"""Python packages in virtual environments below the cache, made anew when their requirements change."""

import argparse
import hashlib
import os
import shutil
import sys
from pathlib import Path

import places
from steps import Failure, main, run, say, step


def ensure(name, requirements):
    """The virtual environment `name` that holds `requirements` (the text of a requirements file)."""
    key = hashlib.sha256(f"{sys.version}\n{requirements}".encode()).hexdigest()[:10]
    home = places.cache() / "venv" / f"{name}-{key}"
    stamp = home / ".complete"
    with places.locked(home):
        if stamp.is_file():
            return home
        ensure_venv_module()
        with step(f"Installing Python packages for {name} into {home}"):
            run([sys.executable, "-m", "venv", "--clear", home])
            listing = home / "requirements.txt"
            listing.write_text(requirements)
            run([home / "bin/pip", "install", "--quiet", "--disable-pip-version-check", "-r", listing])
        stamp.touch()
    return home


def ensure_venv_module():
    """Debian splits the venv module off: as root it is installed, else asked for."""
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            raise Failure("Python's venv module is missing; as root: apt-get install python3-venv") from None
        with step("Installing python3-venv with apt-get"):
            run(["apt-get", "update", "-qq"])
            run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "python3-venv"])


def read(path):
    """A requirements file's text with the files it includes (`-r FILE`) put in."""
    lines = []
    for line in Path(path).read_text().splitlines():
        if line.startswith("-r "):
            lines.append(read(Path(path).parent / line[3:].strip()))
        else:
            lines.append(line)
    return "\n".join(lines)


def cli():
    """Used by scripts/test: prints the Python of an environment for a requirements file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("requirements", type=Path)
    options = parser.parse_args()
    # Progress goes to standard error: standard output is the answer.
    out, sys.stdout = sys.stdout, sys.stderr
    home = ensure(options.name, read(options.requirements))
    sys.stdout = out
    say(home / "bin/python")
    return 0


if __name__ == "__main__":
    main(cli)
