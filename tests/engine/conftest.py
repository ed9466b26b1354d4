"""The engine's own program, built once for the run."""

import json
import subprocess

import pytest
import rust


@pytest.fixture(scope="session")
def check():
    """`check(directories)` loads each on the built-in engine and runs its golden vectors: a verdict and why, by
    directory name."""
    program = rust.build_for_tests() / "examples/engine_check"

    def run(directories):
        output = subprocess.run([program, *map(str, directories)], capture_output=True, text=True, check=True).stdout
        rows = [json.loads(line) for line in output.splitlines()]
        assert len(rows) == len(directories)
        return {directory.name: (row["verdict"], row["why"]) for directory, row in zip(directories, rows, strict=True)}

    return run
