"""Self-attention over the packed sequence: only the work that the mask leaves.

No `T x T` mask is made where time blocks say it all: a frame's queries see a prefix of the keys,
so each frame is one plain attention call. A register may stand for several equal ones; as a key it
then counts that often, which is ln(weight) added to its logits, in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from .config import MaskConfig
from .masks import attention_mask


@dataclass(frozen=True)
class Layout:
    """What is packed: `frames` latent frames, each of `patches` patches and then `registers`
    registers. The last register of every frame stands for `weight` equal ones."""

    mask: MaskConfig
    frames: int
    patches: int
    registers: int
    weight: int = 1

    @property
    def each(self) -> int:
        """Tokens of a frame."""
        return self.patches + self.registers


def merges_registers(mask: MaskConfig) -> bool:
    """Whether registers of a frame that begin equal stay equal through the trunk: nothing may order
    them within their frame (spec, tokenizer.md 7)."""
    return mask.mode in ("full", "time_block_causal")


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout | Tensor, scale: float) -> Tensor:
    """Queries, keys and values `[B,heads,T,head_dim]` in packed order -> `[B,heads,T,head_dim]`.
    In place of a layout: a mask `[B,1,1,T]`, True for the keys that are seen."""
    if isinstance(layout, Tensor):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=layout, scale=scale)
    width, bias = v.shape[-1], None
    if layout.weight > 1:
        assert merges_registers(layout.mask)
        if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16):
            q, k, v = fold_weights(q, k, v, layout, scale)  # a bias would force a slower kernel
        else:
            bias = _key_bias(layout, q.device).to(torch.promote_types(q.dtype, torch.float32))
    if layout.mask.mode == "full":
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    elif layout.mask.mode == "time_block_causal":
        parts = []
        for end in range(layout.each, q.shape[2] + 1, layout.each):
            mine = q[:, :, end - layout.each : end]  # one frame sees itself and all before it
            seen = None if bias is None else bias[..., :end]
            parts.append(F.scaled_dot_product_attention(
                mine, k[:, :, :end], v[:, :, :end], attn_mask=seen, scale=scale
            ))  # fmt: skip
        y = torch.cat(parts, dim=2)
    else:
        mask = attention_mask(
            layout.mask, layout.frames, layout.patches, layout.registers, q.device
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return y[..., :width]


def fold_weights(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys' weights as eight more channels: ln(weight) / scale in two parts, as one 16-bit number
    would be off by up to 1 % of the weight; queries have 1 there."""
    log = _key_bias(layout, q.device)[0, 0, 0] / scale  # (T,)
    high = log.to(k.dtype)
    extra = torch.stack([high, (log - high.float()).to(k.dtype)], -1)
    extra = F.pad(extra, (0, 6)).expand(*k.shape[:2], -1, -1)
    return (
        torch.cat([q, torch.ones_like(q[..., :8])], -1), torch.cat([k, extra], -1), F.pad(v, (0, 8))
    )  # fmt: skip


@lru_cache(maxsize=16)
def _key_bias(layout: Layout, device: torch.device) -> Tensor:
    """What is added to the logits of each key `[1,1,1,T]` float32."""
    bias = torch.zeros(layout.frames, layout.each, device=device)
    bias[:, -1] = math.log(layout.weight)
    return bias.view(1, 1, 1, -1)
