"""The clips of a run folder, and the ways of a clip through a tokenizer, for the prior's card."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..footage.footage import Footage, to_video
from ..footage.worlds import Worlds, training_seeds
from ..tokenizer.sampling import Sampling
from ..tokenizer.tokenizer import Tokenizer
from ..train.dataset import encode_dataset
from ..train.tokenizer import TokenizerRecipe
from ..world import world

JUDGED_CLIPS = 2048  # that the judge learns from


def autocast(tokenizer: Tokenizer, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(tokenizer.device.type, dtype, enabled=dtype != torch.float32)


@torch.no_grad()
def encode_scenes(tokenizer: Tokenizer, scenes: list[world.Scene], dtype: torch.dtype) -> Tensor:
    """Scenes, rendered -> latents `[N,C,t,h,w]` float16, as in a run folder."""
    c, parts = tokenizer.config, []
    for start in tqdm(range(0, len(scenes), 16), desc="rendering", mininterval=1):
        video = to_video([s.render(c.chunk_frames, c.size) for s in scenes[start : start + 16]])
        with autocast(tokenizer, dtype):
            parts.append(tokenizer.vae.encode(video.to(tokenizer.device)).half().cpu())
    return torch.cat(parts)


@torch.no_grad()  # not inference_mode: the classifier is trained on these
def decoded_latents(
    tokenizer: Tokenizer, ids: Tensor, dtype: torch.dtype, *, keep: Tensor | None = None,
    steps: int | None = None, desc: str = "decoding", batch: int = 32,
) -> Tensor:  # fmt: skip
    """Ids `[N,t,k]` -> latents `[N,C,t,h,w]` float32 on the CPU, at the tokenizer's default
    sampling: what its video autoencoder would decode. `keep` `[N]`: a budget for each clip. Clip
    i's noise is drawn from seed i."""
    c, parts = tokenizer.config, []
    for start in tqdm(range(0, len(ids), batch), desc=desc, mininterval=1):
        part = slice(start, start + batch)
        seeds = range(start, start + len(ids[part]))
        noise = [torch.randn(c.latent_shape, generator=generator(i)) for i in seeds]
        with autocast(tokenizer, dtype):
            latents = tokenizer.sample_latents(
                ids[part], torch.stack(noise), Sampling(steps),
                keep=None if keep is None else keep[part],
            )  # fmt: skip
        parts.append(latents.float().cpu())
    return torch.cat(parts)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def decoded_video(tokenizer: Tokenizer, latents: Tensor, dtype: torch.dtype) -> Tensor:
    """Latents `[N,C,t,h,w]` -> every second picture that the autoencoder decodes from them,
    `[N,3,2t-1,H,W]` float16 in [-1,1] on the CPU."""
    parts = []
    for part in tqdm(latents.split(8), desc="to pixels", mininterval=1):
        with autocast(tokenizer, dtype):
            video = tokenizer.vae.decode(part.to(tokenizer.device, tokenizer.dtype))
        parts.append(video[:, :, ::2].clamp(-1, 1).half().cpu())
    return torch.cat(parts)


def run_clips(
    recipe: TokenizerRecipe, out: Path, tokenizer: Tokenizer, dtype: torch.dtype
) -> tuple[Tensor, dict[int, world.Scene]]:  # fmt: skip
    """Procedural clips of the recipe's training set as latents `[N,C,t,h,w]` float16, kept in
    `out`, and their scenes by number."""
    clips = min(recipe.clips, JUDGED_CLIPS)
    seeds = training_seeds(clips, recipe.schedule.seed + 1)
    c = recipe.config
    footage = Footage(None, Worlds(seeds, c.chunk_frames, c.size))
    folder = out / f"judge-{tokenizer.fingerprint}-{recipe.schedule.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    data = encode_dataset(
        c, tokenizer.vae, footage, clips, 1.0, recipe.schedule.seed, tokenizer.device, dtype, folder
    )
    return data.latents, {i: world.draw_scene(s) for i, s in enumerate(seeds[: len(data)])}
