"""Finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505), always in float32.

Six numbers, each rounded to one of 8, 8, 8, 5, 5, 5 levels: 64,000 codes, two bytes an id.
"""

from __future__ import annotations

import torch
from torch import Tensor


class FSQ:
    """Codes `[..., 6]` in [-1,1]  <->  ids `[...]` in 0 .. prod(levels)-1. Has no weights."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        # Models are built on the meta device; these are no weights, nothing would fill them in.
        self.levels = torch.tensor(levels, device="cpu")
        self.half_width = self.levels // 2
        self.basis = self.levels.cumprod(0) // self.levels  # 1, 8, 64, 512, …

    def bound(self, z: Tensor) -> Tensor:
        """Squash `[..., 6]` so that rounding gives exactly `levels` values per channel."""
        levels = self.levels.to(z.device)
        half = (levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        shift = torch.atanh(offset / half)
        return torch.tanh(z.float() + shift) * half - offset

    def quantize(self, z: Tensor) -> Tensor:
        """Codes of `z`, with the gradient of the bound (straight through the rounding)."""
        b = self.bound(z)
        return (b + (b.round() - b).detach()) / self.half_width.to(z.device)

    def ids(self, z: Tensor) -> Tensor:
        """`[..., 6]` before quantization -> int64 ids `[...]`."""
        digits = self.bound(z).round().long() + self.half_width.to(z.device)
        return (digits * self.basis.to(z.device)).sum(-1)

    def codes(self, ids: Tensor) -> Tensor:
        """Ids `[...]` -> float32 codes `[..., 6]`."""
        digits = ids[..., None] // self.basis.to(ids.device) % self.levels.to(ids.device)
        half = self.half_width.to(ids.device)
        return (digits - half).float() / half
