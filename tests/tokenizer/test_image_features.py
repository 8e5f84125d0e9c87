"""Frames to features: which frames make which latent frame's, and what the network is shown."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vft_lib.errors import VftError
from vft_lib.image_features import ImageEncoder, image_features, positions_at, prepare

GREY = torch.tensor([0.485, 0.456, 0.406])  # normalized to 0
STD = torch.tensor([0.229, 0.224, 0.225])


def made(width: int = 3, tokens: int = 257) -> tuple[ImageEncoder, list[int]]:
    """A network whose every state is the picture's mean colour, and how many pictures it saw."""
    seen: list[int] = []

    def states(pictures: Tensor) -> Tensor:
        assert pictures.shape[1:] == (3, 224, 224)
        assert pictures.dtype == torch.float32
        seen.append(len(pictures))
        return pictures.mean((2, 3))[:, None, :].expand(-1, tokens, -1)

    return ImageEncoder("a network", width, torch.device("cpu"), states), seen


def clip(frames: int = 17) -> Tensor:
    """Frame i is grey at i/100 above the mean, in network units once normalized."""
    level = GREY[:, None] + torch.arange(frames) / 100 * STD[:, None]
    return (level * 2 - 1)[None, :, :, None, None].expand(1, 3, frames, 8, 8)


def test_the_frames_of_each_latent_frame() -> None:
    encoder, seen = made()
    mean = image_features(encoder, clip(), "avg", "per_frame")
    assert mean.grids is not None and mean.vectors is not None
    assert mean.grids.shape == (1, 5, 16, 16, 3)
    grids = (mean.grids[0, :, 7, 7, 1] * 100).tolist()
    assert grids == pytest.approx([0, 2.5, 6.5, 10.5, 14.5], abs=1e-3)
    firsts = (mean.vectors[0, :, 2] * 100).tolist()
    assert firsts == pytest.approx([0, 1, 5, 9, 13], abs=1e-3)
    assert seen == [17]


def test_only_the_frames_that_count_are_seen() -> None:
    encoder, seen = made()
    first = image_features(encoder, clip(), "first", "frame0", at_once=2)
    assert seen == [2, 2, 1]
    assert first.grids is not None and first.vectors is not None
    assert (first.grids[0, :, 0, 0, 0] * 100).tolist() == pytest.approx([0, 1, 5, 9, 13], abs=1e-3)
    assert first.vectors.shape == (1, 3)
    seen.clear()
    alone = image_features(encoder, clip(), None, "frame0")
    assert alone.grids is None
    assert seen == [1]


def test_clips_of_a_batch_do_not_mix() -> None:
    encoder, _ = made()
    both = torch.cat([clip(5), clip(5).flip(2)])
    features = image_features(encoder, both, "avg", "per_frame")
    for i in range(2):
        own = image_features(encoder, both[i : i + 1], "avg", "per_frame")
        assert own.grids is not None and own.vectors is not None
        assert features.grids is not None and features.vectors is not None
        assert torch.allclose(features.grids[i], own.grids[0], atol=1e-6)
        assert torch.allclose(features.vectors[i], own.vectors[0], atol=1e-6)


def test_the_resize_is_not_antialiased_and_clamped() -> None:
    """Of a checkerboard of single pixels every third is taken as it is; antialiasing would make it
    grey. At an edge the cubic overshoots."""
    low, high = ((v - GREY) / STD for v in (0.0, 1.0))
    board = (torch.arange(672)[:, None] + torch.arange(672)) % 2 * 2.0 - 1
    edge = torch.full((1, 3, 8, 8), -1.0)
    edge[..., 4:] = 1
    for frames in (board.expand(1, 3, 672, 672), edge):
        shown = prepare(frames)
        assert shown.shape == (1, 3, 224, 224)
        assert torch.allclose(shown.amin((0, 2, 3)), low, atol=1e-5)
        assert torch.allclose(shown.amax((0, 2, 3)), high, atol=1e-5)
    board = prepare(board.expand(1, 3, 672, 672))
    assert torch.allclose(board[0, :, ::2, ::2].flatten(1).std(1), torch.zeros(3), atol=1e-5)


def test_positions_of_the_same_grid_are_the_table_itself() -> None:
    table = torch.randn(1, 1 + 16 * 16, 4)
    assert torch.allclose(positions_at(table), table, atol=1e-6)
    assert positions_at(torch.randn(1, 1 + 37 * 37, 4)).shape == (1, 257, 4)


@pytest.mark.parametrize(
    ("video", "reason"),
    [(torch.zeros(1, 3, 16, 8, 8), "1 \\+ 4n"), (torch.zeros(1, 3, 5, 8, 9), "square")],
)
def test_another_shape(video: Tensor, reason: str) -> None:
    with pytest.raises(VftError, match=reason):
        image_features(made()[0], video, "avg")


def test_a_network_with_registers_is_refused() -> None:
    encoder, _ = made(tokens=261)
    with pytest.raises(VftError, match=r"a network gives states of shape \[5, 261, 3\]"):
        image_features(encoder, clip(5), "avg")
