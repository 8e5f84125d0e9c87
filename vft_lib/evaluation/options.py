"""What options of the sampler cost and give, on held-out real clips: what a checkpoint's draft,
normal and best settings are chosen from.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from ..autoencoder.preview import PreviewDecoder
from ..config.sampling import Quality
from ..errors import VftError
from ..files.atomic import replacing, write_bytes
from ..files.tensor_files import digest
from ..footage.footage import to_video
from ..measure.bench import operations
from ..measure.metrics import psnr
from ..models.loading import load_tokenizer
from ..tokenizer.sampling import Sampling
from ..tokenizer.tokenizer import Tokenizer
from ..tokens import Tokens
from ..train.loop import autocast_dtype
from .card import cell, clips_of_pack, say, spread
from .curves import FRAME_STEP, Score, Shown, Way, autoencoded, pixels, row_of
from .figures import MEASURES, strip
from .learned import FeatureNetwork, Features, Frechet, feature_distance
from .run_clips import autocast

PLAIN: dict[str, Any] = {"method": "euler", "shift": 1.0, "interval": (0.0, 1.0), "reuse": 0.0}


def _option(steps: int, guidance: float = 1.0, apg: bool = False, **fields: Any) -> Sampling:
    return Sampling(steps, guidance, apg, **(PLAIN | fields))


OPTIONS: dict[str, Sampling] = {
    **{f"{n} steps": _option(n) for n in (1, 2, 3, 4, 10, 25)},
    **{f"{n} steps, shift {s:g}": _option(n, shift=s) for n, s in ((2, 2.0), (4, 2.0), (4, 0.5))},
    "heun, 2 steps": _option(2, method="heun"),
    **{f"25 steps, reuse {r:g}": _option(25, reuse=r) for r in (0.1, 0.4)},
    **{f"{n} steps, guidance 1.5": _option(n, 1.5) for n in (2, 4)},
    **{f"{n} steps, guidance 2": _option(n, 2.0) for n in (2, 4, 10)},
    "10 steps, projected guidance 3": _option(10, 3.0, apg=True),
    **{
        f"10 steps, guidance 2 from {a:g} to {b:g}": _option(10, 2.0, interval=(a, b))
        for a, b in ((0.0, 0.5), (0.5, 1.0))
    },
    "10 steps, guidance 2, reuse 0.2": _option(10, 2.0, reuse=0.2),
    **{q: Sampling(quality=q) for q in get_args(Quality)},
}
"""By name; the last three are what the checkpoint says."""
PREVIEW = "preview decoder"  # alone: the row beside the autoencoder's


@dataclass(frozen=True)
class OptionsRecipe:
    """`clips` held-out ones of the `pack`, spread over it; `budget` tokens per latent frame;
    `options`: names of OPTIONS. `dtype`: of autocast (None: automatic)."""

    pack: Path
    clips: int = 24
    budget: int = 32
    options: Sequence[str] = tuple(OPTIONS)
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class _Clip:
    video: Tensor
    tokens: Tokens
    features: Features


def write_options(name: str, out: Path, device: torch.device, recipe: OptionsRecipe) -> None:
    """Measure options of the tokenizer `name`, print the table, and write options.md, options.json
    and strip-options.png into `out`. Rows that options.json holds of the same tokenizer, clips and
    budget are kept, so that an interrupted run goes on and options can be added. VftError for an
    unknown option, a pack without such clips, or packages that are not there."""
    began = time.perf_counter()
    unknown = set(recipe.options) - OPTIONS.keys()
    if unknown:
        raise VftError(f"no option {min(unknown)!r}; choose among: {', '.join(OPTIONS)}")
    network, tokenizer = FeatureNetwork(device), load_tokenizer(name, device=device)
    dtype, c = recipe.dtype or autocast_dtype(device), tokenizer.config
    found = clips_of_pack(recipe.pack, c)
    names = [sorted(found)[i] for i in spread(len(found), recipe.clips)]
    if len(names) < 2:
        raise VftError(f"{recipe.pack}: it holds no two held-out clips of {c.chunk_frames} frames")
    file, shown = out / "options.json", spread(len(names), 4)
    facts = {
        "tokenizer": c.name, "fingerprint": tokenizer.decoder_mark, "budget": recipe.budget,
        "frames": c.chunk_frames, "autocast": str(dtype).removeprefix("torch."), "clips": names,
        "network": network.file.name,
    }  # fmt: skip
    rows = _rows_of(file, facts)
    clips = [_clip(tokenizer, found[n], recipe.budget, network, dtype) for n in names]
    frechet = {
        "frames": Frechet([clip.features.pooled for clip in clips]),
        "motion": Frechet([clip.features.motion for clip in clips]),
    }
    say(began, f"{len(clips)} clips encoded")
    settled: dict[str, Sampling | None] = {"autoencoder": None}
    if tokenizer.preview is not None:
        settled[PREVIEW] = None
    settled |= {option: OPTIONS[option].settled(c.sampling) for option in recipe.options}
    pictures = [{"original": Shown(found[names[i]])} for i in shown]
    table = []
    for option, sampling in settled.items():
        key = _key(option, sampling, tokenizer.preview)
        kept = out / "pictures" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
        if key not in rows or not kept.exists():
            before = tokenizer.passes.run
            made = [_made(tokenizer, clip, option, sampling, dtype) for clip in clips]
            scores = [_score(clip, video, network) for clip, (video, _) in zip(clips, made)]
            row = row_of(Way("option", key, recipe.budget), scores, frechet)
            row["passes"] = round((tokenizer.passes.run - before) / len(clips), 2)
            row["gflop"] = round(sum(gflop for _, gflop in made) / len(clips), 4)
            with replacing(kept) as tmp, tmp.open("wb") as f:
                np.save(f, np.stack([pixels(made[i][0]) for i in shown]))
            rows[key] = row
            write_bytes(file, (json.dumps(facts | {"rows": rows}, indent=1) + "\n").encode())
            say(began, f"{option}: feature distance {row['feature_distance']}")
        for clip, frames in zip(pictures, np.load(kept, allow_pickle=False)):
            clip[option] = Shown(frames)
        table.append(rows[key] | {"name": option})
    strip(pictures, ["original", *settled], out / "strip-options.png")
    text = "\n".join(_table(facts, table)) + "\n"
    write_bytes(out / "options.md", text.encode())
    print(text)


def _key(option: str, sampling: Sampling | None, preview: PreviewDecoder | None) -> str:
    """The same for what samples the same, and makes pixels the same way."""
    key, previewed = option, option == PREVIEW
    if sampling is not None:
        recipe, previewed = sampling.recipe, sampling.quality == "draft"
        plain = replace(recipe, apg=False, interval=(0.0, 1.0))
        key = repr(plain if recipe.guidance == 1 else recipe)
    if previewed and preview is not None:
        key += f" preview {digest('', preview.state_dict())}"
    return key


def _rows_of(file: Path, facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Those of an earlier run with the same facts, by the recipe."""
    (file.parent / "pictures").mkdir(parents=True, exist_ok=True)
    there = json.loads(file.read_text("utf-8")) if file.exists() else {}
    return there["rows"] if {k: there.get(k) for k in facts} == facts else {}


def _clip(
    tokenizer: Tokenizer, clip: np.ndarray, budget: int, network: FeatureNetwork, dtype: torch.dtype
) -> _Clip:
    video = to_video([clip])[0]
    with autocast(tokenizer, dtype):
        tokens = tokenizer.encode(video, budget=budget)
    return _Clip(video, tokens, network(video[:, ::FRAME_STEP]))


def _made(
    tokenizer: Tokenizer, clip: _Clip, option: str, sampling: Sampling | None, dtype: torch.dtype
) -> tuple[Tensor, float]:
    """A clip decoded (without `sampling`: through the autoencoder alone, or its encoder and the
    preview decoder) `[3,T,S,S]`, and billions of operations from ids to pixels (of decoder and
    encoder)."""
    made: list[Tensor] = []

    def run() -> None:
        with autocast(tokenizer, dtype):
            if sampling is None:
                made.append(autoencoded(tokenizer, clip.video, option == PREVIEW))
            else:
                made.append(tokenizer.decode(clip.tokens, sampling)[0])

    flops = operations(run)
    return made[0], flops / 1e9


def _score(clip: _Clip, made: Tensor, network: FeatureNetwork) -> Score:
    own = network(made[:, ::FRAME_STEP])
    return Score(
        psnr(clip.video, made), 0.0, distance=feature_distance(clip.features, own),
        pooled=own.pooled, motion=own.motion,
    )  # fmt: skip


def _table(facts: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    keys = ("feature_distance", "frechet_frames", "frechet_motion", "psnr")
    heads = ("option", "passes", "GFLOP", *(MEASURES[k] for k in keys))
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for r in rows:
        cost = (f"{r['passes']:.3g}", f"{r['gflop']:.3g}")
        yield f"| {' | '.join([r['name'], *cost, *(cell(r, k) for k in keys)])} |"
    yield (
        f"\n{len(facts['clips'])} held-out real clips of {facts['frames']} frames, k = "
        f"{facts['budget']}, {facts['tokenizer']} ({facts['fingerprint']}), {facts['network']}, "
        f"autocast {facts['autocast']}, seed 0; intervals: 90 % of a bootstrap over clips. Passes "
        "and GFLOP of a chunk, from ids to pixels."
    )
