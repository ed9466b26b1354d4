"""Images for tests: every input pinned, the daemon and the tools built when they are missing."""

import image
import places
import rust

EPOCH, BUILD_ID = 1_760_000_000, "test"


def daemon(board):
    """The static daemon for a board, as it is; built when it is missing."""
    program = places.target() / board.rust_target / "release/inferd"
    return program if program.is_file() else rust.build("inferd", board.rust_target)


def inferctl():
    """The operator's tool, for this machine."""
    program = places.target() / "debug/inferctl"
    return program if program.is_file() else rust.build_for_host("inferctl")


def assemble(board, output, models=(places.DEFAULT_MODEL,), inferd=None, **options):
    """Writes an image to `output`, with this daemon; returns the facts about it. `options` are those of image.Recipe."""
    recipe = image.Recipe(board, inferd or daemon(board), list(models), epoch=EPOCH, build_id=BUILD_ID, **options)
    return image.assemble(recipe, output)
