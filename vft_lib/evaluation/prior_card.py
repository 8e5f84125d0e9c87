"""The measurements of the prior's model card: does the video show what the caption says?

A judge that was trained on clips of the procedural world reads colour, shape and motion from
generated ones. Colour and motion it reads from latents, those that the tokenizer's flow decoder
hands to the video autoencoder, and shapes from the pixels that the autoencoder makes of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ..errors import VftError
from ..files.atomic import replacing, write_bytes
from ..footage.footage import to_video
from ..footage.worlds import HELD_OUT_SEEDS
from ..models.loading import load_prior, load_tokenizer
from ..prior.prior import Prior
from ..tokenizer.tokenizer import Tokenizer
from ..tokens import Tokens
from ..train.loop import autocast_dtype
from ..train.presets import Preset
from ..train.tokenizer import ids_of_latents
from ..world import world
from .classifier import LABELS, labels_of
from .judge import Judge, pixels_of, trained_judge
from .run_clips import autocast, decoded_latents, decoded_video, encode_scenes

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SWEEP = (1.0, 2.0, 3.0, 4.5)  # guidance scales
SHEET_CLIPS = 8
ACTS = ("first act", "last act")  # of a story: what its ends show


def write_prior_card(preset: Preset, device: torch.device, args: argparse.Namespace) -> None:
    """Measure, print the tables, and write results.json, table.md and sheet.png into
    `args.out/prior-card`. The judge is kept in `args.out`."""
    began = time.perf_counter()
    dtype = autocast_dtype(device) if args.dtype == "auto" else getattr(torch, args.dtype)
    tokenizer = load_tokenizer(args.tokenizer, device=device, dtype=torch.float32)
    prior = load_prior(args.prior, device=device, dtype=torch.float32).bind(tokenizer)
    c, budgets = tokenizer.config, _budgets(prior)
    _check(prior, args)
    judge = trained_judge(args.steps, preset.tokenizer, args.out, tokenizer, dtype)
    for name, facts in judge.facts.items():
        _say(began, f"{name} ready, on held-out clips of the run: {facts['run_held_out']}")

    scenes = [world.draw_scene(s) for s in HELD_OUT_SEEDS[: args.clips]]
    labels = labels_of(scenes)
    latents = encode_scenes(tokenizer, scenes, dtype)
    ids = ids_of_latents(tokenizer, latents)
    results: dict[str, Any] = {
        "prior": prior.config.name, "fingerprint": prior.fingerprint,
        "tokenizer": c.name, "tokenizer_fingerprint": tokenizer.fingerprint,
        "clips": len(scenes), "seeds": [HELD_OUT_SEEDS.start, HELD_OUT_SEEDS.start + len(scenes)],
        "sampling": {
            "steps": c.sampling.steps, "guidance": c.sampling.guidance,
            "autocast": str(dtype).removeprefix("torch."),
            "prior_guidance": {k: prior.config.guidance_for(k) for k in budgets},
            "temperature": prior.config.temperature,
        },
        "judge": judge.facts,
        "chance": _chance(),
        "real": judge.accuracy(labels, video=pixels_of(scenes, c.chunk_frames, c.size)),
        "autoencoder": judge.accuracy(labels, latents, decoded_video(tokenizer, latents, dtype)),
    }  # fmt: skip
    _say(began, f"the clips: {results['real']}, autoencoder: {results['autoencoder']}")

    def read(of: dict[int, Tensor], title: str) -> tuple[dict[int, Any], dict[int, Tensor]]:
        """Accuracy and the first clips' pictures by budget, of ids by budget."""
        rows, shown = {}, {}
        for k, x in of.items():
            made = decoded_latents(tokenizer, x, dtype, desc=f"{title}, k = {k}")
            video = decoded_video(tokenizer, made, dtype)
            rows[k] = judge.accuracy(labels, made, video)
            shown[k] = video[:SHEET_CLIPS].float()
        _say(began, f"{title}: {rows}")
        return rows, shown

    captions, motions = [s.caption() for s in scenes], [s.main.motion for s in scenes]
    usual = prior.config.guidance_for
    results["reconstructed"], _ = read({k: ids[:, :, :k] for k in budgets}, "reconstructed")
    ids_written = written(prior, budgets, usual, caption=captions)
    results["caption"], shown = read(ids_written, "from captions")
    some = [budgets[i] for i in (0, len(budgets) // 2, -1)]
    if prior.config.frames > c.chunk_frames:
        results["stories"] = _stories(tokenizer, prior, judge, args.stories, some[1:], dtype)
        _say(began, f"stories: {results['stories']}")
    results["class"] = {}
    for k, x in written(prior, some, usual, class_name=motions).items():
        made = decoded_latents(tokenizer, x, dtype, desc=f"from classes, k = {k}")
        results["class"][k] = {"motion": judge.accuracy(labels, made)["motion"]}
    own = ids[:, :, : prior.config.registers]
    results["bits_per_id"] = _bits(prior, tokenizer, own, budgets, captions, motions)
    for scale in SWEEP if args.sweep else ():
        # what has been measured at this guidance is not written again
        new = [k for k in args.sweep if usual(k) != scale or k not in budgets]
        rows = {k: results["caption"][k] for k in args.sweep if k not in new}
        if new:
            at = dict.fromkeys(new, scale)
            more = written(prior, new, at.__getitem__, caption=captions)
            rows |= read(more, f"guidance {scale:g}")[0]
        for k in args.sweep:
            results.setdefault("sweep", {}).setdefault(k, {})[f"{scale:g}"] = rows[k]
    results["seconds"] = round(time.perf_counter() - began, 1)

    folder = args.out / "prior-card"
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(tables(results)) + "\n"
    write_bytes(folder / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    write_bytes(folder / "table.md", text.encode())
    save_sheet(folder / "sheet.png", captions[:SHEET_CLIPS], {k: shown[k] for k in some})
    _say(began, f"wrote {folder}")
    print(text)


def _check(prior: Prior, args: argparse.Namespace) -> None:
    c = prior.config
    if c.text_encoder is None or c.classes != world.MOTIONS:
        raise VftError(
            f"prior {c.name!r} does not take captions and the procedural world's motions: the card "
            "is for priors of `vft train prior`"
        )
    if not 1 <= args.clips <= len(HELD_OUT_SEEDS):
        raise VftError(f"--clips {args.clips}: choose 1 to {len(HELD_OUT_SEEDS)}")
    if args.sweep is not None:
        args.sweep = sorted({prior.check_budget(k) for k in args.sweep or [c.registers // 4]})
        unknown = [k for k in args.sweep if k & (k - 1) and k != c.registers]
        if unknown:
            raise VftError(f"--sweep {unknown[0]}: choose powers of two up to {c.registers}")


def _budgets(prior: Prior) -> list[int]:
    """Powers of two up to what the prior writes, and that; of more than five every second one."""
    most = prior.config.registers
    powers = [k for k in (1 << i for i in range(20)) if k < most]
    return [*(powers if len(powers) < 5 else powers[::2]), most]


def _chance() -> dict[str, float]:
    each = {name: 1 / len(values) for name, values in LABELS.items()}
    return each | {"all": float(np.prod(list(each.values())))}


def written(
    prior: Prior, budgets: list[int], scale_of: Callable[[int], float], batch: int = 32,
    frames: int | None = None, **words: list[str],
) -> dict[int, Tensor]:  # fmt: skip
    """Ids `[N,t,k]` of clips of `frames` (default: one chunk) by budget; clip i is written with
    seed i. At one guidance the small budgets
    are the first ids of the largest, so those are written once."""
    frames = prior.config.chunk_frames if frames is None else frames
    groups: dict[float, list[int]] = {}
    for k in budgets:
        groups.setdefault(scale_of(k), []).append(k)
    ((name, values),) = words.items()
    ids: dict[int, Tensor] = {}
    for scale, ks in groups.items():
        parts = []
        starts = range(0, len(values), batch)
        for start in tqdm(starts, desc=f"writing from {name}, guidance {scale:g}", mininterval=1):
            some = values[start : start + batch]
            seeds = list(range(start, start + len(some)))
            tokens = prior.generate(
                budget=max(ks), guidance=scale, seed=seeds, frames=frames,
                caption=some if name == "caption" else None,
                class_name=some if name == "class_name" else None,
            )  # fmt: skip
            parts.append(tokens.ids)
        whole = torch.cat(parts)
        ids |= {k: whole[:, :, :k] for k in ks}
    return {k: ids[k] for k in budgets}


def _stories(
    tokenizer: Tokenizer, prior: Prior, judge: Judge, count: int, budgets: list[int],
    dtype: torch.dtype,
) -> dict[str, Any]:  # fmt: skip
    """What the judge reads from both ends of the longest clips, whose captions tell of two or three
    acts."""
    frames, size = prior.config.frames, tokenizer.config.size
    seeds = [s for s in HELD_OUT_SEEDS[: 4 * count] if world.draw_story(s).main.then][:count]
    scenes = [world.draw_story(s) for s in seeds]
    last = [world.draw_scene(s, motion=x.main.then[-1]) for s, x in zip(seeds, scenes)]
    with autocast(tokenizer, dtype):
        drawn = tqdm(scenes, desc="encoding stories", mininterval=1)
        own = [tokenizer.encode(to_video([s.render(frames, size)])) for s in drawn]
    ids = torch.cat([tokens.ids for tokens in own])
    usual, captions = prior.config.guidance_for, [s.caption() for s in scenes]
    sources = {
        "own tokens": {k: ids[:, :, :k] for k in budgets},
        "caption": written(prior, budgets, usual, frames=frames, caption=captions),
    }
    labels = labels_of(scenes), labels_of(last)
    found: dict[str, Any] = {"clips": len(scenes), "frames": frames}
    for name, of in sources.items():
        found[name] = {}
        for k, x in of.items():
            tokens = replace(own[0], ids=x)
            found[name][k] = dict(zip(ACTS, judge.ends(tokenizer, tokens, labels, dtype)))
    return found


def _bits(
    prior: Prior,
    tokenizer: Tokenizer,
    ids: Tensor,
    budgets: list[int],
    captions: list[str],
    motions: list[str],
) -> dict[str, dict[int, float]]:
    """-log2 p of real clips' ids: the mean of the first k registers, by condition and k."""
    c, batch = tokenizer.config, 32
    rows = {}
    for name in ("caption", "class", "nothing"):
        parts = []
        for start in range(0, len(ids), batch):
            part = slice(start, start + batch)
            tokens = Tokens(
                ids=ids[part], tokenizer=c.name, fingerprint=tokenizer.fingerprint,
                frames=c.chunk_frames, fps=c.fps, size=(c.size, c.size),
            )  # fmt: skip
            parts.append(prior.surprise(
                tokens, caption=captions[part] if name == "caption" else None,
                class_name=motions[part] if name == "class" else None,
            ))  # fmt: skip
        bits = torch.cat(parts)  # (N, t, K)
        rows[name] = {k: round(float(bits[:, :, :k].mean()), 3) for k in budgets}
    return rows


def tables(results: dict[str, Any]) -> Iterator[str]:
    """The results as Markdown."""
    n, ks = results["clips"], list(results["caption"])
    heads = " | ".join(f"k = {k}" for k in ks)
    chance = results["chance"]
    yield f"What the judge reads from clips of {n} held-out worlds\n"
    yield f"| | chance | the clip itself | through the autoencoder | {heads} |"
    yield "|---|" + "---|" * (3 + len(ks))
    sources = (
        ("reconstructed", "decoded from its own tokens"), ("caption", "generated from its caption")
    )  # fmt: skip
    for label in ("color", "shape", "motion", "all"):
        name = {"color": "colour", "all": "all three"}.get(label, label)
        for source, words in sources:
            ceilings = ["", ""]
            if source == "reconstructed":
                found = (results[of].get(label) for of in ("real", "autoencoder"))
                ceilings = ["" if x is None else f"{x:.0%}" for x in found]
            row = " | ".join([*ceilings, *(f"{results[source][k][label]:.0%}" for k in ks)])
            yield f"| {name}, {words} | {chance[label]:.1%} | {row} |"
    by_class = results["class"]
    row = " | ".join(f"{by_class[k]['motion']:.0%}" if k in by_class else "" for k in ks)
    yield f"| motion, generated from its class | {chance['motion']:.1%} |  |  | {row} |"
    yield ""
    guidance = results["sampling"]["prior_guidance"]
    scales = ", ".join(f"{scale:g} at k = {k}" for k, scale in guidance.items())
    yield (
        f"{_about(results['judge'])} Sampling: {results['sampling']['steps']} steps, guidance "
        f"{results['sampling']['guidance']:g}; prior: temperature "
        f"{results['sampling']['temperature']:g}, guidance {scales}."
    )
    yield "\nBits per id of the held-out clips, mean of the first k registers (16 as stored)\n"
    yield f"| the prior is given | {heads} |"
    yield "|---|" + "---|" * len(ks)
    for name, bits in results["bits_per_id"].items():
        yield f"| {name} | " + " | ".join(f"{bits[k]:.2f}" for k in ks) + " |"
    if "stories" in results:
        yield from _told(results["stories"])
    for k, rows in results.get("sweep", {}).items():
        yield f"\nGuidance of the prior at k = {k}, generated from captions\n"
        yield "| guidance | colour | shape | motion | all three |"
        yield "|---|---|---|---|---|"
        for scale, r in rows.items():
            cells = " | ".join(f"{r[x]:.0%}" for x in ("color", "shape", "motion", "all"))
            yield f"| {scale} | {cells} |"


def _told(found: dict[str, Any]) -> Iterator[str]:
    yield f"\n{found['clips']} clips of {found['frames']} frames with two or three acts\n"
    yield f"| | k | {' | '.join(f'{x}, {act}' for act in ACTS for x in LABELS)} |"
    yield "|---|---|" + "---|" * (len(LABELS) * len(ACTS))
    for name, words in (("own tokens", "decoded from its own tokens"),
                        ("caption", "generated from its caption")):  # fmt: skip
        for k, row in found[name].items():
            cells = " | ".join(f"{row[act][x]:.0%}" for act in ACTS for x in LABELS)
            yield f"| {words} | {k} | {cells} |"


def _about(facts: dict[str, dict[str, Any]]) -> str:
    """What the judge is, for the card."""
    made = {
        name: f"{x['parameters'] / 1e6:.2f} M parameters, {x['clips']:,} procedural training clips,"
        f" {x['softened_share']:.0%} of the samples from {x['softened']:,} softened ones"
        for name, x in facts.items()
    }
    return (
        "The judge is two networks. One reads colour and motion from latents, as the flow decoder "
        f"hands them to the autoencoder ({made['classifier']}: decoded from their own tokens). "
        "The other finds the main object in every second picture and reads the shape from its "
        f"outline alone ({made['outline']}: through the autoencoder, every second one also decoded "
        "from its own tokens)."
    )


def save_sheet(path: Path, captions: list[str], clips: dict[int, Tensor]) -> None:
    """One row a caption; for each budget the first, middle and last frame of what was generated.
    `clips`: `[N,3,T,H,W]` in [-1,1] by budget."""
    rows, columns = len(captions), len(clips)
    size = (3.3 * columns, 1.42 * rows + 0.3)
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    fig.subplots_adjust(0.01, 0.01, 0.99, 1 - 0.55 / size[1], wspace=0.03, hspace=0.32)
    for column, (k, video) in enumerate(clips.items()):
        top = axes[0, column].get_position()
        fig.text((top.x0 + top.x1) / 2, 1 - 0.2 / size[1], f"k = {k}", ha="center", weight="bold")
        for row, clip in enumerate(video[:rows]):
            chosen = clip[:, [0, clip.shape[1] // 2, clip.shape[1] - 1]]  # (3, 3, H, W)
            chosen = F.pad(chosen, (1, 1), value=1.0)  # a white line between frames
            picture = chosen.permute(2, 1, 3, 0).flatten(1, 2)  # (H, 3·W, 3)
            axes[row, column].imshow(((picture + 1) / 2).numpy(), aspect="auto")
            axes[row, column].axis("off")
    for row, caption in enumerate(captions):
        line = textwrap.shorten(caption, 130, placeholder=" …")
        axes[row, 0].text(
            0, 1.04, line, transform=axes[row, 0].transAxes, fontsize=9, va="bottom", clip_on=False
        )
    with replacing(path) as tmp:
        fig.savefig(tmp, dpi=110)
    plt.close(fig)


def _say(began: float, text: str) -> None:
    print(f"[{time.perf_counter() - began:5.0f} s] {text}", file=sys.stderr, flush=True)
