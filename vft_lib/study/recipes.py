"""What is compared: three kinds of tokens, and priors of several sizes on each.

*grid*: one token for each latent position, all of them always kept. *registers*: as many registers,
coarse to fine by nested dropout. *control*: those registers without nested dropout. All at 32 px,
where a latent frame has 4 x 4 positions; the same autoencoder, flow decoder, quantizer and clips.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..config.tokenizer import MaskConfig, TransformerConfig, VAEConfig
from ..train.loop import Schedule
from ..train.presets import Preset, preset_of
from ..train.vae import VAERecipe

KINDS = ("registers", "grid", "control")
TOKENS = 16  # a latent frame
BUDGETS = (4, 8, 16)  # at which registers are measured


@dataclass(frozen=True)
class Size:
    """Of a prior."""

    width: int
    depth: int


@dataclass(frozen=True)
class Scale:
    """How much is trained: `vae`, `tokenizer` and `prior` steps of `batch` clips (the tokenizer's
    are those of registers: another kind gets as many operations, see `run.equal_steps`), `clips` to
    train on, and how wide the networks are. `sizes`: of the priors, each at least twice the one
    before."""

    vae: int = 1800
    tokenizer: int = 4000
    prior: int = 4000
    batch: int = 32
    clips: int = 8192
    width: int = 192
    sizes: tuple[tuple[str, Size], ...] = (
        ("small", Size(64, 3)), ("medium", Size(128, 4)), ("large", Size(256, 5)),
    )  # fmt: skip


SCALES = {
    "full": Scale(),
    "short": Scale(400, 1000, 800),
    "tiny": Scale(
        4, 4, 4, batch=4, clips=64, width=32, sizes=(("small", Size(16, 1)), ("large", Size(32, 2)))
    ),
}


def preset(scale: Scale, kind: str, size: Size, seed: int) -> Preset:
    """The recipes of one kind of tokens and one prior on them. All kinds of a seed see the same
    clips; the autoencoder is one for all. An error counts the same in all channels of the latents,
    since the weight of channels was tried with registers alone."""
    w, b, head = scale.width, scale.batch, min(64, scale.width // 2)
    found = preset_of(
        f"study-{kind}", size=32, registers=TOKENS,
        vae=VAERecipe(
            VAEConfig(max(8, w // 8), (1, 2, 2, 2), 1, 1, latent_channels=8), 32,
            Schedule(scale.vae, b, lr=1e-3, matrix_lr=4e-3, warmup=min(50, scale.vae), ema=0.99),
        ),
        encoder=TransformerConfig(w, 3, head),
        decoder=TransformerConfig(w, 5, head, modulation_kinds=1), patches=(1, 1),
        clips=scale.clips, world_share=1.0,
        schedule=Schedule(
            scale.tokenizer, b, lr=1e-3, matrix_lr=2e-3, warmup=min(60, scale.tokenizer), ema=0.99,
            seed=seed,
        ),
        prior={
            "registers": TOKENS, "width": size.width, "head_dim": min(32, size.width // 2),
            "depth": size.depth, "text": 64, "chunks": 1, "clips": scale.clips,
            "schedule": Schedule(
                scale.prior, b, lr=2e-3, matrix_lr=4e-3, warmup=min(100, scale.prior), ema=0.99,
                seed=seed,
            ),
        },
    )  # fmt: skip
    recipe, config = replace(found.tokenizer, pixel_weight=0.0), found.tokenizer.config
    if kind != "registers":
        recipe = replace(recipe, nested=False)
    if kind == "grid":
        encoder = replace(config.encoder, grid=True, mask=MaskConfig("time_block_causal"))
        recipe = replace(recipe, config=replace(config, encoder=encoder))
    elif kind == "control":  # without an order there is none to see in the encoder
        encoder = replace(config.encoder, mask=MaskConfig("time_block_causal"))
        recipe = replace(recipe, config=replace(config, encoder=encoder))
    # A part of the positions says nothing of the rest: every prior reads all tokens of a clip.
    return Preset(found.vae, recipe, replace(found.prior, coarse_share=0.0, long_share=0.0))
