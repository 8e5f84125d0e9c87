"""The transformer both networks share: attention, gated MLP, modulation, positions.

Float32 islands: :func:`norm` (and with it the query/key norm) computes in float32 whatever the
weights' dtype; everything else runs in the dtype of its weights, or under autocast.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.tokenizer import MaskConfig, PosembConfig, TransformerConfig
from ..errors import VftError
from .attention import Layout, attend
from .fused import gated, modulated, swiglu, unit


class Attention(nn.Module):
    """Self-attention with normed queries and keys; scale 8 / head_dim (1/8 at 64 channels)."""

    def __init__(self, c: TransformerConfig, ops: Any = nn) -> None:
        super().__init__()
        self.head_dim = c.head_dim
        self.wq, self.wk, self.wv, self.proj = (
            ops.Linear(c.dim, c.dim, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor, layout: Layout | Tensor) -> Tensor:
        q, k, v = (w(x).unflatten(-1, (-1, self.head_dim)) for w in (self.wq, self.wk, self.wv))
        q, k = unit(self.head_dim, q), unit(self.head_dim, k)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))  # (B, heads, N, head_dim)
        y = attend(q.to(v), k.to(v), v, layout, 8 / self.head_dim)
        return self.proj(y.transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    """fc2(silu(fc1 x) * fc3 x), no biases (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, c: TransformerConfig, ops: Any = nn) -> None:
        super().__init__()
        self.fc1 = ops.Linear(c.dim, c.hidden, bias=False)
        self.fc3 = ops.Linear(c.dim, c.hidden, bias=False)
        self.fc2 = ops.Linear(c.hidden, c.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.fc1(x), self.fc3(x)
        return self.fc2(swiglu(a.shape[-1], a, b))


class Block(nn.Module):
    """Attention and MLP, each normed, modulated and gated by the timestep where there is one."""

    def __init__(self, c: TransformerConfig, ops: Any = nn) -> None:
        super().__init__()
        self.kinds = c.modulation_kinds
        self.attention = Attention(c, ops)
        self.mlp = GatedMLP(c, ops)
        if self.kinds:
            self.modulation = ops.Linear(c.dim, self.kinds * 6 * c.dim)

    def modulate(self, time: Tensor) -> Tensor:
        """The timestep's vector `[N,d]` -> gates, shifts and scales `[N,kinds,6,d]`."""
        return self.modulation(F.silu(time)).unflatten(-1, (self.kinds, 6, -1))

    def forward(self, x: Tensor, layout: Layout | Tensor, m: Tensor | None = None) -> Tensor:
        """x `[B,t,n,d]` in the frames of `layout` (or with the mask that `attend` takes), m of
        :meth:`modulate` -> `[B,t,n,d]`."""
        d = x.shape[-1]
        if m is None:
            x = x + self.attention(unit(d, x).flatten(1, 2), layout).view_as(x)
            return x + self.mlp(unit(d, x))
        if self.kinds == 2 and isinstance(layout, Layout):  # one set for patches, one for registers
            counts = (layout.patches, layout.registers)
            m = torch.cat([m[:, i : i + 1].expand(-1, k, -1, -1) for i, k in enumerate(counts)], 1)
        gate_a, gate_m, shift_a, scale_a, shift_m, scale_m = m.unsqueeze(1).unbind(-2)
        # Modulation is the same for all frames: (B, 1, n, d).
        h = modulated(d, x, shift_a, scale_a)
        x = gated(d, x, gate_a, self.attention(h.flatten(1, 2), layout).view_as(x))
        return gated(d, x, gate_m, self.mlp(modulated(d, x, shift_m, scale_m)))


class Transformer(nn.Module):
    """The trunk: `depth` blocks over all frames' patches and registers."""

    def __init__(self, c: TransformerConfig, mask: MaskConfig, ops: Any = nn) -> None:
        super().__init__()
        self.mask, self.head_dim = mask, c.head_dim
        self.backend = "auto"  # of attention: that, or one of attention.BACKENDS
        self.blocks = nn.ModuleList(Block(c, ops) for _ in range(c.depth))

    def modulate(self, time: Tensor) -> list[Tensor]:
        """What every block takes of the timestep's vector `[N,d]`: `[N,kinds,6,d]` each."""
        blocks = cast("Iterable[Block]", self.blocks)
        return [block.modulate(time) for block in blocks if block.kinds]

    def forward(
        self, patches: Tensor, registers: Tensor, modulation: Sequence[Tensor] = (),
        weight: int = 1,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """patches `[B,t,p,d]` and registers `[B,t,r,d]` in, the same out. `modulation` is what
        :meth:`modulate` gave, of B timesteps or one for all. The last register of every frame
        stands for `weight` equal ones."""
        p, r = patches.shape[2], registers.shape[2]
        x = torch.cat([patches, registers], dim=2)  # (B, t, p+r, d)
        layout = Layout(self.mask, x.shape[1], p, r, weight, self.backend)
        for i, block in enumerate(self.blocks):
            x = block(x, layout, modulation[i] if modulation else None)
        return x[:, :, :p], x[:, :, p:]


class PositionEmbedding(nn.Module):
    """Adds a position to every element of a channels-last grid `[B, *grid, d]`.

    Learned kinds keep one table per axis, `[axes, 1, d, max]`; the embedding of a grid point is
    the sum (or product) of its axes' entries. `sincos` keeps a fixed 2-D grid `[1, d, h, w]`,
    applied to the last two axes.
    """

    def __init__(self, c: PosembConfig, dim: int) -> None:
        super().__init__()
        self.c = c
        shape = (len(c.max_sizes), 1, dim, max(c.max_sizes))
        if c.kind == "sincos":
            h, w = c.max_sizes[-2:]
            self.table = nn.Parameter(sincos_grid(dim, h, w)[None], requires_grad=False)
        else:
            mean = 1.0 if c.kind == "learnable_prod" else 0.0
            self.table = nn.Parameter(mean + 0.02 * torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[1:-1]
        if self.c.kind == "sincos":
            return x + self._fit2d(self.table, grid[-2:])[0].permute(1, 2, 0).to(x)
        total: Tensor | None = None
        for axis, size in enumerate(grid):
            table = self._fit1d(self.table[axis], size)[0].T  # (size, d)
            table = table.view([size if a == axis else 1 for a in range(len(grid))] + [-1])
            if total is None:
                total = table
            else:
                total = total * table if self.c.kind == "learnable_prod" else total + table
        assert total is not None
        return x + total.to(x)

    def _fit1d(self, table: Tensor, size: int) -> Tensor:
        if self.c.interpolate:
            return F.interpolate(table.float(), size=size, mode="linear", align_corners=True)
        self._check(size, table.shape[-1])
        return table[..., :size]

    def _fit2d(self, table: Tensor, size: torch.Size) -> Tensor:
        if self.c.interpolate:
            return F.interpolate(table.float(), size=size, mode="bilinear", align_corners=True)
        for have, want in zip(table.shape[-2:], size):
            self._check(want, have)
        return table[..., : size[0], : size[1]]

    @staticmethod
    def _check(want: int, have: int) -> None:
        if want > have:
            raise VftError(f"{want} positions on an axis whose table holds {have}; use fewer")


def sincos_grid(dim: int, h: int, w: int) -> Tensor:
    """Fixed 2-D sine-cosine embedding `[dim, h, w]` (MAE, arXiv 2111.06377): half the channels
    for each axis."""
    freq = 1e4 ** -(torch.arange(dim // 4) / (dim // 4))
    axes = [torch.outer(torch.arange(s).float(), freq) for s in (h, w)]
    y, x = (torch.cat([a.sin(), a.cos()], 1).T for a in axes)  # (dim/2, s)
    return torch.cat([x[:, None].expand(-1, h, -1), y[..., None].expand(-1, -1, w)])


class TimestepEmbedding(nn.Module):
    """A scalar time to a vector: 128 cosines and sines, then an MLP.

    f_i = 1000 / max_timestep * 256^(-i/128): the period is 256, not the usual 10000.
    """

    def __init__(self, dim: int, max_timestep: float, ops: Any = nn) -> None:
        super().__init__()
        self.max_timestep = max_timestep
        self.mlp = nn.Sequential(ops.Linear(256, dim), nn.SiLU(), ops.Linear(dim, dim))

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """t `[B]` float32 -> `[B,d]`."""
        half = 128
        i = torch.arange(half, device=t.device, dtype=torch.float32)
        freq = 1000 / self.max_timestep * torch.exp(-math.log(256) * i / half)
        angle = t.float()[:, None] * freq
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1).to(dtype))


def patchify(x: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Latents `[B,C,t,h,w]` -> patch vectors `[B,t',h',w', pt·ph·pw·C]`, channel fastest."""
    pt, ph, pw = size
    return rearrange(
        x, "b c (t pt) (h ph) (w pw) -> b t h w (pt ph pw c)", pt=pt, ph=ph, pw=pw
    )  # fmt: skip


def unpatchify(x: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Inverse of :func:`patchify`."""
    pt, ph, pw = size
    return rearrange(
        x, "b t h w (pt ph pw c) -> b c (t pt) (h ph) (w pw)", pt=pt, ph=ph, pw=pw
    )  # fmt: skip
