"""Convolutions with a kernel of three in fewer multiplications, for processors without AVX-512.

Winograd's minimal filtering F(4, 3) (Lavin and Gray, arXiv 1509.09308): four outputs of a kernel of
three take six products in place of twelve, sixteen outputs of a 3x3 kernel 36 in place of 144:

    outputs = A @ ((G @ kernel) * (B @ inputs))

with a matrix product over the channels as `*`. Done a block at a time, so that all of it stays in
the cache. Results differ from a direct convolution by rounding, about 2e-6 of their size.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

TILE, SEEN = 4, 6  # outputs a side, and the inputs that they see
TILES = 128  # worked on at a time, at most
PIXELS = 512  # of a frame that are convolved over time at a time, at most
CHANNELS, ENOUGH = 128, 1536  # channels, and pixels of all frames, from which it is the faster way

# Interpolation at 0, 1, -1, 2, -2 and infinity.
A = torch.tensor([
    [1, 1, 1, 1, 1, 0],
    [0, 1, -1, 2, -2, 0],
    [0, 1, 1, 4, 4, 0],
    [0, 1, -1, 8, -8, 1],
], dtype=torch.float32)  # fmt: skip
B = torch.tensor([
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
], dtype=torch.float32)  # fmt: skip
G = torch.tensor([
    [6, 0, 0],
    [-4, -4, -4],
    [-4, 4, -4],
    [1, 2, 4],
    [1, -2, 4],
    [0, 0, 24],
], dtype=torch.float32) / 24  # fmt: skip
A2, B2, G2 = (torch.kron(x, x) for x in (A, B, G))  # over both axes of a tile


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether frames `[...,H,W,C]` are convolved with `[C',C,...]` faster here than by oneDNN. Only
    where no gradient is asked for, and frames consist of whole tiles."""
    return (
        x.device.type == "cpu" and x.dtype == torch.float32
        and x.shape[-3] % TILE == 0 and x.shape[-2] % TILE == 0
        and min(weight.shape[:2]) >= CHANNELS and x[..., 0].numel() >= ENOUGH
        and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        and torch.backends.cpu.get_cpu_capability() == "AVX2"
    )  # fmt: skip


def kernel2d(weight: Tensor) -> Tensor:
    """`[C',C,3,3]` -> `[36,C,C']`, as :func:`conv2d` takes it."""
    return (G2 @ weight.reshape(-1, 9).t()).view(-1, *weight.shape[:2]).transpose(1, 2)


def kernel1d(weight: Tensor) -> Tensor:
    """`[C',C,3]` -> `[6,C,C']`, as :func:`conv1d` takes it."""
    return (G @ weight.reshape(-1, 3).t()).view(-1, *weight.shape[:2]).transpose(1, 2)


def conv2d(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Frames `[N,H,W,C]`, H and W multiples of four, zeros around them -> `[N,H,W,C']`."""
    n, h, w, c = x.shape
    c_out, down, across = kernel.shape[2], h // TILE, w // TILE
    rows = _divisor(down, TILES // across)
    frames = _divisor(n, TILES // (down * across)) if rows == down else 1
    block = x.new_zeros(frames, TILE * rows + 2, w + 2, c)  # with the pixels around it
    seen = block.unfold(1, SEEN, TILE).unfold(2, SEEN, TILE).permute(4, 5, 0, 1, 2, 3)
    inputs = torch.empty_like(seen, memory_format=torch.contiguous_format)  # (6, 6, f, r, w/4, C)
    factors = inputs.new_empty(len(B2), frames * rows * across, c)
    products = factors.new_empty(len(B2), frames * rows * across, c_out)
    outputs = products.new_empty(TILE, TILE, frames, rows, across, c_out)
    y = x.new_empty(n, h, w, c_out)
    for f, top in itertools.product(range(0, n, frames), range(0, h, TILE * rows)):
        bottom = top + TILE * rows
        first, last = max(top - 1, 0), min(bottom + 1, h)
        block[:, 0], block[:, -1] = 0, 0  # unless they are overwritten
        block[:, first - top + 1 : last - top + 1, 1:-1] = x[f : f + frames, first:last]
        inputs.copy_(seen)
        torch.mm(B2, inputs.view(len(B2), -1), out=factors.view(len(B2), -1))
        torch.bmm(factors, kernel, out=products)
        torch.mm(A2, products.view(len(B2), -1), out=outputs.view(len(A2), -1))
        out = y[f : f + frames, top:bottom].view(frames, rows, TILE, across, TILE, c_out)
        torch.add(outputs.permute(2, 3, 0, 4, 1, 5), bias, out=out)
    return y


def conv3d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Clips `[N,T,H,W,3·C]`, three frames side by side in the channels of each, with
    `[C',C,3,3,3]` -> `[N,T,H,W,C']`."""
    kernel = kernel2d(weight.transpose(1, 2).flatten(1, 2))
    return conv2d(x.flatten(0, 1), kernel, bias).unflatten(0, x.shape[:2])


def conv1d(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Clips `[N,2+T,P,C]`, convolved over three frames -> `[N,T,P,C']`."""
    n, t, p, c = x.shape[0], x.shape[1] - 2, x.shape[2], x.shape[3]
    c_out, size = kernel.shape[2], _divisor(p, PIXELS)
    factors, products = x.new_empty(SEEN, size, c), x.new_empty(SEEN, size, c_out)
    y = x.new_empty(n, t, p, c_out)
    for clip, pixel, i in itertools.product(range(n), range(0, p, size), range(0, t, TILE)):
        inputs = x[clip, i : i + SEEN, pixel : pixel + size].flatten(1)  # at the end fewer: zeros
        out = y[clip, i : i + TILE, pixel : pixel + size]
        torch.mm(B[:, : len(inputs)], inputs, out=factors.view(SEEN, -1))
        torch.bmm(factors, kernel, out=products)
        torch.mm(A[: len(out)], products.view(SEEN, -1), out=out.flatten(1))
        out.add_(bias)
    return y


def _divisor(n: int, most: int) -> int:
    """The largest divisor of n that is `most` or less, 1 at the least."""
    return next(d for d in range(max(1, min(n, most)), 0, -1) if n % d == 0)
