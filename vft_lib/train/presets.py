"""Named recipes. `nano`: two CPU cores, under two hours. `small`: one data-centre GPU, under 25
minutes; `small-cpu`: the same models in batches for two CPU cores, to go on from trained ones.
`tiny`: seconds, for tests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..config.preview import PreviewConfig
from ..config.prior import PriorConfig, TextEncoderConfig
from ..config.sampling import SamplingDefaults
from ..config.tokenizer import (
    DecoderConfig,
    EncoderConfig,
    MaskConfig,
    PosembConfig,
    TokenizerConfig,
    TransformerConfig,
    VAEConfig,
)
from ..world.world import MOTIONS
from .decoders import DecoderRecipe
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
    tokenizer: TokenizerConfig, *, registers: int, width: int, head_dim: int, depth: int, text: int,
    schedule: Schedule, chunks: int = 5, clips: int = 8192,
) -> PriorRecipe:  # fmt: skip
    """`registers`: that it writes of each latent frame; `text`: width of the text encoder;
    `chunks`: in its longest sequence."""
    frames = 1 + chunks * (tokenizer.latent_frames - 1)
    config = PriorConfig(
        name=f"{tokenizer.name}-prior", tokenizer=tokenizer.name, depth=depth, width=width,
        head_dim=head_dim, seq_len=frames * registers, cond="both", vocab=tokenizer.vocab,
        latent_frames=frames, chunk=tokenizer.latent_frames, classes=MOTIONS,
        ctx_dim=text, n_ctx_null=4, max_text_len=48, head_bias=True, embedding="factorized",
        fsq_levels=tokenizer.fsq_levels, size=tokenizer.size, fps=tokenizer.fps,
        text_encoder=TextEncoderConfig(caption_words(), dim=text, head_dim=min(32, text)),
        guidance=((1, 2.0),), temperature=0.8,
    )  # fmt: skip
    return PriorRecipe(config, schedule, clips)


def preset_of(
    name: str, *, size: int, registers: int, vae: VAERecipe, encoder: TransformerConfig,
    decoder: TransformerConfig, patches: tuple[int, int], schedule: Schedule, clips: int,
    prior: dict[str, Any], ordered: bool = True, world_share: float = 0.4, groups: int = 4,
) -> Preset:  # fmt: skip
    """`patches`: pixels of the latent a side of the encoder's and the decoder's patches. `ordered`:
    registers of the encoder see only those before them."""
    grid = (5, size // 8, size // 8)
    sizes = [(1, p, p) for p in patches]
    tables = [PosembConfig(tuple(g // p for g, p in zip(grid, s))) for s in sizes]
    mask = MaskConfig("time_block_causal_last" if ordered else "time_block_causal")
    config = TokenizerConfig(
        name=name, size=size, registers=registers, vae=vae.config,
        encoder=EncoderConfig(encoder, sizes[0], tables[0], register_frames=5, mask=mask),
        decoder=DecoderConfig(
            decoder, sizes[1], tables[1], PosembConfig((5, registers)), mask=MaskConfig("full"),
        ),
        sampling=SamplingDefaults(steps=10, guidance=1.0, apg=False),
    )  # fmt: skip
    recipe = TokenizerRecipe(config, schedule, clips=clips, world_share=world_share, groups=groups)
    return Preset(vae, recipe, _prior(config, **prior))


PRESETS = {
    "nano": preset_of(
        "vft-nano", size=64, registers=64,
        vae=VAERecipe(
            VAEConfig(16, (1, 2, 4, 4), 1, 2, latent_channels=16), 64,
            Schedule(1800, 16, lr=1e-3, matrix_lr=4e-3, warmup=50, ema=0.998),
        ),
        encoder=TransformerConfig(256, 3), decoder=TransformerConfig(256, 6, modulation_kinds=1),
        patches=(1, 1), clips=16_384,
        schedule=Schedule(3600, 24, lr=1e-3, matrix_lr=2e-3, warmup=60, ema=0.998),
        prior={"registers": 16, "width": 256, "head_dim": 64, "depth": 4, "text": 128, "schedule":
               Schedule(3000, 32, lr=2e-3, matrix_lr=4e-3, warmup=100, ema=0.998)},
    ),
    "small": preset_of(
        "vft-small", size=128, registers=128,
        vae=VAERecipe(
            VAEConfig(32, (1, 2, 3, 3), 1, 2, latent_channels=16), 128,
            Schedule(6000, 48, lr=1.5e-3, matrix_lr=5e-3, warmup=20, ema=0.99),
            crop=96, crop_frames=9, crop_share=1.0, perceptual=0.1,
        ),
        # Widths of the MLPs in whole tiles of 64: 576 and 768.
        encoder=TransformerConfig(256, 3, mlp_ratio=3.375),
        decoder=TransformerConfig(320, 6, mlp_ratio=3.6, modulation_kinds=1),
        patches=(2, 2), clips=24_576, ordered=False, groups=2,
        schedule=Schedule(6000, 192, lr=1.5e-3, matrix_lr=3e-3, warmup=40, ema=0.995),
        prior={"registers": 16, "width": 256, "head_dim": 64, "depth": 4, "text": 128, "schedule":
               Schedule(3000, 256, lr=2e-3, matrix_lr=4e-3, warmup=50, ema=0.995)},
    ),
    "tiny": preset_of(
        "vft-tiny", size=32, registers=8,
        vae=VAERecipe(
            VAEConfig(8, (1, 1, 2, 2), 1, 1, 4), 32,
            Schedule(12, 2, lr=1e-3, matrix_lr=1e-3, warmup=2), crop=16,
        ),
        encoder=TransformerConfig(32, 2, 16),
        decoder=TransformerConfig(32, 2, 16, modulation_kinds=2), patches=(2, 2), clips=64,
        schedule=Schedule(12, 4, lr=1e-3, matrix_lr=1e-3, warmup=2),
        prior={"registers": 8, "width": 32, "head_dim": 16, "depth": 2, "text": 16, "chunks": 2,
               "clips": 128,
               "schedule": Schedule(12, 4, lr=1e-3, matrix_lr=1e-3, warmup=2)},
    ),
}  # fmt: skip


def _for_cores(p: Preset) -> Preset:
    """The models of a GPU's preset, in batches for two CPU cores."""
    vae, tokenizer, prior = p.vae.schedule, p.tokenizer.schedule, p.prior.schedule
    return Preset(
        replace(
            p.vae,
            crop=64,
            crop_share=0.9,
            clip_lengths=(9,),
            world_share=0.2,
            latent_noise=0.5,
            schedule=replace(vae, batch=4, lr=8e-4, matrix_lr=3e-3, warmup=100, ema=0.998),
        ),
        replace(
            p.tokenizer,
            world_share=0.25,
            schedule=replace(tokenizer, batch=32, lr=7e-4, matrix_lr=1.3e-3),
        ),
        replace(p.prior, schedule=replace(prior, batch=32, ema=0.998)),
    )


PRESETS["small-cpu"] = _for_cores(PRESETS["small"])


def decoder_recipe(p: Preset, c: TokenizerConfig, token_share: float) -> DecoderRecipe:
    """Of the autoencoder's own decoder, trained alone: on whole chunks in batches of about as many
    pixels as the preset's, at a quarter of its learning rates, since most is learnt already."""
    vae, crop = p.vae, min(96, c.size)
    frames = c.chunk_frames
    pixels = vae.schedule.batch * (vae.crop_frames + 3) * vae.crop**2
    batch = max(1, round(pixels / (frames + 3) / crop**2))
    lr, matrix_lr = vae.schedule.lr / 4, vae.schedule.matrix_lr / 4
    schedule = replace(vae.schedule, batch=batch, lr=lr, matrix_lr=matrix_lr)
    return DecoderRecipe(
        c.size, frames, schedule, crop=crop, uses=2,
        world_share=vae.world_share, perceptual=vae.perceptual, judged=vae.judged,
        latent_noise=vae.latent_noise, token_share=token_share,
    )  # fmt: skip


def preview_recipe(c: TokenizerConfig, token_share: float = 0.0) -> DecoderRecipe:
    """Of the preview decoder of any tokenizer; about half an hour of one CPU core at 128 px."""
    return DecoderRecipe(
        c.size, c.chunk_frames, Schedule(4000, 3, lr=1e-3, matrix_lr=3e-3, warmup=50, ema=0.998),
        PreviewConfig(), crop=min(96, c.size), token_share=token_share,
    )  # fmt: skip


def decoder_preset(p: Preset | None, c: TokenizerConfig) -> Preset:
    """What footage is drawn for a decoder alone: the preset's (of a preview decoder, `small`'s), in
    this tokenizer's size."""
    small = PRESETS["small"]
    p = p or replace(small, tokenizer=replace(small.tokenizer, clips=4096))
    return replace(p, vae=replace(p.vae, size=c.size), tokenizer=replace(p.tokenizer, config=c))
