"""Is the order of the tokens what one hopes for: layout first, detail later? Nobody tells the
tokens so; what a prefix holds is measured here, for any tokenizer.

*Layout* is a clip as 8 x 8 blocks, *detail* is what that leaves out: two parts at right angles,
compared by correlation each (0: nothing in common, 1: equal up to contrast).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ..errors import VftError
from ..evaluation.classifier import probe
from ..evaluation.run_clips import autocast, decoded_latents, decoded_video
from ..footage.footage import to_video
from ..footage.worlds import HELD_OUT_SEEDS
from ..tokenizer.tokenizer import Tokenizer
from ..train.tokenizer import ids_of_latents
from .rollout import rollout, seen_share

BLOCKS = 8  # of a side
PROBED_FROM = HELD_OUT_SEEDS.start + 1000  # beyond the clips that are decoded


@dataclass(frozen=True)
class Order:
    """What was measured. `rows`: one for each budget, from 0. `probe`: accuracy by label and
    budget (0: chance), {} where it was left out. Pictures: `original` `[N,3,T,H,W]`, `own` and
    `swapped` by budget, `shares` `[N,t,K,h',w']` of :func:`rollout`."""

    rows: list[dict[str, Any]]
    probe: dict[str, dict[int, float]]
    original: Tensor
    own: dict[int, Tensor]
    swapped: dict[int, Tensor]
    shares: Tensor


def measure_order(
    tokenizer: Tokenizer, clips: Sequence[Any], dtype: torch.dtype, probe_clips: int = 480,
    steps: int | None = None,
) -> Order:  # fmt: skip
    """Of clips uint8 `[T,S,S,3]`, one chunk each: decoded from their first k tokens a latent frame;
    from their first k with the rest of the next clip's; and where the tokens look. VftError for
    fewer than two clips, or a tokenizer that reads image features."""
    c = tokenizer.config
    if len(clips) < 2:
        raise VftError(f"got {len(clips)} clip; tokens are swapped between two or more")
    if c.encoder.reads_images:
        raise VftError(f"{c.name} reads image features; the order is measured of those that do not")
    latents = []
    with torch.no_grad():
        for clip in tqdm(clips, "to latents", mininterval=1):
            with autocast(tokenizer, dtype):
                video = to_video([clip]).to(tokenizer.device)
                latents.append(tokenizer.vae.encode(video).float())
        z = torch.cat(latents)
        ids = ids_of_latents(tokenizer, z)
        shares = torch.cat([rollout(tokenizer.encoder, x.to(tokenizer.dtype)) for x in z.split(1)])

    def seen(of: Tensor, desc: str) -> Tensor:
        made = decoded_latents(tokenizer, of, dtype, steps=steps, desc=desc)
        return decoded_video(tokenizer, made, dtype)

    original = decoded_video(tokenizer, z.cpu(), dtype)
    parts, other = split(original), ids.roll(-1, 0)
    own, swapped, rows = {}, {}, []
    for k in (0, *c.budgets):
        row: dict[str, Any] = {"k": k}
        if k:
            own[k] = seen(ids[:, :, :k], f"k = {k}")
            for name, mine, its in zip(("layout", "detail"), parts, split(own[k])):
                row[name] = correlation(mine, its)
            row["sees"] = round(float(seen_share(shares[:, :, k - 1]).mean()), 4)
        swapped[k] = seen(torch.cat([ids[:, :, :k], other[:, :, k:]], 2), f"{k} swapped")
        for name, mine, its in zip(("layout", "detail"), parts, split(swapped[k])):
            row[f"{name}_of_first"] = correlation(mine, its)
            row[f"{name}_of_rest"] = correlation(mine.roll(-1, 0), its)
        rows.append(row)
    found = {}
    if probe_clips:
        tested = PROBED_FROM + probe_clips
        held = range(tested, tested + max(1, probe_clips // 4))
        found = probe(tokenizer, range(PROBED_FROM, tested), held, dtype)
    return Order(rows, found, original, own, swapped, shares)


def split(video: Tensor) -> tuple[Tensor, Tensor]:
    """Layout and detail of `[N,3,T,H,W]`, float32; the mean color of all clips is in neither."""
    x = video.float().movedim(1, 2)
    frames = x.flatten(0, 1)
    small = F.adaptive_avg_pool2d(frames, BLOCKS)
    layout = F.interpolate(small, frames.shape[2:], mode="nearest").view_as(x)
    return layout - layout.mean((0, 1, 3, 4), keepdim=True), x - layout


def correlation(a: Tensor, b: Tensor) -> float:
    """Of `[N,...]` and its like: the mean over clips of the cosine between them."""
    found = F.cosine_similarity(a.flatten(1), b.flatten(1), dim=1)
    return round(float(found.mean()), 4)
