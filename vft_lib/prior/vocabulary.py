"""Ids in and out of the prior: a table with a vector for each id, or vectors of FSQ digits.

64,000 ids at width 256 would be 33 million weights twice. But an id is six digits (levels
8,8,8,5,5,5), and its neighbours in a digit look alike; so the factorized kind keeps vectors for
digit *features*, every single digit, every pair, and the two halves (first three, last three), and
an id's vector is the sum of its 23. That is 1,303 vectors, and still an exact softmax over all ids.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PART = 128  # positions whose softmax is normalized at a time: they stay in a CPU's cache


class TableHead(nn.Linear):
    """Logits from a vector for each id."""

    def nll(self, x: Tensor, ids: Tensor) -> Tensor:
        """-log p(id) in nats `[N]` float32, for x `[N,d]` and ids `[N]`."""
        parts = zip(x.split(PART), ids.split(PART))
        return torch.cat([F.cross_entropy(self(a).float(), b, reduction="none") for a, b in parts])


class Digits(nn.Module):
    """The digit features of an id, as row numbers of one table. Has no weights of its own."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        n = len(levels)
        self.levels, self.low = levels, tuple(range(n // 2))
        self.high = tuple(range(n // 2, n))
        subsets = [(i,) for i in range(n)] + list(itertools.combinations(range(n), 2))
        self.subsets = list(dict.fromkeys([*subsets, self.low, self.high]))
        self.sizes = [math.prod(levels[i] for i in s) for s in self.subsets]
        self.starts = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        self.rows = sum(self.sizes)
        # row of subset s = start + sum of digit i * (product of the levels before i in s)
        steps = torch.zeros(n, len(self.subsets), dtype=torch.int64, device="cpu")
        for column, s in enumerate(self.subsets):
            for place, i in enumerate(s):
                steps[i, column] = math.prod(levels[j] for j in s[:place])
        # Models are built on the meta device; these are no weights, nothing would fill them in.
        level = torch.tensor(levels, device="cpu")
        self.register_buffer("level", level, persistent=False)
        self.register_buffer("basis", level.cumprod(0) // level, persistent=False)
        self.register_buffer("steps", steps, persistent=False)
        self.register_buffer("start", torch.tensor(self.starts, device="cpu"), persistent=False)
        # hot[i-th low digit's value, a]: 1 where the low half `a` has that digit
        low_sizes = [levels[i] for i in self.low]
        a = torch.arange(math.prod(low_sizes), device="cpu")
        hot = [
            F.one_hot(a // math.prod(low_sizes[:i]) % size, size).T
            for i, size in enumerate(low_sizes)
        ]
        self.register_buffer("hot", torch.cat(hot).float(), persistent=False)

    def digits(self, ids: Tensor) -> Tensor:
        """Ids `[...]` -> digits `[...,6]`, first digit fastest."""
        return ids[..., None] // cast(Tensor, self.basis) % cast(Tensor, self.level)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids `[...]` -> feature rows `[...,23]`."""
        products = self.digits(ids)[..., None] * cast(Tensor, self.steps)  # (..., 6, 23)
        return products.sum(-2) + cast(Tensor, self.start)

    def factors(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Feature logits `[N,1303]` -> `low [N,512]` and `cross [N,125,24]`, such that the logit of
        id a + 512 b is `low[a] + sum over the low digits i of cross[b, i's value in a]`."""
        n, low, high = len(features), self.low, self.high
        logits = dict(zip(self.subsets, features.split(self.sizes, 1)))

        def spread(subsets: list[tuple[int, ...]], axes: tuple[int, ...]) -> Tensor:
            total = features.new_zeros(n, *(self.levels[i] for i in reversed(axes)))
            for subset in subsets:
                shape = [self.levels[i] if i in subset else 1 for i in reversed(axes)]
                total = total + logits[subset].view(n, *shape)
            return total

        inside = [s for s in self.subsets if set(s) <= set(low)]
        above = spread([s for s in self.subsets if set(s) <= set(high)], high).flatten(1)
        cross = []
        for i in low:
            both = spread([(i, j) for j in high], (i, *high))  # (N, d5, d4, d3, d_i)
            cross.append(both.flatten(1, -2))
        cross[0] = cross[0] + above[..., None]
        return spread(inside, low).flatten(1), torch.cat(cross, -1)

    def log_sum(self, low: Tensor, cross: Tensor) -> Tensor:
        """log sum exp over all ids `[N]` from :meth:`factors`.

        exp(low[a] + sum of cross_i[b, d_i(a)]) is a product with one factor for each low digit, so
        the sum over a is taken digit by digit: exact, at a fortieth of 64,000 exponentials, as
        long as `low` and `cross` disagree by less than the 87 nats that float32's exp spans.
        """
        top = low.detach().amax(1)  # of this and of `peaks` the sum does not depend
        sizes = [self.levels[i] for i in self.low]
        factors = cross.split(sizes, -1)  # (N, 125, 8) each
        peaks = [f.detach().amax(-1) for f in factors]  # (N, 125): nothing overflows
        mass = (low - top[:, None]).exp().unflatten(1, (-1, sizes[0]))  # (N, 64, 8)
        mass = torch.bmm((factors[0] - peaks[0][..., None]).exp(), mass.transpose(1, 2))
        for f, peak, size in zip(factors[1:], peaks[1:], sizes[1:]):
            part = (f - peak[..., None]).exp()[:, :, None]  # (N, 125, 1, 8)
            mass = (mass.unflatten(-1, (-1, size)) * part).sum(-1)
        tiny = torch.finfo(mass.dtype).tiny
        each = mass[..., 0].clamp(min=tiny).log() + torch.stack(peaks).sum(0)  # (N, 125)
        return each.logsumexp(1) + top


class FactorizedEmbedding(nn.Module):
    """Id -> the sum of its digit features' vectors."""

    def __init__(self, levels: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.digits = Digits(levels)
        self.weight = nn.Parameter(torch.randn(self.digits.rows, dim) * 0.1)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.digits(ids).flatten(0, -2)
        weight = self.weight.to(rows.device)
        return F.embedding_bag(rows, weight, mode="sum").view(*ids.shape, weight.shape[1])


class FactorizedHead(nn.Module):
    """Logits over all ids from logits of their digit features."""

    def __init__(self, levels: tuple[int, ...], dim: int, bias: bool, ops: Any = nn) -> None:
        super().__init__()
        self.digits = Digits(levels)
        self.features = ops.Linear(dim, self.digits.rows, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[...,d]` -> logits `[...,vocab]`, float32."""
        low, cross = self.digits.factors(self.features(x).float().flatten(0, -2))
        logits = cross @ cast(Tensor, self.digits.hot) + low[:, None]  # (N, 125, 512)
        return logits.view(*x.shape[:-1], -1)

    def nll(self, x: Tensor, ids: Tensor) -> Tensor:
        """-log p(id) in nats `[N]` float32, for x `[N,d]` and ids `[N]`, without the logits of all
        ids (:meth:`Digits.log_sum`)."""
        # One sum of feature vectors for each entry of the factors, and one for the right ids: there
        # are far fewer of them than sums of every position's feature logits.
        with torch.autocast(x.device.type, enabled=False):
            x, weight = x.float(), self.features.weight.float()
            bias = self.features.bias
            column = x.new_zeros(len(weight)) if bias is None else bias.float()
            table = torch.cat([weight, column[:, None]], 1)  # (1303, d + 1)
            low, cross = (
                F.linear(x, f[:-1].flatten(1).T, f[-1].flatten())
                for f in self.digits.factors(table.T)
            )
            right = F.embedding_bag(self.digits(ids), table, mode="sum")
            right = (x * right[:, :-1]).sum(1) + right[:, -1]
        cross = cross.unflatten(1, (-1, len(cast(Tensor, self.digits.hot))))
        part = 64 * PART if x.is_cuda else PART
        parts = [self.digits.log_sum(*p) for p in zip(low.split(part), cross.split(part))]
        return torch.cat(parts) - right
