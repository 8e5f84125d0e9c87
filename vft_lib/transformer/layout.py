"""What is packed into a sequence, and which of its registers may be merged."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.tokenizer import MaskConfig
from .masks import remembered


@dataclass(frozen=True)
class Layout:
    """What is packed: `frames` latent frames, each of `patches` patches and then `registers`
    registers. The last register of every frame stands for `weight` equal ones. `backend`: who
    computes the attention, one of `attention.BACKENDS` or "auto"."""

    mask: MaskConfig
    frames: int
    patches: int
    registers: int
    weight: int = 1
    backend: str = "auto"

    @property
    def each(self) -> int:
        """Tokens of a frame."""
        return self.patches + self.registers


def merges_registers(mask: MaskConfig) -> bool:
    """Whether registers of a frame that begin equal stay equal through the trunk: nothing may order
    them within their frame (spec, tokenizer.md 7)."""
    return mask.mode in ("full", "time_block_causal")


@remembered
def key_bias(layout: Layout, device: torch.device) -> Tensor:
    """What is added to the logits of each key `[T]`, float32: ln(weight)."""
    bias = torch.zeros(layout.frames, layout.each, device=device)
    bias[:, -1] = math.log(layout.weight)
    return bias.flatten()
