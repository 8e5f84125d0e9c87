"""PSNR and SSIM, against values worked out by other means."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vft_lib.errors import VftError
from vft_lib.measure.metrics import Quality, psnr, ssim, whole_psnr


def noisy(frames: int = 5, side: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    a = torch.rand(3, frames, side, side + 3, generator=g) * 2 - 1
    return a, (a + 0.2 * torch.randn(a.shape, generator=g)).clamp(-1, 1)


def test_equal_videos_are_as_good_as_can_be() -> None:
    a, _ = noisy()
    assert psnr(a, a) == 100
    assert ssim(a, a) == pytest.approx(1, abs=1e-6)


def test_psnr_of_a_known_error_is_the_mean_over_frames() -> None:
    a = torch.zeros(3, 2, 16, 16)
    b = a.clone()
    b[:, 0], b[:, 1] = 0.2, 0.02  # 20 and 40 dB of a range of 2
    assert psnr(a, b) == pytest.approx(30, abs=1e-3)


def test_ssim_agrees_with_the_formula_written_out_for_one_window() -> None:
    a, b = noisy(1, 11)
    a, b = a[..., :11], b[..., :11]
    units = [((v[:, 0].double() + 1) / 2).numpy() for v in (a, b)]
    g = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    w = np.outer(g, g) / g.sum() ** 2
    scores = []
    for x, y in zip(*units, strict=True):
        mx, my = (w * x).sum(), (w * y).sum()
        vx, vy = (w * (x - mx) ** 2).sum(), (w * (y - my) ** 2).sum()
        cov = (w * (x - mx) * (y - my)).sum()
        score = (2 * mx * my + 0.01**2) * (2 * cov + 0.03**2)
        scores.append(score / ((mx**2 + my**2 + 0.01**2) * (vx + vy + 0.03**2)))
    assert ssim(a, b) == pytest.approx(np.mean(scores), abs=1e-5)


def test_in_pieces_equals_whole() -> None:
    a, b = noisy(7)
    pieces = Quality()
    for part in (slice(0, 1), slice(1, 5), slice(5, 7)):
        pieces.update(a[:, part], b[:, part])
    assert pieces.frames == 7
    assert pieces.psnr == pytest.approx(psnr(a, b), rel=1e-6)
    assert pieces.ssim == pytest.approx(ssim(a, b), rel=1e-6)


def test_more_noise_is_worse() -> None:
    a, b = noisy()
    c = a + 2 * (b - a)
    assert psnr(a, c) < psnr(a, b)
    assert ssim(a, c) < ssim(a, b) < 1


def test_a_picture_smaller_than_the_window_and_half_precision_are_measured() -> None:
    a, b = noisy(2, 6)
    assert 0 < ssim(a, b) < 1
    assert math.isfinite(psnr(a.half(), b.half()))


def test_what_cannot_be_compared_is_refused() -> None:
    a, b = noisy()
    with pytest.raises(VftError, match="of one shape"):
        psnr(a, b[:, :2])
    with pytest.raises(VftError, match="of one shape"):
        ssim(a[None], b[None])
    with pytest.raises(VftError, match="no frames"):
        _ = Quality().psnr


def test_of_the_whole_clip_is_one_mean_square_error() -> None:
    a = torch.zeros(3, 2, 16, 16)
    b = a.clone()
    b[:, 0], b[:, 1] = 0.2, 0.02
    assert whole_psnr(a, b) == pytest.approx(10 * math.log10(4 / ((0.04 + 0.0004) / 2)), rel=1e-5)
    assert whole_psnr(a, a) == 100


@pytest.mark.parametrize("padded", [False, True])
def test_the_fields_ssim_is_that_of_pictures_from_zero_to_one(padded: bool) -> None:
    """Window by window in float64; black lies beyond the edge, not the grey of 0 in [-1,1]."""
    a, b = noisy(2)
    x, y = (((v.double() + 1) / 2).flatten(0, 1).numpy() for v in (a, b))
    if padded:
        x, y = (np.pad(v, ((0, 0), (5, 5), (5, 5))) for v in (x, y))
    g = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    w = np.outer(g, g) / g.sum() ** 2

    def mean(v: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(v, (11, 11), axis=(1, 2))
        return (windows * w).sum((-1, -2))

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    score = (2 * mx * my + 0.01**2) * (2 * cov + 0.03**2)
    score = score / ((mx**2 + my**2 + 0.01**2) * (vx + vy + 0.03**2))
    assert score.shape[1:] == ((20, 23) if padded else (10, 13))
    assert ssim(a, b, padded) == pytest.approx(score.mean(), rel=1e-4)


def test_torchmetrics_agrees_where_its_windows_lie_inside_the_picture() -> None:
    """Beyond the edge it takes what is mirrored, which neither protocol does."""
    image = pytest.importorskip("torchmetrics.functional.image", reason="needs torchmetrics")
    a, b = noisy(3)
    x, y = (((v + 1) / 2).transpose(0, 1) for v in (a, b))
    theirs = image.peak_signal_noise_ratio(y, x, data_range=1.0)
    assert whole_psnr(a, b) == pytest.approx(float(theirs), rel=1e-5)
    whole = image.structural_similarity_index_measure(y, x, data_range=1.0, return_full_image=True)
    inside = whole[1][..., 5:-5, 5:-5]
    assert ssim(a, b) == pytest.approx(float(inside.mean()), rel=1e-4)
