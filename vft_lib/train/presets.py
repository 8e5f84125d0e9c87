"""Named recipes. `nano`: two CPU cores, under two hours. `small`: one data-centre GPU, under 25
minutes. `tiny`: seconds, for tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config.prior import PriorConfig, TextEncoderConfig
from ..config.tokenizer import (
    DecoderConfig,
    EncoderConfig,
    MaskConfig,
    PosembConfig,
    SamplingDefaults,
    TokenizerConfig,
    TransformerConfig,
    VAEConfig,
)
from ..world.world import MOTIONS
from .loop import Schedule
from .prior import PriorRecipe, caption_words
from .tokenizer import TokenizerRecipe
from .vae import VAERecipe


@dataclass(frozen=True)
class Preset:
    vae: VAERecipe
    tokenizer: TokenizerRecipe
    prior: PriorRecipe


def _prior(
    tokenizer: TokenizerConfig, *, width: int, head_dim: int, depth: int, text: int,
    schedule: Schedule,
) -> PriorRecipe:  # fmt: skip
    """`text`: width of the text encoder."""
    config = PriorConfig(
        name=f"{tokenizer.name}-prior", tokenizer=tokenizer.name, depth=depth, width=width,
        head_dim=head_dim, seq_len=tokenizer.latent_frames * tokenizer.registers, cond="both",
        vocab=tokenizer.vocab, latent_frames=tokenizer.latent_frames, classes=MOTIONS,
        ctx_dim=text, n_ctx_null=4, max_text_len=48, head_bias=True, embedding="factorized",
        fsq_levels=tokenizer.fsq_levels, size=tokenizer.size, fps=tokenizer.fps,
        text_encoder=TextEncoderConfig(caption_words(), dim=text, head_dim=min(32, text)),
        guidance=((1, 2.0),), temperature=0.8,
    )  # fmt: skip
    return PriorRecipe(config, schedule)


def _preset(
    name: str, *, size: int, registers: int, vae: VAEConfig, dim: int, head_dim: int,
    encoder_depth: int, decoder_depth: int, kinds: int, patch: int, vae_schedule: Schedule,
    schedule: Schedule, clips: int, crop: int, prior: dict[str, Any],
) -> Preset:  # fmt: skip
    grid = (5, size // 8, size // 8)
    config = TokenizerConfig(
        name=name, size=size, registers=registers, vae=vae,
        encoder=EncoderConfig(
            TransformerConfig(dim, encoder_depth, head_dim), (1, patch, patch),
            PosembConfig(grid), register_frames=5,
        ),
        decoder=DecoderConfig(
            TransformerConfig(dim, decoder_depth, head_dim, modulation_kinds=kinds),
            (1, patch, patch), PosembConfig(grid), PosembConfig((5, registers)),
            mask=MaskConfig("full"),
        ),
        sampling=SamplingDefaults(steps=10, guidance=1.0, apg=False),
    )  # fmt: skip
    return Preset(
        VAERecipe(vae, size, vae_schedule, crop=crop),
        TokenizerRecipe(config, schedule, clips=clips),
        _prior(config, **prior),
    )


PRESETS = {
    "nano": _preset(
        "vft-nano", size=64, registers=16,
        vae=VAEConfig(16, (1, 2, 4, 4), 1, 2, latent_channels=8), crop=32,
        dim=256, head_dim=64, encoder_depth=3, decoder_depth=6, kinds=1, patch=2,
        vae_schedule=Schedule(1800, 16, lr=1e-3, matrix_lr=4e-3, warmup=50, ema=0.998),
        schedule=Schedule(3600, 24, lr=1e-3, matrix_lr=2e-3, warmup=60, ema=0.998),
        clips=16_384,
        prior={"width": 256, "head_dim": 64, "depth": 4, "text": 128, "schedule":
               Schedule(3000, 32, lr=2e-3, matrix_lr=4e-3, warmup=100, ema=0.998)},
    ),
    "small": _preset(
        "vft-small", size=128, registers=64,
        vae=VAEConfig(32, (1, 2, 4, 4), 2, 3, latent_channels=16), crop=64,
        dim=512, head_dim=64, encoder_depth=8, decoder_depth=12, kinds=2, patch=2,
        vae_schedule=Schedule(6000, 32, lr=1e-3, matrix_lr=4e-3, warmup=100, ema=0.999),
        schedule=Schedule(20_000, 128, lr=1e-3, matrix_lr=2e-3, warmup=300, ema=0.9995),
        clips=65_536,
        prior={"width": 768, "head_dim": 64, "depth": 12, "text": 256, "schedule":
               Schedule(20_000, 128, lr=1e-3, matrix_lr=2e-3, warmup=300, ema=0.9995)},
    ),
    "tiny": _preset(
        "vft-tiny", size=32, registers=8, vae=VAEConfig(8, (1, 1, 2, 2), 1, 1, 4), crop=16,
        dim=32, head_dim=16, encoder_depth=2, decoder_depth=2, kinds=2, patch=2,
        vae_schedule=Schedule(12, 2, lr=1e-3, matrix_lr=1e-3, warmup=2),
        schedule=Schedule(12, 4, lr=1e-3, matrix_lr=1e-3, warmup=2), clips=64,
        prior={"width": 32, "head_dim": 16, "depth": 2, "text": 16,
               "schedule": Schedule(12, 4, lr=1e-3, matrix_lr=1e-3, warmup=2)},
    ),
}  # fmt: skip
