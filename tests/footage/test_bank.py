"""Windows of real footage, textures, procedural clips drawn ahead, and their mixture."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch

from vft_lib.errors import VftError
from vft_lib.footage.bank import USUAL, ClipBank, Variation
from vft_lib.footage.footage import Footage, to_video
from vft_lib.footage.textures import textures
from vft_lib.footage.worlds import Worlds
from vft_lib.world.world import draw_scene, make_clip

AS_RECORDED = Variation(
    still_share=0, zoom=(1, 1), mirrored=0, backwards=0, moving_camera=0, layered=0, color=0
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def bank() -> ClipBank:
    clips = {f"clip{seed}": make_clip(seed, frames=20, size=40).video for seed in (1, 2)}
    clips["short"] = make_clip(3, frames=6, size=48).video[:, :36]
    return ClipBank(clips, textures(4, 40))


@pytest.mark.parametrize("crop", [None, 16])
def test_windows_have_the_shape_and_range_of_clips(bank: ClipBank, crop: int | None) -> None:
    video = bank.draw(generator(), 6, 17, 32, crop)
    side = crop or 32
    assert video.shape == (6, 3, 17, side, side)
    assert video.dtype == torch.float32
    assert torch.isfinite(video).all()
    assert -1 <= video.min() < -0.3 and 0.3 < video.max() <= 1
    assert torch.equal(video, bank.draw(generator(), 6, 17, 32, crop)), "the same draw"
    assert not torch.equal(video, bank.draw(generator(1), 6, 17, 32, crop))


def test_as_recorded_a_window_is_a_piece_of_its_clip() -> None:
    """At the clip's own size and unvaried: some frames in a row, or every second one."""
    clip = make_clip(5, frames=40, size=32).video
    bank = ClipBank({"one": clip}, {})
    whole = to_video(torch.from_numpy(clip)[None])[0]
    strides = set()
    for window in bank.draw(generator(), 12, 9, 32, vary=AS_RECORDED):
        pieces = [(k, whole[:, s : s + 8 * k + 1 : k]) for k in (1, 2) for s in range(40 - 8 * k)]
        found = [k for k, piece in pieces if torch.allclose(piece, window, atol=1e-3)]
        assert found
        strides.add(found[0])
    assert strides == {1, 2}


def test_a_clip_shorter_than_the_window_plays_forth_and_back() -> None:
    clip = make_clip(5, frames=5, size=32).video
    window = ClipBank({"one": clip}, {}).draw(generator(), 1, 9, 32, vary=AS_RECORDED)[0]
    whole = to_video(torch.from_numpy(clip)[None])[0]
    expected = whole[:, [0, 1, 2, 3, 4, 3, 2, 1, 0]]
    assert torch.allclose(window, expected, atol=1e-3)


def test_the_camera_moves_over_stills() -> None:
    bank = ClipBank({}, textures(2, 40))
    video = bank.draw(generator(), 8, 9, 32, vary=replace(USUAL, layered=0))
    change = (video[:, :, 1:] - video[:, :, :-1]).abs().mean((1, 2, 3, 4))
    assert (change > 0.002).all()


def test_windows_of_pictures_of_all_sizes_stay_inside_of_them() -> None:
    """A reading beyond its picture would meet its neighbour, which is white here."""
    clips = {
        f"{h}x{w}": np.zeros((7, h, w, 3), np.uint8) for h, w in ((32, 50), (50, 32), (33, 33))
    }
    stills = {"white": np.full((40, 40, 3), 255, np.uint8)}
    dark = replace(USUAL, still_share=0, layered=0, color=0)
    video = ClipBank(clips, stills).draw(generator(), 24, 9, 32, vary=dark)
    assert (video == -1).all()


def test_a_bank_of_nothing_is_refused() -> None:
    with pytest.raises(VftError, match="no clips and no stills"):
        ClipBank({}, {})


def test_textures_are_pictures_of_their_own_that_come_again() -> None:
    found = textures(4, 48)
    assert list(found) == ["noise-0", "leaves-1", "noise-2", "leaves-3"]
    for picture in found.values():
        assert picture.shape == (48, 48, 3)
        assert picture.dtype == np.uint8
        assert 4 < picture.std() < 110
    assert not np.array_equal(found["noise-0"], found["noise-2"])
    again = textures(2, 48)
    assert all(np.array_equal(again[name], found[name]) for name in again)
    assert not np.array_equal(textures(1, 48, seed=1)["noise-0"], found["noise-0"])
    # 1/f: neighbours are alike, far pixels are not.
    noise = found["noise-0"].astype(float)
    near, far = (np.abs(noise[d:] - noise[:-d]).mean() for d in (1, 24))
    assert near < 0.7 * far


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
def test_processes_draw_the_same_clips() -> None:
    seeds = [7, 8, 9, 10, 11]
    alone, ahead = Worlds(seeds, 9, 32), Worlds(seeds, 9, 32, processes=2)
    try:
        assert len(ahead) == alone.ready() == 5
        clips = ahead.clips([4, 0, 2])
        assert clips.shape == (3, 9, 32, 32, 3)
        assert torch.equal(clips, alone.clips([4, 0, 2]))
        assert np.array_equal(clips[1], draw_scene(7).render(9, 32))
        ahead.clips(range(5))
        assert ahead.ready() == 5
    finally:
        ahead.close()
    assert torch.equal(ahead.clips([1]), alone.clips([1])), "after that drawn when asked for"


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
def test_processes_that_have_ended_are_not_waited_for() -> None:
    worlds = Worlds(range(50), 9, 32, processes=1)
    try:
        for worker in worlds._workers:
            worker.terminate()
            worker.join()
        with pytest.raises(VftError, match="ended early"):
            worlds.clips([49])
    finally:
        worlds.close()


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_batch_has_its_share_of_worlds(share: float) -> None:
    """Told apart by their colour: all footage is black, unvaried."""
    bank = ClipBank({"black": np.zeros((9, 32, 32, 3), np.uint8)}, {})
    footage = Footage(bank, Worlds(range(6), 9, 32))
    counts = []
    for seed in range(12):
        video = footage.draw(generator(seed), 8, 5, 32, share, vary=AS_RECORDED)
        assert video.shape == (8, 3, 5, 32, 32)
        counts.append(int((video > -1).flatten(1).any(1).sum()))
    assert np.mean(counts) == pytest.approx(8 * share, abs=1.2)
    assert len(set(counts)) > 1 or share in (0, 1)


def test_footage_of_one_kind_takes_no_share(bank: ClipBank) -> None:
    world = Footage(None, Worlds([3], 9, 32)).draw(generator(), 2, 9, 32, 0.0)
    assert torch.equal(world[0], to_video(torch.from_numpy(draw_scene(3).render(9, 32))[None])[0])
    real = Footage(bank, None)
    assert torch.equal(real.draw(generator(), 2, 5, 32, 1.0), bank.draw(generator(), 2, 5, 32))
    part = Footage(None, Worlds([3], 9, 32)).draw(generator(), 3, 5, 32, 1.0, crop=16)
    assert part.shape == (3, 3, 5, 16, 16)
