"""The autoencoder's convolutions: over pictures, over time, over both, and from size to size.

Every activation is `[B,T,H,W,C]`. What looks back in time takes `past`: the last frames that each
layer has seen of a clip that comes piece by piece.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..transformer import fused
from . import winograd

Past = dict[Any, Any]
"""The last frames that each causal layer has seen of a clip that comes piece by piece; for a block
that works on rows one by one, such a dict for each of them."""


def with_front(layer: nn.Module, x: Tensor, frames: int, past: Past | None) -> Tensor:
    """`x` `[B,T,...,C]` with the `frames` before it: zeros where the clip begins."""
    before = None if past is None else past.get(layer)
    if before is None:
        before = x.new_zeros(x.shape[0], frames, *x.shape[2:])
    x = torch.cat([before, x], dim=1)
    if past is not None:
        past[layer] = x[:, -frames:].clone()  # a view would keep all of x
    return x


def side_by_side(x: Tensor, frames: int, stride: int = 1) -> Tensor:
    """`frames` neighbouring frames of `x` `[B,T,...,C]` in the channels of one: their convolution
    over time is then a matrix product, which a GPU's libraries do best, backwards too."""
    count = (x.shape[1] - frames) // stride + 1
    parts = [x[:, i : i + stride * (count - 1) + 1 : stride] for i in range(frames)]
    return torch.cat(parts, dim=-1)


def lies_flat(x: Tensor) -> bool:
    """Whether convolutions over time and space become two-dimensional ones of frames that lie
    :func:`side_by_side`: in training on a GPU, and for gradients in bfloat16 on a CPU. There
    oneDNN's gradient of a 3-D kernel is NaN for some shapes on processors with AMX (torch 2.13)."""
    on_cpu = x.device.type == "cpu" and x.dtype == torch.bfloat16
    return fused.active() or (on_cpu and torch.is_grad_enabled())


def flat_conv3d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution with `weight` `[O,I,k,3,3]` of frames that lie :func:`side_by_side`
    `[B,T,H,W,k·I]` -> `[B,T,H,W,O]`."""
    b = len(x)
    kernel = weight.transpose(1, 2).flatten(1, 2)  # (O, k·I, 3, 3)
    y = F.conv2d(x.flatten(0, 1).permute(0, 3, 1, 2), kernel, bias, padding=1)
    return y.permute(0, 2, 3, 1).unflatten(0, (b, -1))


class Conv2d(nn.Module):
    """k x k convolution of each frame."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, ops: Any = nn) -> None:
        super().__init__()
        # A strided convolution pads right and bottom only, as VidTok does.
        self.conv = ops.Conv2d(
            c_in, c_out, kernel, stride=stride, padding=kernel // 2 if stride == 1 else 0
        )
        self.stride = stride

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        b, t = x.shape[:2]
        weight = self.conv.weight
        if weight.shape[2] == 3 and self.stride == 1 and winograd.pays(x, weight):
            kernel, bias = winograd.kernel2d(weight.to(x)), self.conv.bias.to(x)
            return winograd.conv2d(x.flatten(0, 1), kernel, bias).unflatten(0, (b, t))
        x = x.flatten(0, 1).permute(0, 3, 1, 2)  # (B·T, C, H, W), channels-last in memory
        x = F.pad(x, (0, 1, 0, 1)) if self.stride > 1 else x
        return self.conv(x).permute(0, 2, 3, 1).unflatten(0, (b, t))


class TemporalConv(nn.Module):
    """Causal convolution over three frames, per pixel."""

    def __init__(self, channels: int, ops: Any = nn) -> None:
        super().__init__()
        self.conv = ops.Conv2d(channels, channels, (3, 1))

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        h, weight = x.shape[2], self.conv.weight
        fast = x.shape[1] > 2 and winograd.pays(x, weight)  # tiles of four frames
        x = with_front(self, x.flatten(2, 3), 2, past)  # (B, 2+T, H·W, C)
        if fused.active():
            flat = weight[..., 0].transpose(1, 2).flatten(1)  # (C, 3·C)
            return F.linear(side_by_side(x, 3), flat, self.conv.bias).unflatten(2, (h, -1))
        if fast:
            kernel, bias = winograd.kernel1d(weight.squeeze(3).to(x)), self.conv.bias.to(x)
            return winograd.conv1d(x, kernel, bias).unflatten(2, (h, -1))
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).unflatten(2, (h, -1))


class Conv3d(nn.Module):
    """3x3x3 convolution, causal in time: `front` frames before those that come in."""

    def __init__(
        self, c_in: int, c_out: int, time_stride: int = 1, front: int = 2, ops: Any = nn
    ) -> None:
        super().__init__()
        self.conv = ops.Conv3d(c_in, c_out, 3, stride=(time_stride, 1, 1), padding=(0, 1, 1))
        self.front = front

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        x, weight = with_front(self, x, self.front, past), self.conv.weight
        if lies_flat(x):
            return flat_conv3d(side_by_side(x, 3, self.conv.stride[0]), weight, self.conv.bias)
        if winograd.pays(x, weight):
            y = side_by_side(x, 3, self.conv.stride[0])
            return winograd.conv3d(y, weight.to(x), self.conv.bias.to(x))
        return self.conv(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)


class TimeDown(nn.Module):
    """Halves time: a learned mix of the mean of three frames and a strided convolution.

    Both look at ONE zero frame in front, unlike the two of the stride-1 convolutions, and the
    mean counts that zero.
    """

    def __init__(self, channels: int, ops: Any = nn) -> None:
        super().__init__()
        self.conv = Conv3d(channels, channels, time_stride=2, front=0, ops=ops)
        self.mix = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        padded = with_front(self, x, 1, past)
        mean = (padded[:, 0:-2:2] + padded[:, 1:-1:2]).add_(padded[:, 2::2]).div_(3)
        return torch.lerp(self.conv(padded), mean, torch.sigmoid(self.mix).to(x))


class TimeUp(nn.Module):
    """Doubles time: every frame twice, then a learned mix of that and a causal convolution.

    Of the three frames under the kernel two are always the same one, so their weights are summed
    first: over frames i-1 and i, (w0+w1, w2) makes frame 2i and (w0, w1+w2) frame 2i+1. Two thirds
    of the work.
    """

    def __init__(self, channels: int, ops: Any = nn) -> None:
        super().__init__()
        self.conv = Conv3d(channels, channels, ops=ops)
        self.mix = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        conv, mix = self.conv.conv, torch.sigmoid(self.mix).to(x)
        if winograd.pays(x, conv.weight):
            return self._by_frames(with_front(self, x, 1, past), mix)
        w0, w1, w2 = conv.weight.float().unbind(2)  # (C, C, 3, 3) each
        both = torch.cat([torch.stack([w0 + w1, w2], 2), torch.stack([w0, w1 + w2], 2)])
        padded, bias = with_front(self, x, 1, past), conv.bias.repeat(2).to(x)
        if lies_flat(x):
            y = flat_conv3d(side_by_side(padded, 2), both.to(x), bias)
        else:
            padded = padded.permute(0, 4, 1, 2, 3)  # (B, C, 1+T, H, W)
            y = F.conv3d(padded, both.to(x), bias, padding=(0, 1, 1)).permute(0, 2, 3, 4, 1)
        y = y.unflatten(4, (2, -1)).movedim(4, 2)  # (B, T, 2, H, W, C)
        return torch.lerp(y, x[:, :, None], mix).flatten(1, 2)

    def _by_frames(self, padded: Tensor, mix: Tensor) -> Tensor:
        """The same by Winograd. A frame's products with w0, w1 and w2 serve its own two frames and
        the next one's: three convolutions in place of four."""
        b, t, h, w, c = padded.shape
        weight, bias = self.conv.conv.weight.to(padded), self.conv.conv.bias.to(padded)
        kernel = winograd.kernel2d(torch.cat(weight.unbind(2)))  # to 3C channels
        bias = F.pad(bias, (0, 2 * c))
        y = padded.new_empty(b, t - 1, 2, h, w, c)
        for clip, out in zip(padded, y):
            before = winograd.conv2d(clip[:1], kernel, bias)[0]
            for frame, two in zip(clip[1:], out):
                now = winograd.conv2d(frame[None], kernel, bias)[0]
                both = before[..., :c] + now[..., 2 * c :]
                torch.add(both, before[..., c : 2 * c], out=two[0])
                torch.add(both, now[..., c : 2 * c], out=two[1])
                two.lerp_(frame, mix)
                before = now
        return y.flatten(1, 2)


class SpaceUp(nn.Module):
    """Doubles space: nearest neighbour, then a 3x3 convolution.

    Of the nine pixels under the kernel only four differ; with the weights of equal ones summed,
    each of a pixel's four children takes a 2x2 convolution: four ninths of the work.
    """

    def __init__(self, channels: int, ops: Any = nn) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, ops=ops)

    def forward(self, x: Tensor) -> Tensor:
        b, t, h, w, c = x.shape
        conv, flat = self.conv.conv, x.flatten(0, 1).permute(0, 3, 1, 2)  # (B·T, C, H, W)
        y = x.new_empty(b * t, h, 2, w, 2, c)
        for i in (0, 1):
            rows = _summed(conv.weight.float(), 2, i)
            for j in (0, 1):
                kernel = _summed(rows, 3, j)
                shifted = F.pad(flat, (1 - j, j, 1 - i, i))
                y[:, :, i, :, j] = F.conv2d(
                    shifted, kernel.to(x), conv.bias.to(x)
                ).permute(0, 2, 3, 1)  # fmt: skip
        return y.view(b, t, 2 * h, 2 * w, c)


def _summed(weight: Tensor, dim: int, child: int) -> Tensor:
    """Three taps on doubled pixels as two on single ones: (w0, w1+w2) for the first child of a
    pixel, which sees its left neighbour, (w0+w1, w2) for the second, which sees its right."""
    w0, w1, w2 = weight.unbind(dim)
    return torch.stack([w0, w1 + w2] if child == 0 else [w0 + w1, w2], dim)
