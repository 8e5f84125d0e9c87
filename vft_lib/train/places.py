"""Where registers begin: at places of the picture, coarse to fine.

A register that begins as a random vector has to learn by itself which patches to read. One that
begins with the position vectors of a place shares what the network learns about positions with all
the others. Register 0 begins at the middle of the picture, 1 to 3 at quarters, and so on: a
quadtree, each level filled in an order that spreads over the picture. It is a beginning only, all
of it is trained; and nothing but nested dropout decides what comes first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..tokenizer.decoder import Decoder
from ..tokenizer.encoder import Encoder
from ..transformer.layers import PositionEmbedding


def places(count: int) -> list[tuple[float, float]]:
    """(y, x) in 0..1 for each of `count` registers."""
    found: list[tuple[float, float]] = []
    level = 0
    while len(found) < count:
        side = 1 << level
        cells = [(_spread(i, level), i) for i in range(side * side)]
        for (y, x), _ in cells:
            found.append(((y + 0.5) / side, (x + 0.5) / side))
        level += 1
    return found[:count]


def rows(encoder: Encoder) -> list[tuple[float, float]]:
    """(y, x) in 0..1 of the patches of a frame, in rows from the top."""
    h, w = encoder.c.patch_posemb.max_sizes[1:3]
    return [((y + 0.5) / h, (x + 0.5) / w) for y in range(h) for x in range(w)]


def _spread(i: int, level: int) -> tuple[int, int]:
    """Cell i of a level of 2^level cells a side: two bits a time choose a quarter, coarsest
    first."""
    y = x = 0
    for bit in range(level):
        pair = (i >> (2 * bit)) & 3
        y |= ((pair ^ (pair >> 1)) & 1) << (level - 1 - bit)
        x |= (pair & 1) << (level - 1 - bit)
    return y, x


@torch.no_grad()
def start_registers_at_places(encoder: Encoder, decoder: Decoder) -> None:
    """Mix the position vectors of its place into each register's own vector, in both networks."""
    count = encoder.registers.shape[1]
    where = rows(encoder) if encoder.c.grid else places(count)
    own = _positions(encoder.patch_posemb, where)  # (K, d)
    encoder.registers.mul_(0.5).add_(own)
    if hasattr(decoder, "register_posemb") and decoder.register_posemb.c.kind == "learnable_sum":
        table = decoder.register_posemb.table  # (axes, 1, d, max)
        if table.shape[0] == 2:
            slots = min(count, table.shape[-1])
            there = _positions(decoder.patch_posemb, where)[:slots]
            table[1, 0, :, :slots] = 0.5 * table[1, 0, :, :slots] + there.T


def _positions(posemb: PositionEmbedding, where: list[tuple[float, float]]) -> Tensor:
    """The rows' and columns' vectors at places, summed: `[K,d]`."""
    if posemb.c.kind != "learnable_sum":
        return torch.zeros(len(where), posemb.table.shape[-2])
    rows, columns = (posemb.table[axis, 0, :, : posemb.c.max_sizes[axis]].T for axis in (1, 2))
    found = []
    for y, x in where:
        row = rows[min(int(y * len(rows)), len(rows) - 1)]
        column = columns[min(int(x * len(columns)), len(columns) - 1)]
        found.append(row + column)
    return torch.stack(found)
