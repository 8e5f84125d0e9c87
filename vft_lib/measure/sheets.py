"""Sheets of labelled tiles, and the plot of quality by budget: what people look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..files.atomic import replacing
from ..video.frames import fit_frame

GAP, INK, PAPER = 6, 235, 24  # pixels and grey levels
HEAD = 22  # pixels of a tile's label


class Grid:
    """Tiles of one size `(h, w)` under their labels, near 16:9, enlarged to about 256 px a tile."""

    def __init__(self, labels: Sequence[str], size: tuple[int, int]) -> None:
        h, w = size
        scale = max(1, round(256 / max(h, w)))
        self.tile = th, tw = h * scale, w * scale
        count, high, wide = len(labels), th + HEAD + GAP, tw + GAP

        def misfit(columns: int) -> float:  # how far from 16:9, and how many places stay empty
            rows = -(-count // columns)
            return abs(math.log(columns * wide / (rows * high) * 9 / 16)) + rows * columns / count

        columns = min(range(1, count + 1), key=misfit)
        self.spots = [(i // columns * high, i % columns * wide) for i in range(count)]
        shape = (self.spots[-1][0] + HEAD + th, columns * wide - GAP, 3)
        self.paper = np.full(shape, PAPER, np.uint8)
        for (y, x), text in zip(self.spots, labels, strict=True):
            self.paper[y : y + HEAD, x : x + tw] = text_tile(text, (HEAD, tw))

    def frame(self, tiles: Sequence[np.ndarray]) -> np.ndarray:
        """One frame, uint8 `[H,W,3]`, of a uint8 `[h,w,3]` for each label; overwritten by the
        next."""
        th, tw = self.tile
        for (y, x), tile in zip(self.spots, tiles, strict=True):
            self.paper[y + HEAD : y + HEAD + th, x : x + tw] = fit_frame(tile, (th, tw), "stretch")
        return self.paper


def text_tile(text: str, size: tuple[int, int]) -> np.ndarray:
    """Text in the middle of uint8 `[h,w,3]`, as large as fits (at most 15 px)."""
    image = Image.new("RGB", (size[1], size[0]), (PAPER,) * 3)
    draw = ImageDraw.Draw(image)
    for points in range(15, 7, -1):
        font = ImageFont.load_default(points)
        if draw.textlength(text, font) <= size[1] - 4:
            break
    draw.text((size[1] / 2, size[0] / 2), text, (INK,) * 3, font, anchor="mm")
    return np.array(image)


def save_plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Write :func:`draw_plot`'s PNG, atomically."""
    with replacing(path) as tmp, tmp.open("wb") as f:
        draw_plot(rows, f)


def draw_plot(rows: list[dict[str, Any]], file: IO[bytes], against: str = "the clip") -> None:
    """PSNR and SSIM by budget as a PNG; rows of `budget`, `tokens`, `bytes`, `psnr`, `ssim`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    left = figure.add_subplot(title=f"how close to {against}, by budget")
    right = left.twinx()
    x = [r["tokens"] for r in rows]
    for axis, key, name, style in (
        (left, "psnr", "PSNR (dB)", "o-C0"), (right, "ssim", "SSIM", "s--C1"),
    ):  # fmt: skip
        axis.plot(x, [r[key] for r in rows], style)
        axis.set_ylabel(name, color=style[-2:])
        axis.ticklabel_format(axis="y", useOffset=False)
    left.set_xscale("log", base=2)
    left.set_xticks(x, [f"k={r['budget']}\n{r['tokens']}\n{in_bytes(r['bytes'])}" for r in rows])
    left.minorticks_off()
    left.set_xlabel("budget, tokens of the clip, bytes (log scale)")
    left.grid(alpha=0.3)
    FigureCanvasAgg(figure)
    figure.savefig(file, format="png", dpi=120)


def in_bytes(count: float) -> str:
    """A number of bytes, for people."""
    return f"{count:.0f} B" if count < 10_000 else f"{count / 1000:.1f} kB"


def save_strip(path: Path, clips: list[Tensor], frames: int = 6) -> None:
    """One row a clip (`[3,T,H,W]` in [-1,1]), `frames` of it evenly spaced from left to right."""
    rows = []
    for clip in clips:
        index = np.linspace(0, clip.shape[1] - 1, frames).round().astype(int)
        picture = clip[:, index].permute(2, 1, 3, 0).flatten(1, 2)  # (H, frames·W, 3)
        rows.append(((picture.float().clamp(-1, 1) + 1) * 127.5).round().byte().numpy())
    with replacing(path) as tmp:
        Image.fromarray(np.concatenate(rows)).save(tmp, "PNG")
