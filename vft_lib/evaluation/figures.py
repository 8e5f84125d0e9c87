"""The pictures of the model card: curves over bytes, strips of frames, the probe, the losses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from PIL import Image

from ..files.atomic import replacing
from ..measure.sheets import PAPER, in_bytes, text_tile
from .curves import Shown

MEASURES = {
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "feature_distance": "feature distance",
    "frechet_frames": "Fréchet distance, frames",
    "frechet_motion": "Fréchet distance, motion",
    "fvd": "FVD",
    "fid": "FID (torchvision)",
    "clipv": "ViCLIP, clip to clip",
    "text_score": "ViCLIP, clip to caption",
    "accuracy": "class accuracy",
}
SMALLER_IS_BETTER = {"feature_distance", "frechet_frames", "frechet_motion", "fvd", "fid"}
CODECS = {"H.264": ("C1", "s"), "AV1": ("C3", "D")}
FLAT = {
    "autoencoder": "autoencoder alone",
    "raw": "raw clips",
    "reference": "the reference itself",
}
GREYS = ("0.25", "0.45", "0.6", "0.7")
TILE, GAP, LABEL = 128, 10, 92  # pixels: a frame's side at least, between clips, of a row's label


def plot_curves(sets: dict[str, dict[str, Any]], measures: Sequence[str], path: Path) -> None:
    """One row of panels for each set of results.json's "sets", one column for each measure. Up is
    closer to the original in every panel."""
    measures = [m for m in measures if all(m in s["rows"][0] for s in sets.values())]
    size = (4.9 * len(measures), 3.5 * len(sets) + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(sets), len(measures), squeeze=False)
    for row, of in zip(axes, sets.values()):
        for axis, measure in zip(row, measures):
            _panel(axis, of, measure)
            axis.set_title(f"{of['title']} · {MEASURES[measure]}", fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("bytes per second of video")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=10
    )
    save_figure(figure, path)


def _panel(axis: Axes, of: dict[str, Any], measure: str) -> None:
    rows, seconds = [r for r in of["rows"] if measure in r], of["seconds_of_video"]
    tokens = [r for r in rows if r["kind"] == "tokens"]
    x = [r["bytes"] / seconds for r in tokens]
    y = [r[measure] for r in tokens]
    if f"{measure}_interval" in tokens[0]:
        low, high = zip(*(r[f"{measure}_interval"] for r in tokens))
        axis.fill_between(x, low, high, color="C0", alpha=0.15, lw=0)
    axis.plot(x, y, "o-", color="C0", lw=2.2, label="tokens", zorder=5)
    below = -11 if measure in SMALLER_IS_BETTER else -12
    for i, r in enumerate(tokens):
        text = f"k = {r['budget']}" if i == 0 else str(r["budget"])
        axis.annotate(
            text, (x[i], y[i]), (0, below), textcoords="offset points", fontsize=8, color="C0",
            ha="center", va="center", zorder=6,
        )  # fmt: skip
    right = x[-1]
    for codec, (colour, marker) in CODECS.items():
        points = sorted(
            (r["bytes"] / seconds, r[measure]) for r in rows
            if r["kind"] == "codec" and r["name"] == codec
        )  # fmt: skip
        if points:
            right = max(right, *(p[0] for p in points))
            axis.plot(*zip(*points), color=colour, marker=marker, ms=5, label=codec, zorder=4)
    flat = [r for r in rows if r["kind"] in FLAT or r["kind"] == "blocks"]
    for i, r in enumerate(flat):
        ceiling = r["kind"] in FLAT
        style: dict[str, Any] = {"color": "k", "ls": ":"}
        if not ceiling:
            style = {"color": GREYS[(i - 1) % len(GREYS)], "ls": "--"}
        text = FLAT[r["kind"]] if ceiling else f"blur, {r['name']}"
        axis.axhline(r[measure], lw=1.3, label=text, zorder=2, **style)
    axis.set_xscale("log", base=2)
    axis.set_xlim(x[0] / 1.6, right * 1.5)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: in_bytes(value)))
    if measure in SMALLER_IS_BETTER:
        axis.invert_yaxis()
        axis.set_ylabel("smaller is better ↑", fontsize=8)
    else:
        axis.set_ylabel("larger is better ↑", fontsize=8)
    axis.grid(alpha=0.25)
    axis.margins(y=0.12)
    _name_lines(axis, {_short(r["name"]): r[measure] for r in flat})


def _short(name: str) -> str:
    return f"{name.removesuffix(' blocks')} blur" if name.endswith(" blocks") else name


def _name_lines(axis: Axes, lines: dict[str, float]) -> None:
    """Names at the left end of horizontal lines: above, but below one that is close under another,
    and none where both places are taken."""
    height = 0.045  # of a name, as a share of the panel
    bottom, top = axis.get_ylim()  # the larger first, where the axis is upside down
    taken: list[float] = []
    for name, value in sorted(lines.items(), key=lambda item: (item[1] - bottom) / (bottom - top)):
        at = (value - bottom) / (top - bottom)
        free = [y for y in (at + 0.03, at - 0.032) if all(abs(y - z) > height for z in taken)]
        if free:
            taken.append(free[0])
            axis.text(
                0.012, free[0], name, transform=axis.transAxes, fontsize=7.5, color="0.3",
                va="center",
            )  # fmt: skip


def strip(
    pictures: Sequence[dict[str, Shown]], names: Sequence[str], path: Path, frames: int = 3
) -> None:
    """One row for each of `names` that the pictures hold, under its label; the clips side by side,
    `frames` of each evenly spread over its time. Enlarged to at least 128 px a frame, pixel by
    pixel."""
    rows = []
    for name in (n for n in names if all(n in p for p in pictures)):
        shown = [p[name] for p in pictures]
        tiles = [_label(name, shown)]
        for s in shown:
            index = np.linspace(0, len(s.frames) - 1, frames).round().astype(int)
            chosen = s.frames[index]
            scale = -(-TILE // chosen.shape[1])
            chosen = chosen.repeat(scale, 1).repeat(scale, 2)
            picture = np.concatenate(chosen, 1)
            tiles += [picture, np.full((len(picture), GAP, 3), PAPER, np.uint8)]
        high = len(tiles[1])
        tiles[0] = np.concatenate(
            [tiles[0], np.full((max(0, high - len(tiles[0])), LABEL, 3), PAPER, np.uint8)]
        )
        line = np.concatenate(tiles[:-1], 1)
        rows += [line, np.full((2, line.shape[1], 3), PAPER, np.uint8)]
    with replacing(path) as tmp:
        Image.fromarray(np.concatenate(rows[:-1])).save(tmp, "PNG", optimize=True)


def _label(name: str, shown: Sequence[Shown]) -> np.ndarray:
    """uint8 `[h,LABEL,3]`: the row's name without a codec's limit, and the bytes of its clips."""
    lines = [name.split(" ≤ ")[0]]
    sizes = [s.bytes for s in shown if s.bytes is not None]
    if sizes:
        low, high = in_bytes(min(sizes)), in_bytes(max(sizes))
        lines.append(low if low == high else f"{low[:-2]}-{high}")
    tiles = [text_tile(line, (22, LABEL)) for line in lines]
    return np.concatenate([np.full((TILE // 2 - 22, LABEL, 3), PAPER, np.uint8), *tiles])


def plot_probe(table: dict[str, dict[int, float]], path: Path) -> None:
    """Accuracy by label and budget; budget 0 is chance."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axis = figure.subplots()
    probe_lines(axis, table)
    axis.set_xscale("log", base=2)
    axis.set(
        xlabel="tokens per latent frame (k)", ylabel="probe accuracy (dotted: chance)", ylim=(0, 1)
    )
    axis.grid(alpha=0.3)
    axis.legend()
    save_figure(figure, path)


def probe_lines(axis: Axes, table: dict[str, dict[int, float]]) -> None:
    """A line for each label, and a dotted one for chance."""
    for i, (label, row) in enumerate(table.items()):
        ks = [k for k in row if k]
        axis.plot(ks, [row[k] for k in ks], "o-", color=f"C{i}", label=label)
        axis.axhline(row[0], ls=":", color=f"C{i}")


def plot_loss(logs: dict[str, Path], path: Path) -> None:
    """One panel a run; grey: as logged, black: smoothed."""
    figure = Figure(figsize=(4.5 * len(logs), 3.4), layout="constrained")
    for axis, (name, log) in zip(figure.subplots(1, len(logs), squeeze=False)[0], logs.items()):
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        step, loss = (np.array([r[k] for r in rows]) for k in ("step", "loss"))
        width = max(1, len(loss) // 40)
        smooth = np.convolve(loss, np.ones(width) / width, "valid")
        axis.plot(step, loss, color="0.8")
        axis.plot(step[width - 1 :], smooth, color="k")
        axis.set(title=name, xlabel="step", ylabel="loss", yscale="log")
        axis.grid(alpha=0.3)
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """As a PNG, whole or not at all."""
    FigureCanvasAgg(figure)
    with replacing(path) as tmp:
        figure.savefig(tmp, format="png", dpi=110)
