"""The prior's network: a causal transformer over ids, with a class, a text or both as condition.

Position i predicts id i. Its input is the start vector (plus the class) at 0 and id i-1 after
that. Float32 islands: the norms and the factorized head's sums; else the dtype of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.prior import PriorConfig
from ..transformer.backends import dot_product
from .order import places
from .vocabulary import FactorizedEmbedding, FactorizedHead, TableHead


@dataclass(frozen=True)
class Condition:
    """What a batch is conditioned on, prepared once: the start vectors `[B,d]`, and for text the
    keys and values of every block `[B,heads,S,head_dim]` with the rows to attend `[B,1,1,S]`.
    `places`: which learned position each step has (None: that of its own number)."""

    start: Tensor
    text: list[tuple[Tensor, Tensor]] | None = None
    attend: Tensor | None = None
    places: Tensor | None = None

    def additive(self, dtype: torch.dtype) -> Condition:
        """The same with `attend` as what is added to logits, which else each block makes of it."""
        if self.attend is None or self.attend.dtype != torch.bool:
            return self
        return replace(self, attend=additive(self.attend, dtype))


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `seen` is True, else -inf."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, -torch.inf)


class Cache:
    """Keys and values of the ids so far, allocated once: `[depth,B,heads,length,head_dim]` each,
    `length` or a few more."""

    def __init__(self, c: PriorConfig, batch: int, length: int, like: Tensor) -> None:
        length = -(-length // 16) * 16  # as the kernels on a GPU like it
        shape = (c.depth, batch, c.width // c.head_dim, length, c.head_dim)
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, eps 1e-6, in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda and x.dtype == self.weight.dtype:  # its kernel computes in float32
            return F.rms_norm(x, self.weight.shape, self.weight.to(x.device), eps=1e-6).to(x.dtype)
        weight = self.weight.to(x.device, torch.float32)
        return F.rms_norm(x.float(), weight.shape, weight, eps=1e-6).to(x.dtype)


class SelfAttention(nn.Module):
    """Causal attention; with a cache, of new positions to themselves and all before them."""

    def __init__(self, c: PriorConfig, ops: Any = nn) -> None:
        super().__init__()
        self.head_dim = c.head_dim
        self.qkv = ops.Linear(c.width, 3 * c.width, bias=False)
        self.proj = ops.Linear(c.width, c.width, bias=False)

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor] | None = None, at: int | Tensor = 0,
        mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """x `[B,n,d]` at positions at..at+n-1. `at` as a tensor [1] (n = 1), with a `mask` over the
        whole cache: shapes never change from step to step, which is what can be compiled and
        captured."""
        n = x.shape[1]
        qkv = self.qkv(x).unflatten(-1, (3, -1, self.head_dim))  # (B, n, 3, heads, head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, n, head_dim) each
        if past is not None and isinstance(at, Tensor):
            k, v = (p.index_copy_(2, at, new) for p, new in zip(past, (k, v)))
        elif past is not None:
            assert isinstance(at, int)
            assert at == 0 or n == 1
            for p, new in zip(past, (k, v)):
                p[:, :, at : at + n] = new
            k, v = (p[:, :, : at + n] for p in past)
        y = dot_product(q, k, v, mask, causal=n > 1)
        return self.proj(y.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention to the text's rows; its keys and values depend on the text alone."""

    def __init__(self, c: PriorConfig, ops: Any = nn) -> None:
        super().__init__()
        self.head_dim = c.head_dim
        self.q = ops.Linear(c.width, c.width, bias=False)
        self.kv = ops.Linear(c.width, 2 * c.width, bias=False)
        self.proj = ops.Linear(c.width, c.width, bias=False)

    def prepare(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """context `[B,S,d]` -> keys and values `[B,heads,S,head_dim]`."""
        kv = self.kv(context).unflatten(-1, (2, -1, self.head_dim))
        k, v = kv.permute(2, 0, 3, 1, 4)
        return k, v

    def forward(self, x: Tensor, text: tuple[Tensor, Tensor], attend: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        y = dot_product(q, *text, attend)
        return self.proj(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """fc2(silu(fc1 x) * fc3 x), no biases."""

    def __init__(self, c: PriorConfig, ops: Any = nn) -> None:
        super().__init__()
        self.fc1 = ops.Linear(c.width, c.hidden, bias=False)
        self.fc3 = ops.Linear(c.width, c.hidden, bias=False)
        self.fc2 = ops.Linear(c.hidden, c.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1(x)) * self.fc3(x))


class PriorBlock(nn.Module):
    """Attention to earlier ids, to the text where there is one, and an MLP."""

    def __init__(self, c: PriorConfig, ops: Any = nn) -> None:
        super().__init__()
        self.norm1, self.attention = RMSNorm(c.width), SelfAttention(c, ops)
        if c.takes_text:
            self.norm_cross, self.cross = RMSNorm(c.width), CrossAttention(c, ops)
        self.norm2, self.mlp = RMSNorm(c.width), FeedForward(c, ops)
        self.dropout = nn.Dropout(0.0)  # training sets it

    def forward(
        self, x: Tensor, text: tuple[Tensor, Tensor] | None, attend: Tensor | None,
        past: tuple[Tensor, Tensor] | None, at: int | Tensor, mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        x = x + self.dropout(self.attention(self.norm1(x), past, at, mask))
        if text is not None and attend is not None:
            x = x + self.dropout(self.cross(self.norm_cross(x), text, attend))
        return x + self.dropout(self.mlp(self.norm2(x)))


class PriorNetwork(nn.Module):
    """Ids and a condition in, logits of the next ids out."""

    def __init__(self, config: PriorConfig, ops: Any = nn) -> None:
        super().__init__()
        self.config = c = config
        if c.embedding == "factorized":
            self.embedding: nn.Module = FactorizedEmbedding(c.fsq_levels, c.width)
            self.head: Any = FactorizedHead(c.fsq_levels, c.width, c.head_bias, ops)
        else:
            self.embedding = ops.Embedding(c.vocab, c.width)
            self.head = TableHead(c.width, c.vocab, bias=c.head_bias)
        self.positions = nn.Parameter(torch.randn(c.seq_len + 1, c.width) * 0.1)
        self.start = nn.Parameter(torch.randn(c.width) * 0.1)
        if c.classes:
            self.class_embedding = ops.Embedding(len(c.classes) + 1, c.width)  # the last: no class
        if c.takes_text:
            self.context_in = ops.Linear(c.ctx_dim, c.width, bias=False)
            self.null_context = nn.Parameter(torch.randn(c.n_ctx_null, c.width) * 0.1)
        self.blocks = nn.ModuleList(PriorBlock(c, ops) for _ in range(c.depth))
        self.norm = RMSNorm(c.width)

    def condition(
        self, batch: int, class_ids: Tensor | None = None, states: Tensor | None = None,
        mask: Tensor | None = None, *, null_rows: Tensor | None = None, guided: bool = False,
    ) -> Condition:  # fmt: skip
        """Prepare a condition for `batch` clips; all per-text work happens here.

        `class_ids` `[B]` (the number of classes: none), text `states` `[B,S,ctx_dim]` and `mask`
        `[B,S]` (default: rows that are not zero); what is left out is null. A clip whose mask is
        empty is null as well. The null text is the first min(S, n_ctx_null) learned rows;
        `null_rows` `[B]` instead gives S for each clip, for a batch whose clips have been padded
        to one length. `guided`: 2B rows, the second half null.
        """
        c, device = self.config, self.positions.device
        start = self.start.expand(batch, -1)
        if c.classes:
            none = torch.full((batch,), len(c.classes), device=device)
            classes = none if class_ids is None else class_ids.to(device)
            classes = torch.cat([classes, none]) if guided else classes
            start = self.start.to(device) + self.class_embedding(classes)
        elif guided:
            start = start.repeat(2, 1)
        if not c.takes_text:
            return Condition(start)
        length = c.n_ctx_null if states is None else states.shape[1]
        n = min(length, c.n_ctx_null)
        null = F.pad(self.null_context[:n], (0, 0, 0, length - n)).to(device)
        rows = torch.full((batch,), length) if null_rows is None else null_rows
        place = torch.arange(length, device=device)
        null_attend = place < rows.to(device).clamp(1, n)[:, None]  # (B, S)
        context = null.expand(batch, -1, -1)
        attend = null_attend
        if states is not None:
            states = states.to(device)
            real = states.abs().sum(-1) > 0 if mask is None else mask.to(device).bool()
            given = real.any(1, keepdim=True)  # (B, 1)
            projected = self.context_in(states.to(self.positions.dtype))
            context = torch.where(given[..., None], projected, context)
            attend = torch.where(given, real, null_attend)
        if guided:
            context = torch.cat([context, null.to(context).expand(batch, -1, -1)])
            attend = torch.cat([attend, null_attend])
        text = [block.cross.prepare(context) for block in self.blocks]  # type: ignore[operator, union-attr]
        return Condition(start, text, attend[:, None, None])

    def over(self, condition: Condition, latent_frames: int) -> Condition:
        """The same for sequences of `latent_frames`."""
        if latent_frames == self.config.latent_frames:
            return condition
        return replace(
            condition, places=places(self.config, latent_frames).to(self.positions.device)
        )

    def inputs(self, ids: Tensor, condition: Condition) -> Tensor:
        """Ids `[B,n]` -> what positions 0..n are fed `[B,n+1,d]`."""
        x = torch.cat([condition.start[:, None], self.embedding(ids)], dim=1)
        n, order = x.shape[1], condition.places
        return x + (self.positions[:n] if order is None else self.positions[order[:n]]).to(x.device)

    def next_input(self, ids: Tensor, condition: Condition, at: int | Tensor) -> Tensor:
        """Ids `[B]` chosen for position at-1 -> what position `at` is fed `[B,1,d]`."""
        here = slice(at, at + 1) if isinstance(at, int) else at
        order = condition.places
        position = self.positions[here if order is None else order[here]]
        return self.embedding(ids[:, None]) + position.to(ids.device)

    def trunk(
        self, x: Tensor, condition: Condition, cache: Cache | None = None, at: int | Tensor = 0
    ) -> Tensor:
        """Inputs `[B,n,d]` of positions at..at+n-1 -> what the head reads `[B,n,d]`."""
        mask = None
        if cache is not None and isinstance(at, Tensor):
            place = torch.arange(cache.keys.shape[3], device=x.device)
            mask = additive(place <= at, x.dtype).view(1, 1, 1, -1)
        for i, block in enumerate(self.blocks):
            past = None if cache is None else (cache.keys[i], cache.values[i])
            text = None if condition.text is None else condition.text[i]
            x = block(x, text, condition.attend, past, at, mask)
        return self.norm(x)

    def forward(self, ids: Tensor, condition: Condition) -> Tensor:
        """Ids `[B,L]`, flat and time-first -> logits `[B,L+1,vocab]`; position i predicts id i.
        With L = seq_len, too: the last position then predicts what would come next."""
        return self.head(self.trunk(self.inputs(ids, condition), condition))
