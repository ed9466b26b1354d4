"""`symbols.py CHECKOUT...`: writes symbols.json, which of the symbols that we use each of these Buildroots has."""

import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "scripts/lib")]

import tree  # noqa: E402

FILE = HERE / "symbols.json"


def version(checkout):
    """What a checkout calls itself."""
    return re.search(r"(?m)^export BR2_VERSION := (\S+)", (checkout / "Makefile").read_text())[1]


def of(checkout):
    """The symbols that we use and this Buildroot has."""
    return sorted(tree.used() & tree.defined(checkout))


if __name__ == "__main__":
    found = {version(Path(checkout)): of(Path(checkout)) for checkout in sys.argv[1:]}
    FILE.write_text(json.dumps(found, indent=1) + "\n")
