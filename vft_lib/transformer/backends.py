"""Ways to compute the same attention: three of ours, and a program's own. Each takes queries, keys
and values `[B,heads,T,head_dim]` in packed order, a layout and the scale, and gives
`[B,heads,T,head_dim]`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .layout import Layout, key_bias
from .masks import frame_mask, remembered, sees

HALF = (torch.float16, torch.bfloat16)
PLAIN = ("full", "time_block_causal")  # modes whose queries see whole frames: no mask is needed
SHORT = 256  # keys

Backend = Callable[[Tensor, Tensor, Tensor, Layout, float], Tensor]
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def sdpa(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> Tensor:
    """PyTorch's own kernels: one call for the whole clip, or one a frame, which sees a prefix of
    the keys."""
    width, bias = v.shape[-1], None
    if layout.weight > 1:
        if q.is_cuda and q.dtype in HALF:
            q, k, v = fold_weights(q, k, v, layout, scale)  # a bias would force a slower kernel
        else:
            bias = key_bias(layout, q.device).to(torch.promote_types(q.dtype, torch.float32))
    if layout.mask.mode in ("full", "causal"):
        mask = bias if bias is None else bias[None, None, None]
        return dot_product(q, k, v, mask, scale, layout.mask.mode == "causal")[..., :width]

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return dot_product(q, k, v, mask, scale)

    return by_frame(attend, q, k, v, layout, bias)[..., :width]


def dot_product(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None,
    causal: bool = False,
) -> Tensor:  # fmt: skip
    """PyTorch's attention. While it is trained on a CPU, short sequences in bfloat16 are computed
    in float32, whose gradient takes a fifth to a half of the time (torch 2.13)."""
    dtype = q.dtype
    slow = q.device.type == "cpu" and dtype == torch.bfloat16 and q.requires_grad
    if slow and k.shape[-2] <= SHORT:
        q, k, v = q.float(), k.float(), v.float()
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, is_causal=causal)
    return y.to(dtype)


def by_frame(
    attend: Attend, q: Tensor, k: Tensor, v: Tensor, layout: Layout, bias: Tensor | None
) -> Tensor:
    """One call a frame, of its queries and all keys up to its end, with a mask `[1,1,each,keys]`
    where they do not see all of them. `bias` `[T]`, of the keys, is in its place."""
    parts = []
    for frame in range(layout.frames):
        end = (frame + 1) * layout.each
        seen = frame_mask(layout.mask, frame, layout.patches, layout.registers, q.device)
        if seen is not None:
            seen = seen[None, None]
        if bias is not None:
            seen = bias[None, None, None, :end]  # registers are merged only where all is seen
        parts.append(attend(q[:, :, end - layout.each : end], k[:, :, :end], v[:, :, :end], seen))
    return torch.cat(parts, dim=2)


def fold_weights(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys' weights as eight more channels: ln(weight) / scale in two parts, as one 16-bit number
    would be off by up to 1 % of the weight; queries have 1 there."""
    extra = _weight_channels(layout, scale, q.device, k.dtype).expand(*k.shape[:2], -1, -1)
    return (
        torch.cat([q, torch.ones_like(q[..., :8])], -1), torch.cat([k, extra], -1), F.pad(v, (0, 8))
    )  # fmt: skip


@remembered
def _weight_channels(
    layout: Layout, scale: float, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """`[T,8]`: two parts of ln(weight) / scale, then zeros."""
    log = key_bias(layout, device) / scale  # (T,)
    high = log.to(dtype)
    return F.pad(torch.stack([high, (log - high.float()).to(dtype)], -1), (0, 6))


def xformers(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> Tensor:
    """One variable-length kernel for all frames of all clips: the queries of each frame against
    that prefix of its clip's keys which they see."""
    from xformers.ops import memory_efficient_attention

    batch, width = q.shape[0], v.shape[-1]
    if layout.weight > 1:
        q, k, v = fold_weights(q, k, v, layout, scale)
    rows = [x.transpose(1, 2) for x in (q, k, v)]  # (B, T, heads, head_dim)
    bias = xformers_bias(layout, batch, q.device)
    if layout.mask.mode == "time_block_causal":
        rows = [x.flatten(0, 1)[None] for x in rows]
    y = memory_efficient_attention(*rows, attn_bias=bias, scale=scale)
    return y.view(batch, -1, *y.shape[2:]).transpose(1, 2)[..., :width]


@remembered
def xformers_bias(layout: Layout, batch: int, device: torch.device) -> Any:
    """What xformers knows of the mask. Keys of one clip serve all its frames: their blocks begin
    at the same place and differ in length."""
    from xformers.ops.fmha import attn_bias

    if layout.mask.mode == "full":
        return None
    if layout.mask.mode == "causal":
        return attn_bias.LowerTriangularMask()
    frames, each = layout.frames, layout.each
    return attn_bias.BlockDiagonalGappyKeysMask.from_seqlens(
        q_seqlen=[each] * (frames * batch),
        kv_seqstarts=[clip * frames * each for clip in range(batch) for _ in range(frames)]
        + [batch * frames * each],
        kv_seqlen=[(frame + 1) * each for frame in range(frames)] * batch,
        device=device,
    )


def flex(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> Tensor:
    """PyTorch's flex attention, for CUDA devices (:func:`attention.refusal`), compiled once for
    each kind of mask: blocks that no query sees are skipped, others are masked where they are cut.
    """
    weigh = None
    if layout.weight > 1:
        bias = key_bias(layout, q.device)

        def weigh(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return score + bias[j]

    return _compiled_flex()(
        q, k, v, score_mod=weigh, block_mask=_block_mask(layout, q.device), scale=scale
    )


@lru_cache(maxsize=1)
def _compiled_flex() -> Any:
    import torch._dynamo
    from torch.nn.attention.flex_attention import flex_attention

    # One kernel for each kind of mask, with and without weights; beyond torch's usual eight it
    # would compute the whole T x T product instead, with a warning.
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, 64)
    return torch.compile(flex_attention, dynamic=True)


@remembered
def _block_mask(layout: Layout, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    if layout.mask.mode == "full":
        return None
    # Tensors, as numbers would be compiled in: a kernel for every budget.
    mask, p = layout.mask, torch.tensor(layout.patches, device=device)
    each = torch.tensor(layout.each, device=device)

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return sees(mask, p, each, i, j)

    length = layout.frames * layout.each
    return create_block_mask(seen, None, None, length, length, device=device)


@dataclass(frozen=True)
class Foreign:
    """A program's own attention as a backend (:func:`attention.adopt`).

    `attend(q, k, v, mask)` computes `[B,heads,Tq,d]` from such queries and keys and values
    `[B,heads,Tk,d]`, at the scale 1/sqrt(d); the mask `[1,1,Tq,Tk]`, in the dtype of q, is added to
    the logits, or None. `masks`: whether it takes one, and 32-bit numbers. `exact`: whether it
    computes in the dtype of q; sums over eight-bit products, say, cannot carry the weight of merged
    registers. What it cannot compute, plain attention does.
    """

    name: str
    attend: Attend
    masks: bool = True
    exact: bool = True

    def takes(self, layout: Layout, dtype: torch.dtype) -> bool:
        """Whether all of it is computed by `attend`."""
        if not self.masks and (layout.mask.mode not in PLAIN or dtype not in HALF):
            return False
        return self.exact or layout.weight == 1

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> Tensor:
        if not self.takes(layout, q.dtype):
            return sdpa(q, k, v, layout, scale)
        width, bias = v.shape[-1], None
        own = width + 8 * (layout.weight > 1 and q.dtype in HALF)
        if scale != 1 / math.sqrt(own):
            q = q * (scale * math.sqrt(own))
        if own > width:
            q, k, v = fold_weights(q, k, v, layout, 1 / math.sqrt(own))
        elif layout.weight > 1:
            bias = key_bias(layout, q.device).to(q.dtype)

        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            if mask is not None and mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -math.inf)
            if mask is not None:
                mask = mask.expand(1, 1, q.shape[2], -1)
            return self.attend(q, k, v, mask)

        if layout.mask.mode not in ("full", "causal"):
            return by_frame(attend, q, k, v, layout, bias)[..., :width]
        seen = None if bias is None else bias[None, None, None]
        if layout.mask.mode == "causal":
            seen = causal_mask(q.shape[2], q.device)[None, None]
        return attend(q, k, v, seen)[..., :width]


@remembered
def causal_mask(length: int, device: torch.device) -> Tensor:
    """`[T,T]` bool: a query sees the keys up to itself."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()
