"""The second teacher of the tokenizer: true outlines and labels, and heads that learn them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from conftest import TINY
from train_tasks import CPU, SCHEDULE, tokenizer_task
from vft_lib.train.alignment import outlines

from vft_lib.evaluation.probe import LABELS, UNKNOWN, labels_of
from vft_lib.train.loop import train
from vft_lib.train.tokenizer import _swapped
from vft_lib.world import world


def test_outlines_are_those_of_the_frames_that_a_latent_frame_stands_for() -> None:
    """Latent frame i ends with frame 4i: its mask is in `last`, half-way to it lies the other."""
    scene = world.draw_scene(7)
    masks = outlines([scene, None], latent_frames=5, size=32)
    whole = scene.mask(17, 16)
    assert masks.shape == (2, 5, 2, 16, 16)
    for i in range(5):
        assert np.array_equal(masks[0, i, 1], whole[4 * i])
        assert np.array_equal(masks[0, i, 0], whole[max(0, 4 * i - 2)])
    assert not masks[1].any()


def test_a_head_that_is_dropped_learns_the_outlines(tmp_path: Path) -> None:
    """Its logits lie where the pixels of the masks do: each patch speaks for its own place."""
    task = tokenizer_task()
    hidden = torch.zeros(1, 5, 2, 2, TINY.decoder.trunk.dim)
    hidden[0, 3, 0, 1] = 1.0  # latent frame 3, first row, second column
    with torch.no_grad():
        task.alignment.outline.weight.fill_(1.0)
        task.alignment.outline.bias.zero_()
        lit = task.alignment.drawn(hidden)[0] > 0
    expected = torch.zeros(5, 2, 16, 16, dtype=torch.bool)
    expected[3, :, :8, 8:] = True
    assert torch.equal(lit, expected)
    schedule = dataclasses.replace(SCHEDULE, steps=60, lr=3e-3, matrix_lr=6e-3)
    train(tokenizer_task(schedule), schedule, tmp_path, device=CPU, dtype=torch.float32)
    rows = [json.loads(r)["outline"] for r in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-1] < 0.8 * rows[0]


def test_labels_are_those_of_the_world_and_unknown_for_real_clips() -> None:
    found = labels_of([world.draw_scene(7), None, world.draw_scene(8)])
    for i, seed in ((0, 7), (2, 8)):
        clip = world.make_clip(seed, frames=1, size=16)
        for name, values in LABELS.items():
            assert values[found[name][i]] == getattr(clip, name)
    assert all(found[name][1] == UNKNOWN for name in LABELS)


def test_the_tokens_that_are_kept_are_held_to_the_labels() -> None:
    """A head sees the kept tokens and no others, and real clips do not count."""
    task = tokenizer_task()
    align, known = task.alignment, task.alignment.labels["shape"] != UNKNOWN
    assert known.any() and not known.all()
    index = torch.cat([known.nonzero()[:3, 0], (~known).nonzero()[:1, 0]])
    codes = torch.randn(4, 5, TINY.registers, 6, requires_grad=True)
    losses = align.said_losses(codes, torch.tensor([1, 2, 8, 8]), index)
    sum(losses.values(), torch.zeros(())).backward()
    assert codes.grad is not None
    told = codes.grad.abs().amax((1, 3)) > 0
    assert told.sum(1).tolist() == [1, 2, 8, 0]
    assert told[0, 0] and told[1, :2].all()
    only_real = align.said_losses(codes, torch.full((4,), 8), index[3:].expand(4))
    assert not any(loss.any() for loss in only_real.values())


def test_what_the_decoder_shows_is_held_to_the_labels() -> None:
    """The mean over a clip's patches decides, and real clips do not count."""
    task = tokenizer_task()
    align, known = task.alignment, task.alignment.labels["shape"] != UNKNOWN
    index = torch.cat([known.nonzero()[:3, 0], (~known).nonzero()[:1, 0]])
    hidden = torch.randn(4, 5, 2, 2, TINY.decoder.trunk.dim, requires_grad=True)
    losses = align.shown_losses(hidden, index)
    assert losses.keys() == LABELS.keys()
    sum(losses.values(), torch.zeros(())).backward()
    assert hidden.grad is not None
    assert torch.equal(hidden.grad, hidden.grad[:, :1, :1, :1].expand_as(hidden))
    assert (hidden.grad.abs().amax((1, 2, 3, 4)) > 0).tolist() == [True, True, True, False]
    truth = align.labels["color"][index[:3]]
    with torch.no_grad():
        logits = align.shown["color"](hidden[:3].mean((1, 2, 3))).log_softmax(1)
        expected = -logits.gather(1, truth[:, None]).mean()
    assert torch.allclose(losses["color"], expected)


def test_some_codes_of_every_second_clip_are_its_neighbour_s() -> None:
    ids = torch.arange(400)[:, None, None].expand(400, 5, 16)
    swapped = _swapped(ids, 0.3, torch.Generator().manual_seed(0))
    foreign = swapped != ids
    assert torch.equal(swapped[foreign], ids.roll(1, 0)[foreign])
    share = foreign.float().mean((1, 2))
    assert 0.4 < (share == 0).float().mean() < 0.6
    assert 0.25 < share.max() < 0.5
    assert torch.equal(_swapped(ids, 0.0, torch.Generator()), ids)
