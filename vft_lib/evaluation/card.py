"""The measurements of the model card: quality by budget on held-out clips, the probe, curves."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..measure.metrics import psnr, ssim
from ..models.loading import load_tokenizer
from ..tokenizer.tokenizer import Tokenizer
from ..train.data import HELD_OUT_SEEDS, SUFFIXES, RealClips, to_video
from ..train.plots import save_strip
from ..video.video_in import read_frames
from ..world import world
from .probe import probe

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def held_out_procedural(tokenizer: Tokenizer, count: int) -> Tensor:
    """`[N,3,T,H,W]` of worlds that training never draws."""
    c = tokenizer.config
    seeds = HELD_OUT_SEEDS[:count]
    return to_video([world.make_clip(s, frames=c.chunk_frames, size=c.size).video for s in seeds])


def held_out_real(tokenizer: Tokenizer, real: RealClips, folder: Path | None, count: int) -> Tensor:
    """`[N,3,T,H,W]`: the held-out clips of the training package and, at the model's frame rate,
    windows of every clip below `folder`."""
    c = tokenizer.config
    windows = list(real.split()[1].windows(c.chunk_frames, c.size))
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES) if folder else []
    for path in files:
        frames = list(read_frames(path, fps=c.fps, size=(c.size, c.size)))
        for start in range(0, len(frames) - c.chunk_frames + 1, c.chunk_frames):
            windows.append(np.stack(frames[start : start + c.chunk_frames]))
    return to_video(windows[:count])


@torch.inference_mode()
def by_budget(
    tokenizer: Tokenizer, clips: Tensor, steps: int, guidance: float, batch: int = 8
) -> tuple[list[dict[str, Any]], dict[int, Tensor]]:
    """Rows `{budget, tokens, bytes, psnr, ssim, seconds}`, the last (budget None) being the
    autoencoder alone; and the decoded clips of each budget."""
    decoded: dict[int, Tensor] = {}
    rows: list[dict[str, Any]] = []
    parts = clips.split(batch)
    tokens = [tokenizer.encode(p) for p in parts]
    for k in tqdm(tokenizer.config.budgets, desc="budgets"):
        began = time.perf_counter()
        cut = [t.truncate(k) for t in tokens]
        decoded[k] = torch.cat([tokenizer.decode(t, steps=steps, guidance=guidance) for t in cut])
        seconds = (time.perf_counter() - began) / len(clips)
        rows.append({"budget": k, "tokens": cut[0].count, "bytes": cut[0].id_bytes}
                    | _quality(clips, decoded[k]) | {"seconds": round(seconds, 2)})  # fmt: skip
    ceiling = torch.cat([tokenizer.vae.decode(tokenizer.vae.encode(p)) for p in parts])
    rows.append({"budget": None} | _quality(clips, ceiling.clamp(-1, 1)))
    return rows, decoded


def _quality(clips: Tensor, other: Tensor) -> dict[str, float]:
    pairs = list(zip(clips, other))
    return {
        "psnr": round(float(np.mean([psnr(a, b) for a, b in pairs])), 2),
        "ssim": round(float(np.mean([ssim(a, b) for a, b in pairs])), 4),
    }


def write_card(name: str, out: Path, device: torch.device, args: argparse.Namespace) -> None:
    """Measure, print the tables, and write results.json, *.png into `out`."""
    tokenizer = load_tokenizer(name, device=device)
    c = tokenizer.config
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"tokenizer": c.name, "fingerprint": tokenizer.fingerprint}
    results["sampling"] = {"steps": c.sampling.steps, "guidance": c.sampling.guidance}
    sets = {"procedural": held_out_procedural(tokenizer, args.clips)}
    if not args.no_real:
        real = RealClips.load(args.real, c.size, out / f"real-{c.size}.npz")
        sets["real"] = held_out_real(tokenizer, real, args.eval_clips, args.clips)
    for title, clips in sets.items():
        rows, decoded = by_budget(tokenizer, clips, c.sampling.steps, c.sampling.guidance)
        results[title] = {"clips": len(clips), "rows": rows}
        strip = []
        for i in range(0, min(len(clips), 12), 4):
            strip += [clips[i], *(decoded[k][i] for k in decoded)]
        save_strip(out / f"strip-{title}.png", strip)
    plot_quality(results, out / "quality.png")
    print("\n".join(tables(results)), flush=True)
    n = args.probe_clips
    held = HELD_OUT_SEEDS.start + 1000
    results["probe"] = probe(tokenizer, range(held, held + n), range(held + n, held + n + n // 4))
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    plot_probe(results["probe"], out / "probe.png")
    logs = {p.parent.name: p for p in sorted(out.glob("*/log.jsonl"))}
    if logs:
        plot_loss(logs, out / "loss.png")
    print("\n".join(tables({"probe": results["probe"]})))


def tables(results: dict[str, Any]) -> Iterator[str]:
    """The results as Markdown."""
    for title in ("procedural", "real"):
        if title in results:
            yield f"\n{results[title]['clips']} held-out {title} clips\n"
            yield "| k per frame | tokens | bytes | PSNR dB | SSIM | decode s |"
            yield "|---|---|---|---|---|---|"
            for r in results[title]["rows"]:
                if r["budget"] is None:
                    yield f"| autoencoder alone | | | {r['psnr']} | {r['ssim']} | |"
                else:
                    yield (
                        f"| {r['budget']} | {r['tokens']} | {r['bytes']} | {r['psnr']} "
                        f"| {r['ssim']} | {r['seconds']} |"
                    )
    if "probe" not in results:
        return
    ks = list(results["probe"]["motion"])
    yield "\nlinear probe accuracy\n"
    yield "| | chance | " + " | ".join(f"k = {k}" for k in ks[1:]) + " |"
    yield "|---|" + "---|" * len(ks)
    for label, row in results["probe"].items():
        yield f"| {label} | " + " | ".join(f"{v:.1%}" for v in row.values()) + " |"


def plot_quality(results: dict[str, Any], path: Path) -> None:
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, key, label in ((axes[0], "psnr", "PSNR (dB)"), (axes[1], "ssim", "SSIM")):
        for i, title in enumerate(t for t in ("procedural", "real") if t in results):
            rows = [r for r in results[title]["rows"] if r["budget"]]
            axis.plot([r["budget"] for r in rows], [r[key] for r in rows], "o-", color=f"C{i}",
                      label=title)  # fmt: skip
            axis.axhline(
                results[title]["rows"][-1][key],
                ls=":",
                color=f"C{i}",
                label=f"{title}: autoencoder",
            )
        axis.set_xscale("log", base=2)
        axis.set(xlabel="tokens per latent frame (k)", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    fig.savefig(path, dpi=110)
    plt.close(fig)


def plot_probe(table: dict[str, dict[int, float]], path: Path) -> None:
    fig, axis = plt.subplots(figsize=(5, 3.4), layout="constrained")
    for i, (label, row) in enumerate(table.items()):
        ks = [k for k in row if k]
        axis.plot(ks, [row[k] for k in ks], "o-", color=f"C{i}", label=label)
        axis.axhline(row[0], ls=":", color=f"C{i}")
    axis.set_xscale("log", base=2)
    axis.set(
        xlabel="tokens per latent frame (k)", ylabel="probe accuracy (dotted: chance)", ylim=(0, 1)
    )
    axis.grid(alpha=0.3)
    axis.legend()
    fig.savefig(path, dpi=110)
    plt.close(fig)


def plot_loss(logs: dict[str, Path], path: Path) -> None:
    """One panel a run; grey: as logged, black: smoothed."""
    fig, axes = plt.subplots(
        1, len(logs), figsize=(4.5 * len(logs), 3.4), layout="constrained", squeeze=False
    )
    for axis, (name, log) in zip(axes[0], logs.items()):
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        step, loss = (np.array([r[k] for r in rows]) for k in ("step", "loss"))
        width = max(1, len(loss) // 40)
        smooth = np.convolve(loss, np.ones(width) / width, "valid")
        axis.plot(step, loss, color="0.8")
        axis.plot(step[width - 1 :], smooth, color="k")
        axis.set(title=name, xlabel="step", ylabel="loss", yscale="log")
        axis.grid(alpha=0.3)
    fig.savefig(path, dpi=110)
    plt.close(fig)
