"""Quality over bytes: each clip as it comes back from its tokens at every budget, from the
autoencoder alone, from ordinary codecs, and as coarse blocks.

Clip after clip: of the pictures only those asked for are kept, of the rest numbers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..measure.codecs import Codec, Encoded
from ..measure.metrics import psnr, ssim
from ..tokenizer.tokenizer import Tokenizer
from ..train.data import to_video
from .learned import (
    INTERVAL,
    RESAMPLES,
    FeatureNetwork,
    Features,
    Frechet,
    feature_distance,
    frechet_distance,
)
from .run_clips import autocast

FRAME_STEP = 2  # the network looks at every second frame
BEYOND = (2, 4)  # times the bytes of the largest budget, where codecs are measured too


@dataclass(frozen=True)
class ClipSet:
    """Clips to measure on: uint8 `[T,S,S,3]` each, at the model's size and frame rate. `title` is
    for people, `clip_names` for the protocol; `shown` are the numbers of clips whose pictures are
    kept."""

    name: str
    title: str
    clips: Sequence[np.ndarray]
    clip_names: Sequence[str]
    shown: Sequence[int] = ()


@dataclass
class Way:
    """One way of keeping clips, and what became of each of them. `kind`: tokens, autoencoder,
    codec or blocks. `budget`: tokens per latent frame; `count`: tokens of a clip."""

    kind: str
    name: str
    budget: int | None = None
    count: int | None = None
    bytes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    distance: list[float] = field(default_factory=list)
    frames: list[Tensor] = field(default_factory=list)  # pooled features, of a clip each
    motion: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Shown:
    """What a way made of a clip, uint8 `[T,S,S,3]`, and its bytes, where it has any."""

    frames: np.ndarray
    bytes: int | None = None


@dataclass(frozen=True)
class Measured:
    """`rows`: one for each way, with means over clips. `halves`: the Fréchet distances between
    every second clip of the originals and the others, as a measure of what so few clips can tell.
    `pictures`: for each clip that is shown, by the name of the way, "original" among them."""

    clips: int
    seconds_of_video: float
    rows: list[dict[str, Any]]
    halves: dict[str, float]
    pictures: list[dict[str, Shown]]


class _Reference:
    """A clip, and what is compared with it."""

    def __init__(self, clip: np.ndarray, network: FeatureNetwork | None) -> None:
        self.video = to_video([clip])[0]
        self.network = network
        self.features = network and network(self.video[:, ::FRAME_STEP])

    def score(self, way: Way, video: Tensor, size: int | None, seconds: float | None) -> None:
        """Add to `way` how close `video` `[3,T,S,S]` comes."""
        way.psnr.append(psnr(self.video, video))
        way.ssim.append(ssim(self.video, video))
        if size is not None:
            way.bytes.append(size)
        if seconds is not None:
            way.seconds.append(seconds)
        if self.network is not None:
            assert isinstance(self.features, Features)
            found = self.network(video[:, ::FRAME_STEP])
            way.distance.append(feature_distance(self.features, found))
            way.frames.append(found.pooled)
            way.motion.append(found.motion)


def measure(
    tokenizer: Tokenizer, clips: ClipSet, network: FeatureNetwork | None, codecs: Sequence[Codec],
    dtype: torch.dtype,
) -> Measured:  # fmt: skip
    """Every way, on every clip. Without a `network` there are no learned measures."""
    ways: dict[str, Way] = {}
    pictures: list[dict[str, Shown]] = []
    reference = Way("original", "original")
    for i, clip in enumerate(tqdm(clips.clips, desc=f"measuring {clips.name}", mininterval=1)):
        of = _Reference(clip, network)
        if of.features:
            reference.frames.append(of.features.pooled)
            reference.motion.append(of.features.motion)
        shown = {"original": Shown(clip)} if i in clips.shown else {}
        for way, video, size, seconds in _ways(tokenizer, of.video, clip, codecs, dtype):
            of.score(ways.setdefault(way.name, way), video, size, seconds)
            if shown:
                shown[way.name] = Shown(_pixels(video), size)
        if shown:
            pictures.append(shown)
    frechet, halves = {}, {}
    if network is not None and len(clips.clips) > 1:
        for key, features in (("frames", reference.frames), ("motion", reference.motion)):
            frechet[key] = Frechet(features)
            two = (torch.cat(features[i::2]) for i in (0, 1))
            halves[key] = round(frechet_distance(*two), 3)
    rows = [_row(way, frechet) for way in ways.values()]
    seconds = sum(map(len, clips.clips)) / len(clips.clips) / tokenizer.config.fps
    return Measured(len(clips.clips), seconds, _distinct(rows), halves, pictures)


def _ways(
    tokenizer: Tokenizer, video: Tensor, clip: np.ndarray, codecs: Sequence[Codec],
    dtype: torch.dtype,
) -> Iterator[tuple[Way, Tensor, int | None, float | None]]:  # fmt: skip
    """Ways, what each makes of a clip `[3,T,S,S]`, its bytes and the seconds that decoding took."""
    c = tokenizer.config
    with autocast(tokenizer, dtype):
        tokens = tokenizer.encode(video)
    sizes = []
    for k in c.budgets:
        cut = tokens.truncate(k)
        sizes.append(cut.id_bytes)
        began = time.perf_counter()
        with autocast(tokenizer, dtype):
            made = tokenizer.decode(cut)[0]
        way = Way("tokens", f"k = {k}", k, cut.count)
        yield way, made, cut.id_bytes, time.perf_counter() - began
    with autocast(tokenizer, dtype):  # not around a yield: what measures would run under it
        made = autoencoded(tokenizer, video)
    yield Way("autoencoder", "autoencoder"), made, None, None
    for side in block_sides(c.size):
        yield Way("blocks", f"{side} px blocks"), in_blocks(video, side), None, None
    for codec in codecs:
        encoded = Encoded(codec, list(clip), c.fps)
        for limit in (0, *sizes, *(sizes[-1] * n for n in BEYOND)):
            coded = encoded.at(limit)
            pixels = to_video([np.stack(coded.frames)])[0]
            yield Way("codec", f"{codec.name} ≤ {limit}"), pixels, coded.bytes, None


@torch.inference_mode()
def autoencoded(tokenizer: Tokenizer, video: Tensor) -> Tensor:
    """A clip `[3,T,S,S]` through the autoencoder alone, chunk by chunk."""
    c = tokenizer.config
    parts = []
    for start in range(0, max(1, video.shape[1] - c.overlap), c.stride):
        chunk = video[:, start : start + c.chunk_frames]
        short = c.chunk_frames - chunk.shape[1]
        if short:  # filled as `encode` does
            chunk = torch.cat([chunk, chunk[:, -1:].expand(-1, short, -1, -1)], 1)
        latents = tokenizer.vae.encode(chunk[None].to(tokenizer.device, tokenizer.dtype))
        made = tokenizer.vae.decode(latents)[0].float().clamp(-1, 1).cpu()
        parts.append(made[:, c.overlap if start else 0 :])
    return torch.cat(parts, 1)[:, : video.shape[1]]


def block_sides(size: int) -> list[int]:
    """Sides in pixels: 8 and 16, and as many blocks a picture as these are at 64 px."""
    return sorted({8, 16, size // 8, size // 4}) if size > 32 else [size // 8, size // 4]


def in_blocks(video: Tensor, side: int) -> Tensor:
    """A clip `[3,T,S,S]` reduced to blocks of `side` px (each the mean), and enlarged again."""
    frames = video.transpose(0, 1)
    small = F.avg_pool2d(frames, side)
    large = F.interpolate(small, frames.shape[2:], mode="bicubic", align_corners=False)
    return large.clamp(-1, 1).transpose(0, 1)


def _pixels(video: Tensor) -> np.ndarray:
    frames = (video.clamp(-1, 1) + 1) * 127.5
    return frames.round().byte().permute(1, 2, 3, 0).numpy()


def _row(way: Way, frechet: dict[str, Frechet]) -> dict[str, Any]:
    """Means over clips, intervals by a bootstrap over them."""
    row: dict[str, Any] = {"kind": way.kind, "name": way.name, "budget": way.budget}
    if way.count is not None:
        row["tokens"] = way.count
    if way.bytes:
        row["bytes"] = round(float(np.mean(way.bytes)), 1)
    for key, values, digits in (
        ("psnr", way.psnr, 3), ("ssim", way.ssim, 4), ("feature_distance", way.distance, 4),
    ):  # fmt: skip
        if values:
            row[key] = round(float(np.mean(values)), digits)
            if len(values) > 1:
                row[f"{key}_interval"] = [round(v, digits) for v in mean_interval(values)]
    for key, distance in frechet.items():
        features = way.frames if key == "frames" else way.motion
        row[f"frechet_{key}"] = round(distance(features), 3)
        row[f"frechet_{key}_interval"] = [round(v, 3) for v in distance.interval(features)]
    if way.seconds:
        row["seconds"] = round(float(np.mean(way.seconds)), 2)
    return row


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Within which nine of ten means of resampled clips lie."""
    x = np.asarray(values)
    draws = np.random.default_rng(0).integers(len(x), size=(20 * RESAMPLES, len(x)))
    low, high = np.quantile(x[draws].mean(1), INTERVAL)
    return float(low), float(high)


def _distinct(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each codec's rows that differ, renamed by their own bytes: it goes no lower than its smallest
    stream, whatever it is asked for."""
    out: list[dict[str, Any]] = []
    seen = set()
    for row in rows:
        if row["kind"] == "codec":
            codec, limit = row["name"].split(" ≤ ")
            if (codec, row["bytes"]) in seen:
                continue
            seen.add((codec, row["bytes"]))
            row |= {"name": codec, "limit": int(limit)}
        out.append(row)
    return out
