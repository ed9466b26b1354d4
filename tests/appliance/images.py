"""Images for tests: every input pinned, the daemon and the tools built when they are missing."""

import engines
import glibc
import image
import places
import programs
import rust
from appliance import given

EPOCH, BUILD_ID = 1_760_000_000, "test"
# A dozen images, each for a few boots: a second of a core for each and not half a minute.
SQUEEZE = 6
# What ships, where a test wants it to the last byte.
SHIPPED = image.Recipe.squeeze


def daemon(board):
    """The static daemon for a board, as it is; built when it is missing."""
    program = places.target() / board.rust_target / "release/inferd"
    return program if program.is_file() else rust.build("inferd", board.rust_target)


def inferctl():
    """The operator's tool, for this machine. Always asked for: what lies there may be of another day, and lack what is tested."""
    return rust.build_for_host("inferctl")


def vendors(board):
    """The engines of vendors for a board, their program as it is; built when it is missing."""
    architecture = board.architecture_in_rust
    program = places.target() / f"{architecture}-unknown-linux-gnu/release" / engines.PACKAGE
    if not program.is_file():
        return engines.prepare(architecture)
    return engines.Engines(program, engines.onnxruntime(architecture), glibc.Glibc(architecture))


def assemble(board, output, models=(places.DEFAULT_MODEL,), inferd=None, minimal=False, parts=None, **options):
    """Writes an image to `output`, with this daemon; returns the facts about it. `options` are those of image.Recipe. Where an image of
    another builder is tested, it is that one (given.py)."""
    options.setdefault("squeeze", SQUEEZE)
    if finished := given.image():
        options.pop("vendors", None)
        recipe = image.Recipe(board, inferd, list(models), epoch=EPOCH, build_id=BUILD_ID, **options)
        return given.adapted(finished, recipe, output, minimal, parts)
    engines_of_vendors = None if minimal else options.pop("vendors", None) or vendors(board)
    carried = None if minimal else programs.prepare(board)
    recipe = image.Recipe(board, inferd or daemon(board), list(models), engines_of_vendors, carried, epoch=EPOCH, build_id=BUILD_ID, **options)
    return image.assemble(recipe, output, parts)
