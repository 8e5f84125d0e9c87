"""Seams of a clip: how far it jumps where chunks meet, in steps from frame to frame elsewhere."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ..config.tokenizer import TokenizerConfig


@dataclass(frozen=True)
class Seams:
    """`mean` and `worst` jump at a border of chunks, in mean jumps of the other steps (1: a border
    is a step like any other); `worst_at`: the frame that the worst one leads to. NaN and 0 for a
    clip without borders."""

    mean: float
    worst: float
    worst_at: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} on average, {self.worst:.2f} at worst (frame {self.worst_at})"


class Jumps:
    """Mean absolute differences, in levels of 0 to 255, between frames that follow each other."""

    def __init__(self) -> None:
        self.jumps: list[float] = []
        """Entry i: from frame i to frame i + 1."""
        self._last: np.ndarray | None = None

    def watch(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The frames, uint8 `[H,W,3]` of one size, each one measured as it passes."""
        for frame in frames:
            if self._last is not None:
                self.jumps.append(difference(frame, self._last))
            self._last = frame
            yield frame

    def seams(self, borders: Collection[int]) -> Seams:
        """Of the steps that lead to the frames `borders`."""
        at = [i for i in borders if 0 < i <= len(self.jumps)]
        others = [jump for i, jump in enumerate(self.jumps, 1) if i not in borders]
        if not at:
            return Seams(math.nan, math.nan, 0)
        usual = sum(others) / max(1, len(others))
        ratios = [_ratio(self.jumps[i - 1], usual) for i in at]
        worst = max(ratios)
        return Seams(sum(ratios) / len(ratios), worst, at[ratios.index(worst)])


def borders(c: TokenizerConfig, frames: int) -> range:
    """The first frame of each chunk but the first, in a decoded clip of this many frames."""
    return range(c.chunk_frames, frames, c.stride)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference of two frames, uint8 `[H,W,3]`, in levels."""
    return float(np.abs(a.astype(np.int16) - b).mean())


def _ratio(jump: float, usual: float) -> float:
    if usual:
        return jump / usual
    return math.inf if jump else 1.0  # nothing else moves
