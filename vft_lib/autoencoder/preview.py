"""The preview decoder: latents to pixels in one cheap pass, in place of the autoencoder's decoder.

The idea of TAEHV (github.com/madebyollin/taehv), in our own layers: the work is done at the
latents' size, one 1x1 layer makes four frames of a latent one, and three pixel shuffles make a
frame of eight times the size. Each shuffle but the last is followed by a convolution, which takes
off the edges of its blocks. No norms: an activation is `[B,T,H,W,C]` as in the autoencoder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.preview import PreviewConfig
from .convolutions import Conv2d, Past, with_front

FRAMES = 4  # of a latent frame; of the first one, the last alone


class Block(nn.Module):
    """Two convolutions of each frame around a mix with the frame before, added to the input."""

    def __init__(self, c: int, ops: Any = nn) -> None:
        super().__init__()
        self.conv1, self.conv2 = Conv2d(c, c, 3, ops=ops), Conv2d(c, c, 3, ops=ops)
        self.mix = ops.Linear(2 * c, c)

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        h = with_front(self, F.silu(self.conv1(x)), 1, past)
        h = F.silu(self.mix(torch.cat([h[:, 1:], h[:, :-1]], dim=-1)))
        return x + self.conv2(h)


class Up(nn.Module):
    """Doubles space: a convolution and a pixel shuffle."""

    def __init__(self, c_in: int, c_out: int, ops: Any = nn) -> None:
        super().__init__()
        self.conv = Conv2d(c_in, 4 * c_out, 3, ops=ops)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).unflatten(-1, (2, 2, -1))  # (B, T, H, W, 2, 2, C)
        return y.transpose(3, 4).flatten(4, 5).flatten(2, 3)


def preview_decoder(
    config: PreviewConfig | None, latent_channels: int, ops: Any = nn
) -> PreviewDecoder | None:  # fmt: skip
    """The part of a tokenizer that may be missing."""
    return None if config is None else PreviewDecoder(config, latent_channels, ops)


class PreviewDecoder(nn.Module):
    """Latents `[B,C,t,h,w]` -> RGB `[B,3,4t-3,8h,8w]` in about [-1,1], causal in time."""

    def __init__(self, config: PreviewConfig, latent_channels: int, ops: Any = nn) -> None:
        super().__init__()
        c = config
        self.conv_in = Conv2d(latent_channels, c.width, 3, ops=ops)
        self.blocks = nn.ModuleList(Block(c.width, ops) for _ in range(c.blocks))
        self.frames = ops.Linear(c.width, FRAMES * c.middle)
        self.up1, self.conv1 = Up(c.middle, c.middle, ops), Conv2d(c.middle, c.middle, 3, ops=ops)
        self.up2, self.conv2 = Up(c.middle, c.fine, ops), Conv2d(c.fine, c.fine, 3, ops=ops)
        self.out = Up(c.fine, 3, ops)

    def forward(self, latents: Tensor, at_once: int | None = None) -> Tensor:
        """`at_once`: latent frames worked on at a time, as in the autoencoder; the same result."""
        x = latents.permute(0, 2, 3, 4, 1)  # (B, t, h, w, C)
        past: Past = {}
        parts = [self._part(part, past) for part in x.split(at_once or x.shape[1], dim=1)]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return y[:, FRAMES - 1 :].permute(0, 4, 1, 2, 3)

    def _part(self, x: Tensor, past: Past) -> Tensor:
        x = self.conv_in(x)
        for block in self.blocks:
            x = block(x, past)
        x = self.frames(F.silu(x)).unflatten(-1, (FRAMES, -1))  # (B, t, h, w, 4, C)
        x = F.silu(x.movedim(4, 2).flatten(1, 2))  # (B, 4t, h, w, C)
        x = F.silu(self.up1(x))
        x = x + F.silu(self.conv1(x))
        x = F.silu(self.up2(x))
        x = x + F.silu(self.conv2(x))
        return self.out(x)
