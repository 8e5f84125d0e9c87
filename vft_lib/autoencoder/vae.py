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
from .convolutions import Conv2d, Conv3d, Past, SpaceUp, TemporalConv, TimeDown, TimeUp
from .winograd import TILE

FRONT_FRAMES = 3  # copies of the first frame put in front of a clip, so that T + 3 = 4t
PART = 16 << 20  # bytes of activations that a residual block works on at a time, on a CPU


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
        self.apart = {"2d": 1, "1d": 2}.get(kind)  # the axis whose places do not see each other
        self.widths = c_in, c_out

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        if self.apart is None or x.device.type != "cpu" or torch.is_grad_enabled():
            return self._whole(x, past)
        # A few frames or rows at a time: their activations stay in the cache, and in memory that
        # the process has already.
        place = x[..., 0].numel() // x.shape[self.apart] * max(self.widths) * x.element_size()
        size = max(1, PART // (TILE * place)) * TILE if self.apart == 2 else max(1, PART // place)
        if size >= x.shape[self.apart]:
            return self._whole(x, past)
        y = x.new_empty(*x.shape[:-1], self.widths[1])
        for i, (part, out) in enumerate(zip(x.split(size, self.apart), y.split(size, self.apart))):
            out.copy_(self._whole(part, None if past is None else past.setdefault((self, i), {})))
        return y

    def _whole(self, x: Tensor, past: Past | None) -> Tensor:
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
