"""What a training step sees: windows of real footage and drawn worlds, mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .bank import USUAL, ClipBank, Variation
from .worlds import Worlds


def host_rng(generator: torch.Generator) -> np.random.Generator:
    """Random numbers for decisions on the host, drawn from the same seed: no wait for a device."""
    return np.random.default_rng(generator.initial_seed())


@dataclass(frozen=True)
class Footage:
    """`bank`: real clips, stills and textures (None: worlds alone); `worlds`: the procedural world
    (None: real footage alone)."""

    bank: ClipBank | None
    worlds: Worlds | None

    def draw(
        self, generator: torch.Generator, batch: int, frames: int, size: int, world_share: float,
        crop: int | None = None, vary: Variation = USUAL,
    ) -> Tensor:  # fmt: skip
        """A batch `[B,3,T,size,size]` float32 in [-1,1] on the generator's device, about a
        `world_share` of it procedural, cropped to `crop` px if given."""
        rng = host_rng(generator)
        drawn = int(rng.binomial(batch, world_share))
        drawn = batch if self.bank is None else 0 if self.worlds is None else drawn
        parts = []
        if self.bank is not None and drawn < batch:
            parts.append(self.bank.draw(generator, batch - drawn, frames, size, crop, vary))
        if self.worlds is not None and drawn:
            chosen = rng.integers(max(1, self.worlds.ready()), size=drawn)
            clips = self.worlds.clips(chosen.tolist())
            start = int(rng.integers(clips.shape[1] - frames + 1))
            side = crop or size
            top, left = (int(n) for n in rng.integers(0, size - side + 1, 2))
            clips = clips[:, start : start + frames, top : top + side, left : left + side]
            parts.append(to_video(clips, generator.device))
        return torch.cat(parts)


def to_video(
    clips: Tensor | Sequence[np.ndarray], device: torch.device | str = "cpu"
) -> Tensor:  # fmt: skip
    """uint8 `[B,T,H,W,3]`, or `[T,H,W,3]` each -> float32 `[B,3,T,H,W]` in [-1,1] on `device`; a
    GPU gets it without a wait."""
    device = torch.device(device)
    clips = clips if isinstance(clips, Tensor) else torch.from_numpy(np.stack(clips))
    if device.type == "cuda":
        clips = clips.contiguous().pin_memory().to(device, non_blocking=True)
    return clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
