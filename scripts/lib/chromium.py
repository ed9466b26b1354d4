"""A real browser for the tests of the page for people: the machine's own, else Debian's headless Chromium."""

import os
import shutil

import places
from steps import Failure, main, run, say, step

NAMES = ("chromium-headless-shell", "chromium", "google-chrome")
PACKAGE = "chromium-headless-shell"


def program():
    """The browser: `$INFERD_BROWSER`, one on the path, or, as root on Debian, one that is installed now."""
    chosen = os.environ.get("INFERD_BROWSER")
    with places.locked(places.cache() / "chromium"):
        return chosen or _found() or _installed()


def _found():
    return next(filter(None, map(shutil.which, NAMES)), None)


def _installed():
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Failure(f"the page for people is tested in a browser; as root: apt-get install {PACKAGE}, or set INFERD_BROWSER")
    with step(f"Installing {PACKAGE} with apt-get (the page for people is tested in a browser)"):
        run(["apt-get", "update", "-qq"])
        run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", PACKAGE, "fonts-dejavu-core"])
    return shutil.which(PACKAGE)


def cli():
    """Used by scripts/test, so that what is installed is seen: prints the browser."""
    say(program())
    return 0


if __name__ == "__main__":
    main(cli)
