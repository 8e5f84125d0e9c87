"""The judge of shapes: it finds the main object, and names its outline and nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vft_lib.evaluation.classifier import labels_of
from vft_lib.evaluation.outline import (
    Namer,
    Outline,
    OutlineRecipe,
    OutlineTask,
    _turned,
    blur,
    cut_out,
)
from vft_lib.train.loop import Schedule, train
from vft_lib.world import world

CPU = torch.device("cpu")


def test_the_mask_is_where_the_main_object_is() -> None:
    """Nowhere else does its colour matter; there a plain object has its own colour."""
    for seed in range(12):
        scene = world.draw_scene(seed)
        plain = dataclasses.replace(scene.main, texture="plain")
        red, blue = (
            dataclasses.replace(scene, main=dataclasses.replace(plain, color=c)).render(3, 64)
            for c in ("red", "blue")
        )
        mask = scene.mask(3, 64)
        assert np.allclose(red[mask == 0], blue[mask == 0], atol=1)  # less than half of 1/255
        assert np.allclose(red[mask == 255], (230, 26, 26), atol=2)
        assert (mask > 127).any()


def test_patches_do_not_depend_on_place_and_size() -> None:
    at = torch.arange(64) + 0.5

    def ring(x: float, y: float, radius: float) -> Tensor:
        r = ((at[:, None] - y) ** 2 + (at - x) ** 2).sqrt() / radius
        return (2 * radius * (0.26 - (r - 0.74).abs()) + 0.5).clamp(0, 1)[None]

    masks = torch.stack([ring(32, 32, 16), ring(20, 40, 11), ring(46, 17, 13)])
    patches = cut_out(masks, 24)
    middle, *others = patches[:, 0]
    assert middle[12, 12] < 0.05, "the hole of the ring"
    assert middle.max() > 0.95
    for other in others:
        assert (other - middle).abs().mean() < 0.05
    assert (patches[0, 1] > 0.99).all()
    cut = cut_out(ring(2, 32, 16)[None], 24)[0, 1]
    assert (cut[:, 0] == 0).all(), "beyond the picture's edge"
    assert (cut[:, -1] > 0.99).all()
    assert torch.isfinite(cut_out(torch.zeros(1, 1, 64, 64), 24)).all()


def test_turned_pictures_keep_their_masks() -> None:
    x = torch.rand(200, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    x[:, 1] = x[:, 0]
    turned = _turned(x, torch.Generator().manual_seed(1))
    assert torch.equal(turned[:, 0], turned[:, 1])
    ways = set()
    for before, after in zip(x[:, 0], turned[:, 0]):
        same = [
            (k, m)
            for k in range(4)
            for m in (False, True)
            if torch.equal(torch.rot90(before, k).flip(1) if m else torch.rot90(before, k), after)
        ]
        assert same
        ways.add(same[0])
    assert len(ways) == 8


def test_blur_spreads_a_point_by_its_sigma() -> None:
    x = torch.zeros(3, 1, 15, 15)
    x[:, 0, 7, 7] = 1
    y = blur(x, torch.tensor([0.0, 0.7, 1.2]))
    assert torch.allclose(y[0], x[0])
    assert torch.allclose(y.sum((1, 2, 3)), torch.ones(3), atol=1e-5)
    at = torch.arange(15.0) - 7
    spread = (y[:, 0].sum(1) * at**2).sum(1).sqrt()
    assert torch.allclose(spread[1:], torch.tensor([0.7, 1.2]), atol=0.05)


def pictures_of(scenes: list[world.Scene]) -> Tensor:
    """The first picture of each, with its mask, uint8 `[N,1,4,64,64]`."""
    each = [np.concatenate([s.render(1, 64)[0], s.mask(1, 64)[0, ..., None]], -1) for s in scenes]
    return torch.from_numpy(np.stack(each)).permute(0, 3, 1, 2)[:, None]


@pytest.mark.slow
def test_the_finder_finds_objects_it_has_not_seen(tmp_path: Path) -> None:
    scenes = [world.draw_scene(seed) for seed in range(240)]
    pictures, shapes = pictures_of(scenes), labels_of(scenes)["shape"]
    schedule = Schedule(90, 12, lr=3e-3, matrix_lr=6e-3, warmup=10, ema=0.9)
    recipe = OutlineRecipe("none", schedule, widths=(16, 16, 32))
    torch.manual_seed(0)
    task = OutlineTask(recipe, pictures[:200], shapes[:200], pictures[:0], shapes[:0])

    def overlap(outline: Outline) -> float:
        rgb, mask = pictures[200:, 0, :3].float() / 127.5 - 1, pictures[200:, 0, 3] > 127
        with torch.no_grad():
            found = outline(rgb)[0][:, 0] > 0
        return float((found & mask).sum() / (found | mask).sum())

    before = overlap(task.outline)
    task.load_state_dict(train(task, schedule, tmp_path, device=CPU, dtype=torch.float32))
    after = overlap(task.outline)
    assert before < 0.2
    assert after > 0.4


def test_the_namer_names_outlines_it_has_not_seen() -> None:
    scenes = [world.draw_scene(seed) for seed in range(640)]
    masks = torch.stack([torch.from_numpy(s.mask(1, 64)) for s in scenes]) / 255
    patches, shapes = cut_out(masks, Outline.SIDE), labels_of(scenes)["shape"]
    torch.manual_seed(0)
    namer, g = Namer(Outline.SIDE), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(namer.parameters(), lr=2e-3)
    for _ in range(80):
        batch = torch.randint(540, (32,), generator=g)
        F.cross_entropy(namer(patches[batch]), shapes[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        right = (namer(patches[540:]).argmax(1) == shapes[540:]).float().mean()
    assert right > 0.7, "chance is 0.125"


def test_a_clip_is_named_by_all_its_pictures() -> None:
    """The mean over pictures decides, whatever their order; other sizes are brought to 64 px."""
    torch.manual_seed(0)
    outline = Outline((8, 8, 8)).eval()
    video = torch.rand(3, 3, 5, 64, 64) * 2 - 1
    said = torch.stack([outline(p)[1].log_softmax(1) for p in video.unbind(2)]).mean(0)
    assert torch.equal(outline.read(video), said.argmax(1))
    assert torch.equal(outline.read(video.flip(2)), said.argmax(1))
    large = video.repeat_interleave(2, 3).repeat_interleave(2, 4)
    assert outline.read(large).shape == (3,)
