"""Quality over bytes: each clip as it comes back from its tokens at every budget, from the
autoencoder alone, from ordinary codecs, and as coarse blocks.

Clip after clip, as many at a time as there are threads: of the pictures only those asked for are
kept, of the rest numbers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..footage.footage import to_video
from ..measure.codecs import Codec, Coded, Encoded
from ..measure.metrics import psnr, ssim
from ..tokenizer.tokenizer import Tokenizer
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


@dataclass(frozen=True)
class Way:
    """One way of keeping clips. `kind`: tokens, autoencoder, codec or blocks. `budget`: tokens per
    latent frame; `count`: tokens of a clip."""

    kind: str
    name: str
    budget: int | None = None
    count: int | None = None


@dataclass(frozen=True)
class Score:
    """What became of one clip: its bytes, the seconds that decoding took, how close it is, and
    its features (`pooled` `[T,120]`, `motion` `[T-1,120]`). None: not measured."""

    psnr: float
    ssim: float
    bytes: int | None = None
    seconds: float | None = None
    distance: float | None = None
    pooled: Tensor | None = None
    motion: Tensor | None = None


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


def measure(
    tokenizer: Tokenizer, sets: Sequence[ClipSet], network: FeatureNetwork | None,
    codecs: Sequence[Codec], dtype: torch.dtype,
) -> dict[str, Measured]:  # fmt: skip
    """Every way, on every clip, by the name of the set. Without a `network` there are no learned
    measures.

    On a CPU each core has a clip of its own, with one thread: faster than all of them on one.
    """
    jobs = [(s.name, clip, i in s.shown) for s in sets for i, clip in enumerate(s.clips)]
    order = sorted(range(len(jobs)), key=lambda j: -len(jobs[j][1]))  # no long one comes last
    threads = torch.get_num_threads()
    workers = min(threads, len(jobs)) if tokenizer.device.type == "cpu" else 1

    def one(j: int) -> _Clip:
        return _Clip(tokenizer, jobs[j][1], network, codecs, dtype, jobs[j][2])

    try:
        with ThreadPoolExecutor(
            workers, initializer=torch.set_num_threads, initargs=(threads // workers,)
        ) as pool:
            done = pool.map(one, order)
            found = dict(zip(order, tqdm(done, "measuring clips", len(jobs), mininterval=1)))
    finally:
        torch.set_num_threads(threads)
    fps = tokenizer.config.fps
    return {
        s.name: _summary([found[j] for j, job in enumerate(jobs) if job[0] == s.name], s, fps)
        for s in sets
    }


def _summary(each: Sequence[_Clip], clips: ClipSet, fps: float) -> Measured:
    frechet, halves = {}, {}
    if each[0].features is not None and len(each) > 1:
        for key, of in (("pooled", "frames"), ("motion", "motion")):
            features = [getattr(clip.features, key) for clip in each]
            frechet[of] = Frechet(features)
            two = (torch.cat(features[i::2]) for i in (0, 1))
            halves[of] = round(frechet_distance(*two), 3)
    rows = [row_of(way, [clip.scores[way.name][1] for clip in each], frechet)
            for way, _ in each[0].scores.values()]  # fmt: skip
    seconds = sum(map(len, clips.clips)) / len(each) / fps
    pictures = [clip.shown for clip in each if clip.shown]
    return Measured(len(each), seconds, _distinct(rows), halves, pictures)


class _Clip:
    """One clip and all that becomes of it: `scores` by the name of the way, the pictures `shown`,
    the clip's own pooled `features`."""

    def __init__(
        self, tokenizer: Tokenizer, clip: np.ndarray, network: FeatureNetwork | None,
        codecs: Sequence[Codec], dtype: torch.dtype, keep: bool,
    ) -> None:  # fmt: skip
        video = to_video([clip])[0]
        own = None if network is None else network(video[:, ::FRAME_STEP])
        self.scores: dict[str, tuple[Way, Score]] = {}
        self.shown = {"original": Shown(clip)} if keep else {}
        last, score = None, None
        for way, made, size, seconds in _ways(tokenizer, video, clip, codecs, dtype):
            if score is None or made is not last:  # a codec gives one stream for many a limit
                score = Score(psnr(video, made), ssim(video, made), size, seconds)
                if network is not None and own is not None:
                    found = network(made[:, ::FRAME_STEP])
                    score = replace(
                        score, distance=feature_distance(own, found), pooled=found.pooled,
                        motion=found.motion,
                    )  # fmt: skip
            last = made
            self.scores[way.name] = way, score
            if keep:
                self.shown[way.name] = Shown(pixels(made), size)
        self.features = own and Features([], own.pooled)


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
        coded: Coded | None = None
        pixels = video
        for limit in (0, *sizes, *(sizes[-1] * n for n in BEYOND)):
            before, coded = coded, encoded.at(limit)
            if coded is not before:
                pixels = to_video([np.stack(coded.frames)])[0]
            yield Way("codec", f"{codec.name} ≤ {limit}"), pixels, coded.bytes, None


@torch.inference_mode()
def autoencoded(tokenizer: Tokenizer, video: Tensor, preview: bool = False) -> Tensor:
    """A clip `[3,T,S,S]` through the autoencoder alone, chunk by chunk. `preview`: with the preview
    decoder in place of its own."""
    c = tokenizer.config
    decode = tokenizer.draft_picture if preview else tokenizer.vae.decode
    parts = []
    for start in range(0, max(1, video.shape[1] - c.overlap), c.stride):
        chunk = video[:, start : start + c.chunk_frames]
        short = c.chunk_frames - chunk.shape[1]
        if short:  # filled as `encode` does
            chunk = torch.cat([chunk, chunk[:, -1:].expand(-1, short, -1, -1)], 1)
        latents = tokenizer.vae.encode(chunk[None].to(tokenizer.device, tokenizer.dtype))
        made = decode(latents)[0].float().clamp(-1, 1).cpu()
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


def pixels(video: Tensor) -> np.ndarray:
    frames = (video.clamp(-1, 1) + 1) * 127.5
    return frames.round().byte().permute(1, 2, 3, 0).numpy()


def row_of(way: Way, scores: Sequence[Score], frechet: dict[str, Frechet]) -> dict[str, Any]:
    """Means over clips, intervals by a bootstrap over them."""
    row: dict[str, Any] = {"kind": way.kind, "name": way.name, "budget": way.budget}
    if way.count is not None:
        row["tokens"] = way.count

    def values(name: str) -> list[Any]:
        return [v for v in (getattr(s, name) for s in scores) if v is not None]

    if values("bytes"):
        row["bytes"] = round(float(np.mean(values("bytes"))), 1)
    for key, name, digits in (
        ("psnr", "psnr", 3), ("ssim", "ssim", 4), ("feature_distance", "distance", 4),
    ):  # fmt: skip
        numbers = values(name)
        if numbers:
            row[key] = round(float(np.mean(numbers)), digits)
            if len(numbers) > 1:
                row[f"{key}_interval"] = [round(v, digits) for v in mean_interval(numbers)]
    for key, distance in frechet.items():
        features = values("pooled" if key == "frames" else "motion")
        row[f"frechet_{key}"] = round(distance(features), 3)
        row[f"frechet_{key}_interval"] = [round(v, 3) for v in distance.interval(features)]
    if values("seconds"):
        row["seconds"] = round(float(np.mean(values("seconds"))), 2)
    return row


def mean_interval(values: Sequence[float], resamples: int = 20 * RESAMPLES) -> tuple[float, float]:
    """Within which nine of ten means of resampled clips lie."""
    x = np.asarray(values)
    drawn = np.random.default_rng(0).integers(len(x), size=(resamples, len(x)))
    low, high = np.quantile(x[drawn].mean(1), INTERVAL)
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
