"""Small tasks that the tests of training share."""

from __future__ import annotations

import dataclasses

import torch
from conftest import TINY
from torch import Tensor

from vft_lib.footage.footage import Footage
from vft_lib.footage.worlds import Worlds
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.train.dataset import Latents, Sequences
from vft_lib.train.loop import Schedule
from vft_lib.train.presets import PRESETS
from vft_lib.train.prior import PriorTask
from vft_lib.train.tokenizer import TokenizerRecipe, TokenizerTask
from vft_lib.train.vae import VAERecipe, VAETask
from vft_lib.world.world import draw_scene

CPU = torch.device("cpu")
STEPS = 6
SCHEDULE = Schedule(steps=STEPS, batch=2, lr=1e-3, matrix_lr=2e-3, warmup=2, ema=0.9)


def vae_task(schedule: Schedule = SCHEDULE) -> VAETask:
    torch.manual_seed(0)
    recipe = VAERecipe(TINY.vae, 32, schedule, crop=16, crop_share=0.5, clip_lengths=(5, 9))
    return VAETask(recipe, Footage(None, Worlds(range(1_000_000, 1_000_064), 17, 32)))


def tokenizer_task(
    schedule: Schedule = SCHEDULE, freeze_encoder: bool = False, batch: int = 4
) -> TokenizerTask:
    torch.manual_seed(0)
    schedule = dataclasses.replace(schedule, batch=batch)
    recipe = TokenizerRecipe(TINY, schedule, freeze_encoder=freeze_encoder)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(16, *TINY.latent_shape, generator=generator).half()
    features = torch.randn(16, TINY.latent_frames, 6, 2, 2, generator=generator).half()
    return TokenizerTask(recipe, Tokenizer(TINY).vae, Latents(latents, features))


def prior_task(ids: Tensor | None = None) -> PriorTask:
    """Every fourth of 64 clips has two chunks, half of those two acts; every eighth is footage."""
    torch.manual_seed(0)
    preset = PRESETS["tiny"]
    tokenizer = Tokenizer(preset.tokenizer.config)
    if ids is None:
        numbers = torch.Generator().manual_seed(1)
        ids = torch.randint(64_000, (64, 9, 8), generator=numbers, dtype=torch.int32)
    rows = torch.tensor([9 if i % 4 == 0 else 5 for i in range(64)])
    scenes = tuple(
        None if i % 8 == 7 else draw_scene(i, then=("spin",) if i % 8 == 0 else ())
        for i in range(64)
    )
    return PriorTask(preset.prior, tokenizer, Sequences(ids, rows, scenes))
