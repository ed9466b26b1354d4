"""What a target file imports: this folder's drivers, resources and strategy, under names that labgrid knows then."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(path) for path in (TESTS, TESTS.parent / "scripts/lib") if str(path) not in sys.path]

from hil import protocols, qemu_target, storage, strategy  # noqa: E402, F401
