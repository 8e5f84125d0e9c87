"""Finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505), always in float32.

Six numbers, each rounded to one of 8, 8, 8, 5, 5, 5 levels: 64,000 codes, two bytes an id.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor


class FSQ:
    """Codes `[..., 6]` in [-1,1]  <->  ids `[...]` in 0 .. prod(levels)-1. Has no weights."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        # Models are built on the meta device; these are no weights, nothing would fill them in.
        self.levels = torch.tensor(levels, device="cpu")
        self.half_width = self.levels // 2
        self.basis = self.levels.cumprod(0) // self.levels  # 1, 8, 64, 512, …
        self._half = (self.levels - 1) * (1 + 1e-3) / 2
        self._offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        self._shift = torch.atanh(self._offset / self._half)
        self._there: dict[torch.device, FSQ] = {}

    def on(self, device: torch.device) -> FSQ:
        """This, with its numbers on `device`: they are copied there once."""
        if device.type == "cpu":
            return self
        if device not in self._there:
            twin = copy.copy(self)
            with torch.inference_mode(False):
                for name, value in vars(self).items():
                    if isinstance(value, Tensor):
                        setattr(twin, name, value.to(device))
            self._there[device] = twin
        return self._there[device]

    def bound(self, z: Tensor) -> Tensor:
        """Squash `[..., 6]` so that rounding gives exactly `levels` values per channel."""
        own = self.on(z.device)
        return torch.tanh(z.float() + own._shift) * own._half - own._offset

    def quantize(self, z: Tensor) -> Tensor:
        """Codes of `z`, with the gradient of the bound (straight through the rounding)."""
        b = self.bound(z)
        return (b + (b.round() - b).detach()) / self.on(z.device).half_width

    def ids(self, z: Tensor) -> Tensor:
        """`[..., 6]` before quantization -> int64 ids `[...]`."""
        own = self.on(z.device)
        return ((self.bound(z).round().long() + own.half_width) * own.basis).sum(-1)

    def codes(self, ids: Tensor) -> Tensor:
        """Ids `[...]` -> float32 codes `[..., 6]`."""
        own = self.on(ids.device)
        digits = ids[..., None] // own.basis % own.levels
        return (digits - own.half_width).float() / own.half_width
