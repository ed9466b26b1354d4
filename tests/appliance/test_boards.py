"""Every board that QEMU can play boots and answers; the one the other tests use is not repeated."""

import board as boards
import pytest


@pytest.mark.parametrize("name", boards.emulated())
def test_the_board_boots_and_answers_a_real_window(name, board, make_image, boot, walk):
    if name == board.name:
        pytest.skip("the other tests of this folder boot this board")
    other = boards.load(name)
    file, _ = make_image(f"{name}.img", board=other)
    with boot(file, board=other) as machine:
        answer = machine.infer(walk)
        assert len(answer["latent"]) == 64 and len(answer["motif_scores"]) == 12
