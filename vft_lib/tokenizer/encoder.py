"""Latents -> codes: registers read the clip, coarse to fine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..config.tokenizer import TokenizerConfig
from ..errors import VftError
from ..image_features import ImageFeatures
from ..transformer.fused import norm
from ..transformer.layers import PositionEmbedding, Transformer, patchify


class Encoder(nn.Module):
    """Patches of the latents and K learned registers per latent frame go through the trunk; what
    the registers hold at the end becomes the codes. The patches are dropped.

    In a `grid` there is a learned vector for each patch, which is added to it, and the codes are
    the patches' own."""

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
        self.global_proj = ops.Linear(c.global_feature, dim) if c.global_feature else None
        self.c = c

    def forward(self, latents: Tensor, features: ImageFeatures | None = None) -> Tensor:
        """Latents `[B,C,t,h,w]`, and the features of the same frames where the config asks for
        any -> `[B,t,K,6]` before quantization, float32. VftError for features that do not fit."""
        return self.to_codes(self.hidden(latents, features)).float()

    def hidden(self, latents: Tensor, features: ImageFeatures | None = None) -> Tensor:
        """What the registers hold at the end, `[B,t,K,d]`, of which :meth:`forward` makes codes."""
        features = features or ImageFeatures()
        self._check(latents, features)
        if features.grids is not None:
            grids = features.grids.permute(0, 4, 1, 2, 3).to(latents)
            latents = torch.cat([grids, latents], dim=1)  # (B, D+C, t, h, w)
        x = self.patch_posemb(self.patch_proj(patchify(latents, self.patch_size)))
        patches = x.flatten(2, 3)  # (B, t, p, d)
        registers = self.registers[: x.shape[1]].to(x).expand(len(x), -1, -1, -1)
        if self.global_proj is not None and features.vectors is not None:
            vector = self.global_proj(features.vectors.to(x))
            vector = vector if vector.ndim == 3 else vector[:, None]  # (B, t or 1, d)
            first = registers[:, :, 0] + vector
            registers = torch.cat([first[:, :, None], registers[:, :, 1:]], dim=2)
        if self.c.grid:
            return norm(self.trunk(patches + registers, registers[:, :, :0])[0])
        _, registers = self.trunk(patches, registers)
        return norm(registers)

    def _check(self, latents: Tensor, features: ImageFeatures) -> None:
        """VftError unless these are the features that go with these latents."""
        c, (b, _, t, h, w) = self.c, latents.shape
        per_frame = c.global_mode == "per_frame"
        vector = (b, t, c.global_feature) if per_frame else (b, c.global_feature)
        for what, got, wanted in (
            ("grids", features.grids, c.feature_channels and (b, t, h, w, c.feature_channels)),
            ("global vectors", features.vectors, c.global_feature and vector),
        ):
            if (got is not None or wanted) and (got is None or got.shape != wanted):
                raise VftError(
                    f"the encoder got image feature {what} of shape "
                    f"{None if got is None else list(got.shape)}; expected "
                    f"{list(wanted) if wanted else None}"
                )
