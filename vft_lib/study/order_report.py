"""What :mod:`.order` measured, as a table and pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from ..evaluation.curves import Shown
from ..evaluation.figures import probe_lines, save_figure, strip
from ..files.atomic import write_bytes
from ..video.frames import to_frames
from .order import Order

SHOWN = 4  # clips in the pictures
DIM = 0.25  # what is left of a patch that a token does not look at


def write_order(order: Order, facts: dict[str, Any], out: Path) -> str:
    """Write order.json, table.md, order.png, swapped.png and looks.png into `out`; returns the
    table."""
    found = facts | {"rows": order.rows, "probe": order.probe}
    write_bytes(out / "order.json", (json.dumps(found, indent=1) + "\n").encode())
    text = "\n".join(table(order, facts)) + "\n"
    write_bytes(out / "table.md", text.encode())
    _plot(order, out / "order.png")
    clips = range(min(SHOWN, len(order.original)))
    ks = [row["k"] for row in order.rows]
    names = ["first", *(f"k = {k}" for k in ks), "rest"]
    pictures = []
    for i in clips:
        rest = (i + 1) % len(order.original)
        videos = [order.original[i], *(order.swapped[k][i] for k in ks), order.original[rest]]
        pictures.append({name: _shown(v) for name, v in zip(names, videos)})
    strip(pictures, names, out / "swapped.png", frames=2)
    names = ["clip", *(f"token {k}" for k in ks if k)]
    looks = []
    for i, clip in enumerate(picture["first"] for picture in pictures):
        lit = {f"token {k}": _lit(clip.frames, order.shares[i, :, k - 1]) for k in ks if k}
        looks.append({"clip": clip} | lit)
    strip(looks, names, out / "looks.png", frames=2)
    return text


def table(order: Order, facts: dict[str, Any]) -> Iterator[str]:
    """Markdown."""
    labels = list(order.probe)
    heads = ["k", "layout", "detail", "layout of the first", "of the rest", "detail of the first",
             "of the rest", "token k sees", *(f"{label} read" for label in labels)]  # fmt: skip
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    keys = ("layout", "detail", "layout_of_first", "layout_of_rest", "detail_of_first",
            "detail_of_rest")  # fmt: skip
    for row in order.rows:
        k = row["k"]
        cells = [str(k), *(f"{row[key]:.2f}" if key in row else "" for key in keys)]
        cells.append(f"{row['sees']:.0%}" if "sees" in row else "")
        cells += [f"{order.probe[label][k]:.0%}" for label in labels]
        yield f"| {' | '.join(cells)} |"
    yield (
        f"\n{facts['tokenizer']}, {facts['set']}, {facts['sampler']}. Layout: 8 × 8 blocks; "
        "detail: what they leave out; correlations with what the autoencoder alone makes of the "
        "clip. First and rest: the first k tokens are one clip's, the rest another's. Sees: the "
        "share of its frame's patches that token k looks at (attention rollout; the exponential of "
        "its entropy)."
    )
    if labels:
        yield (
            f"Read: by a linear probe on the first k tokens, {facts['probe_clips']} worlds to "
            "train on, a quarter as many others to test; k = 0: chance."
        )


def _plot(order: Order, path: Path) -> None:
    """Three panels: what a prefix keeps, whose clip one sees after a swap, what a probe reads."""
    figure = Figure(figsize=(13.5, 3.8), layout="constrained")
    keeps, swap, read = figure.subplots(1, 3)
    rows = order.rows[1:]
    for i, name in enumerate(("layout", "detail")):
        keeps.plot([r["k"] for r in rows], [r[name] for r in rows], "o-", color=f"C{i}", label=name)
        for whose, style in (("first", "o-"), ("rest", "s--")):
            values = [r[f"{name}_of_{whose}"] for r in rows]
            label = f"{name} of the {whose}"
            swap.plot([r["k"] for r in rows], values, style, color=f"C{i}", label=label)
    keeps.set(title="what the first k tokens keep", ylabel="correlation with the clip")
    swap.set(title="first k of one clip, rest of another", ylabel="correlation")
    probe_lines(read, order.probe)
    read.set(title="read by a linear probe (dotted: chance)", ylabel="accuracy")
    for axis in (keeps, swap, read):
        axis.set_xscale("log", base=2)
        axis.set_xticks([r["k"] for r in rows], [str(r["k"]) for r in rows])
        axis.set_xlabel("tokens per latent frame (k)")
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]), top=1.02)
        axis.grid(alpha=0.25)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def _shown(video: Tensor) -> Shown:
    """Of `[3,T,H,W]` in [-1,1]."""
    return Shown(np.stack(list(to_frames(video))))


def _lit(frames: np.ndarray, shares: Tensor) -> Shown:
    """The clip, darker where the token of each latent frame `[t,h,w]` looks less than elsewhere."""
    spots = np.linspace(0, len(shares) - 1, len(frames)).round().astype(int)
    x = shares[spots][:, None]
    x = x / x.amax((2, 3), keepdim=True)
    light = F.interpolate(x, frames.shape[1:3], mode="bilinear")[:, 0, :, :, None].numpy()
    return Shown((frames * (DIM + (1 - DIM) * light)).round().astype(np.uint8))
