"""Parts of the tokenizer's training: alignment with image features, swapped ids, places."""

from __future__ import annotations

import torch
from conftest import TINY
from train_tasks import tokenizer_task

from vft_lib.train.loop import step_generator
from vft_lib.train.places import places


def test_alignment_teaches_the_decoder_and_the_encoder() -> None:
    task = tokenizer_task().train()
    assert task.alignment is not None
    losses = task(step=0, generator=step_generator(0, 0), progress=0.0)
    assert 0.5 < float(losses["align"]) < 1.5, "1 - cosine of what knows nothing yet"
    losses["loss"].backward()
    first = task.decoder.trunk.blocks[0].attention.wq.weight.grad  # type: ignore[union-attr]
    assert first is not None
    assert first.abs().sum() > 0  # type: ignore[operator]
    assert task.encoder.registers.grad is not None
    assert not task.noted, "features of a step are kept for the next"


def test_samples_between_steps_leave_nothing_for_the_alignment() -> None:
    task = tokenizer_task().eval()
    with torch.no_grad():
        task.decoder.hidden(
            torch.randn(1, *TINY.latent_shape), task.decoder.modulate(torch.ones(1), torch.float32),
            torch.randn(1, TINY.latent_frames, 2, TINY.decoder.trunk.dim),
        )  # fmt: skip
    assert not task.noted


def test_some_codes_of_every_second_clip_are_its_neighbour_s() -> None:
    task = tokenizer_task(freeze_encoder=True)
    ids = torch.arange(400)[:, None, None].expand(400, 5, 16)
    swapped = task._swapped(ids, torch.Generator().manual_seed(0))
    foreign = swapped != ids
    assert torch.equal(swapped[foreign], ids.roll(1, 0)[foreign])
    share = foreign.float().mean((1, 2))
    assert 0.4 < (share == 0).float().mean() < 0.6
    assert 0.25 < share.max() < 0.5


def test_registers_begin_at_places_coarse_to_fine() -> None:
    found = places(21)
    assert found[0] == (0.5, 0.5)
    assert len(set(found[1:5])) == 4
    assert {y for y, _ in found[1:5]} == {0.25, 0.75}
    assert len(set(found[5:21])) == 16
    assert {(int(2 * y), int(2 * x)) for y, x in found[5:9]} == {(0, 0), (0, 1), (1, 0), (1, 1)}
