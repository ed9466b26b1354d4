"""The doubles that are workspaces of their own, built once in one folder."""

import subprocess

import places


def build(name):
    """Builds `tests/NAME`; the folder with what came of it."""
    manifest, target = places.ROOT / "tests" / name / "Cargo.toml", places.target() / "doubles"
    # Beside the other builds' caches; a build that has nothing to do takes no second.
    build = ["cargo", "build", "--locked", "--quiet", "--manifest-path", manifest, "--target-dir", target]
    subprocess.run([str(part) for part in build], cwd=places.ROOT, check=True)
    return target / "debug"
