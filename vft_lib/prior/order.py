"""The order of ids: time-first. All latent frames' register 0, then all frames' register 1, and so
on: flat position i is register i // t of latent frame i % t. So a budget of k is the first t·k
positions, stopping early is truncating, and going on adds detail.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.prior import PriorConfig
from ..errors import VftError
from ..tokens import Tokens


def time_first(ids: Tensor) -> Tensor:
    """Grid `[B,t,k]` -> flat `[B,k·t]`."""
    return ids.transpose(1, 2).flatten(1)


def to_grid(flat: Tensor, latent_frames: int) -> Tensor:
    """Flat `[B,k·t]` -> grid `[B,t,k]`."""
    return flat.unflatten(1, (-1, latent_frames)).transpose(1, 2)


def places(c: PriorConfig, latent_frames: int) -> Tensor:
    """Where the longest sequence has the register and latent frame that each position of one of
    `latent_frames` predicts: `[registers·latent_frames + 1]`, the last predicts what comes next."""
    i = torch.arange(c.registers * latent_frames + 1)
    return i // latent_frames * c.latent_frames + i % latent_frames


def rows_of(c: PriorConfig, frames: int) -> int:
    """Latent frames of a sequence of `frames` frames: whole chunks."""
    if not c.chunk:
        return c.latent_frames
    more = max(0, -(-(frames - c.chunk_frames) // (c.chunk_frames - 1)))
    return c.chunk + more * (c.chunk - 1)


@dataclass(frozen=True)
class Window:
    """A sequence within a clip: `rows` latent frames from `start` on, the first `known` of which
    belong to the window before."""

    start: int
    rows: int
    known: int


def windows(c: PriorConfig, tokens: Tokens) -> list[Window]:
    """How a prior reads a clip of any length, or VftError. Chunks that share a frame keep its ids
    once: the latent frame before a chunk stands in for its first."""
    t, rows, frames = c.latent_frames, tokens.ids.shape[1], c.frames
    if c.chunk:
        if rows == rows_of(c, tokens.frames):
            starts = range(0, max(1, rows - 1), t - 1)
            return [Window(i, min(t, rows - i), min(i, 1)) for i in starts]
        t, frames = c.chunk, c.chunk_frames
    else:
        for overlap in (1, 0):
            chunks = 1 + max(0, -(-(tokens.frames - frames) // (frames - overlap)))
            if rows == t + (chunks - 1) * (t - overlap):
                return [Window(i * (t - overlap), t, min(i, overlap)) for i in range(chunks)]
    raise VftError(
        f"these tokens have {rows} latent frames for {tokens.frames} frames, prior "
        f"{c.name!r} reads chunks of {t} ({frames} frames): they are from a "
        "tokenizer with other chunks"
    )
