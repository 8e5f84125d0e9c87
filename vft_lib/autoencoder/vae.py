"""The video autoencoder: RGB <-> latents, 8x smaller in space, 4x in time, causal in time.

VidTok's `kl_causal_488` design (microsoft/VidTok, arXiv 2412.13061). Every activation lives as
`[B, T, H, W, C]`: the channel norm then runs over the last axis, a 2-D convolution is a view away
from channels-last, and so is a temporal one (a 3x1 convolution over `[T, H*W]`). Nothing is ever
transposed in memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.tokenizer import VAEConfig
from ..errors import VftError
from ..transformer import fused

FRONT_FRAMES = 3  # copies of the first frame put in front of a clip, so that T + 3 = 4t

Past = dict[nn.Module, Tensor]
"""The last frames that each causal layer has seen of a clip that comes piece by piece."""


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
        x = x.flatten(0, 1).permute(0, 3, 1, 2)  # (B·T, C, H, W), channels-last in memory
        x = F.pad(x, (0, 1, 0, 1)) if self.stride > 1 else x
        return self.conv(x).permute(0, 2, 3, 1).unflatten(0, (b, t))


class TemporalConv(nn.Module):
    """Causal convolution over three frames, per pixel."""

    def __init__(self, channels: int, ops: Any = nn) -> None:
        super().__init__()
        self.conv = ops.Conv2d(channels, channels, (3, 1))

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        h = x.shape[2]
        x = with_front(self, x.flatten(2, 3), 2, past)  # (B, 2+T, H·W, C)
        if fused.active():
            weight = self.conv.weight[..., 0].transpose(1, 2).flatten(1)  # (C, 3·C)
            return F.linear(side_by_side(x, 3), weight, self.conv.bias).unflatten(2, (h, -1))
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
        x = with_front(self, x, self.front, past)
        if fused.active():
            y = side_by_side(x, 3, self.conv.stride[0])
            return flat_conv3d(y, self.conv.weight, self.conv.bias)
        return self.conv(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)


def channel_norm(channels: int, ops: Any = nn) -> nn.Module:
    """LayerNorm over the channels of each pixel."""
    return ops.LayerNorm(channels, eps=1e-6)


def activated(norm: nn.Module, x: Tensor) -> Tensor:
    """SiLU of the norm."""
    if fused.active():
        return fused.channel_silu(x.shape[-1], x, norm.weight, norm.bias)
    return F.silu(norm(x), inplace=True)


class ResBlock(nn.Module):
    """norm, SiLU, convolution, twice; plus a skip that is 1x1 where the width changes."""

    def __init__(self, c_in: int, c_out: int, kind: str, ops: Any = nn) -> None:
        super().__init__()

        def conv(a: int) -> nn.Module:
            if kind == "2d":
                return Conv2d(a, c_out, 3, ops=ops)
            return TemporalConv(a, ops=ops) if kind == "1d" else Conv3d(a, c_out, ops=ops)

        self.norm1, self.conv1 = channel_norm(c_in, ops), conv(c_in)
        self.norm2, self.conv2 = channel_norm(c_out, ops), conv(c_out)
        self.skip = nn.Identity() if c_in == c_out else Conv2d(c_in, c_out, 1, ops=ops)

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        h = self.conv1(activated(self.norm1, x), past)
        h = self.conv2(activated(self.norm2, h), past)
        return h.add_(self.skip(x))


class SpatialAttention(nn.Module):
    """One head over the pixels of each frame."""

    def __init__(self, channels: int, ops: Any = nn) -> None:
        super().__init__()
        self.norm = channel_norm(channels, ops)
        self.q, self.k, self.v, self.out = (ops.Linear(channels, channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x).flatten(2, 3)  # (B, T, H·W, C): frames are the heads of one call
        h = F.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h))
        return x + self.out(h).view_as(x)


class Middle(nn.Module):
    def __init__(self, channels: int, ops: Any = nn) -> None:
        super().__init__()
        self.block1 = ResBlock(channels, channels, "3d", ops)
        self.attention = SpatialAttention(channels, ops)
        self.block2 = ResBlock(channels, channels, "3d", ops)

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        return self.block2(self.attention(self.block1(x, past)), past)


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
        conv = self.conv.conv
        w0, w1, w2 = conv.weight.float().unbind(2)  # (C, C, 3, 3) each
        both = torch.cat([torch.stack([w0 + w1, w2], 2), torch.stack([w0, w1 + w2], 2)])
        padded, bias = with_front(self, x, 1, past), conv.bias.repeat(2).to(x)
        if fused.active():
            y = flat_conv3d(side_by_side(padded, 2), both.to(x), bias)
        else:
            padded = padded.permute(0, 4, 1, 2, 3)  # (B, C, 1+T, H, W)
            y = F.conv3d(padded, both.to(x), bias, padding=(0, 1, 1)).permute(0, 2, 3, 4, 1)
        y = y.unflatten(4, (2, -1)).movedim(4, 2)  # (B, T, 2, H, W, C)
        return torch.lerp(y, x[:, :, None], torch.sigmoid(self.mix).to(x)).flatten(1, 2)


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


class Level(nn.Module):
    """A resolution: pairs of a 2-D and a temporal block, then spatial, then temporal resampling."""

    def __init__(
        self, c_in: int, c: int, blocks: int, space: nn.Module,
        time: nn.Module | None, ops: Any = nn,
    ) -> None:  # fmt: skip
        super().__init__()
        self.spatial = nn.ModuleList(
            ResBlock(c_in if i == 0 else c, c, "2d", ops) for i in range(blocks)
        )
        self.temporal = nn.ModuleList(ResBlock(c, c, "1d", ops) for _ in range(blocks))
        self.space, self.time = space, time

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        for spatial, temporal in zip(self.spatial, self.temporal):
            x = temporal(spatial(x), past)
        x = self.space(x)
        return x if self.time is None else self.time(x, past)


class Encoder(nn.Module):
    def __init__(self, c: VAEConfig, ops: Any = nn) -> None:
        super().__init__()
        widths = [c.width * m for m in c.multipliers]
        self.conv_in = Conv3d(3, c.width, ops=ops)
        levels = []
        for i, w in enumerate(widths):
            space = Conv2d(w, w, 3, stride=2, ops=ops) if i < len(widths) - 1 else nn.Identity()
            time = TimeDown(w, ops) if i in (1, 2) else None
            levels.append(Level(widths[max(i - 1, 0)], w, c.encoder_blocks, space, time, ops))
        self.levels = nn.ModuleList(levels)
        self.middle = Middle(widths[-1], ops)
        self.norm_out = channel_norm(widths[-1], ops)
        self.conv_out = Conv3d(widths[-1], 2 * c.latent_channels, ops=ops)

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        x = self.conv_in(x, past)
        for level in self.levels:
            x = level(x, past)
        return self.conv_out(activated(self.norm_out, self.middle(x, past)), past)


class Decoder(nn.Module):
    def __init__(self, c: VAEConfig, ops: Any = nn) -> None:
        super().__init__()
        widths = [c.width * m for m in c.multipliers]
        self.conv_in = Conv3d(c.latent_channels, widths[-1], ops=ops)
        self.middle = Middle(widths[-1], ops)
        levels = []
        for i in reversed(range(len(widths))):
            w, w_in = widths[i], widths[min(i + 1, len(widths) - 1)]
            space = SpaceUp(w, ops) if i > 0 else nn.Identity()
            time = TimeUp(w, ops) if i in (1, 2) else None
            levels.append(Level(w_in, w, c.decoder_blocks, space, time, ops))
        self.levels = nn.ModuleList(levels)
        self.norm_out = channel_norm(widths[0], ops)
        self.conv_out = Conv3d(widths[0], 3, ops=ops)

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        x = self.middle(self.conv_in(x, past), past)
        for level in self.levels:
            x = level(x, past)
        return self.conv_out(activated(self.norm_out, x), past)


class VideoAutoencoder(nn.Module):
    """RGB `[B,3,T,H,W]` in [-1,1], T = 1 + 4n  <->  latents `[B,C,t,H/8,W/8]`, t = 1 + n."""

    def __init__(self, config: VAEConfig, ops: Any = nn) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, ops)
        self.decoder = Decoder(config, ops)

    def moments(self, video: Tensor, at_once: int | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the posterior, each `[B,C,t,h,w]`. `at_once`: latent frames
        worked on at a time, which bounds the memory that a long clip takes; the result is the
        same, as every layer that looks back keeps the last frames it has seen. None: all."""
        b, c, t, h, w = video.shape
        if c != 3 or (t - 1) % 4 or h % 8 or w % 8:
            raise VftError(
                f"Got a clip of shape {tuple(video.shape)}; the autoencoder takes [B,3,T,H,W] with "
                "T = 1 + 4n (1, 5, 9, 13, 17, …) and H, W multiples of 8. Pad or trim it first."
            )
        x = video.permute(0, 2, 3, 4, 1)  # (B, T, H, W, 3)
        x = torch.cat([x[:, :1].expand(-1, FRONT_FRAMES, -1, -1, -1), x], dim=1)
        y = _in_pieces(self.encoder, x.contiguous(), None if at_once is None else 4 * at_once)
        mean, logvar = y.permute(0, 4, 1, 2, 3).chunk(2, dim=1)
        return mean, logvar

    def encode(self, video: Tensor, at_once: int | None = None) -> Tensor:
        """Posterior mean. The published release draws a sample; a mean is the same every time."""
        return self.moments(video, at_once)[0]

    def decode(self, latents: Tensor, at_once: int | None = None) -> Tensor:
        """Latents `[B,C,t,h,w]` to RGB `[B,3,4t-3,8h,8w]`, not clamped. `at_once` as in
        :meth:`moments`."""
        x = _in_pieces(self.decoder, latents.permute(0, 2, 3, 4, 1).contiguous(), at_once)
        return x[:, FRONT_FRAMES:].permute(0, 4, 1, 2, 3)


def _in_pieces(network: nn.Module, x: Tensor, frames: int | None) -> Tensor:
    """`x` `[B,T,H,W,C]` through the network, `frames` of it at a time."""
    if frames is None or frames >= x.shape[1]:
        return network(x)
    past: Past = {}
    return torch.cat([network(piece, past) for piece in x.split(frames, dim=1)], dim=1)
