"""Latents -> codes: registers read the clip, coarse to fine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..config.tokenizer import TokenizerConfig
from ..errors import VftError
from ..transformer.fused import norm
from ..transformer.layers import PositionEmbedding, Transformer, patchify


class Encoder(nn.Module):
    """Patches of the latents and K learned registers per latent frame go through the trunk; what
    the registers hold at the end becomes the codes. The patches are dropped."""

    def __init__(self, config: TokenizerConfig, ops: Any = nn) -> None:
        super().__init__()
        c, dim = config.encoder, config.encoder.trunk.dim
        pt, ph, pw = self.patch_size = c.patch_size
        channels = config.vae.latent_channels + c.feature_channels
        self.patch_proj = ops.Linear(pt * ph * pw * channels, dim)
        self.patch_posemb = PositionEmbedding(c.patch_posemb, dim)
        self.registers = nn.Parameter(
            torch.randn(c.register_frames, config.registers, dim) * dim**-0.5
        )
        self.trunk = Transformer(c.trunk, c.mask, ops)
        self.to_codes = ops.Linear(dim, len(config.fsq_levels))
        # Kept so that the file is whole; what feeds it is not part of this library.
        self.global_proj = ops.Linear(c.global_feature, dim) if c.global_feature else None
        self.features = c.feature_channels or c.global_feature

    def forward(self, latents: Tensor) -> Tensor:
        """Latents `[B,C,t,h,w]` -> `[B,t,K,6]` before quantization, float32."""
        if self.features:
            raise VftError(
                "this tokenizer encodes from DINOv2 features beside the latents, which this "
                "library does not compute: it decodes tokens, encode with another tokenizer"
            )
        x = self.patch_posemb(self.patch_proj(patchify(latents, self.patch_size)))
        patches = x.flatten(2, 3)  # (B, t, p, d)
        registers = self.registers[: x.shape[1]].to(x).expand(len(x), -1, -1, -1)
        _, registers = self.trunk(patches, registers)
        return self.to_codes(norm(registers)).float()
