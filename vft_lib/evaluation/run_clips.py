"""The clips of a run folder, and the ways of a clip through a tokenizer, for the prior's card."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import VftError
from ..tokenizer.sampling import Sampling
from ..tokenizer.tokenizer import Tokenizer
from ..train.data import RealClips, to_video
from ..train.tokenizer import TokenizerRecipe, dataset_sources
from ..world import world


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
    recipe: TokenizerRecipe, real: RealClips | None, out: Path, tokenizer: Tokenizer,
    dtype: torch.dtype,
) -> tuple[Tensor, dict[int, world.Scene]]:  # fmt: skip
    """The latents of a run folder `[N,C,t,h,w]` float16, memory-mapped, and the scenes of those
    that are procedural, by number. VftError if the folder's clips are not the ones that its
    seeds draw, or were encoded by another autoencoder."""
    shape, progress = recipe.config.latent_shape, out / "latents.done"
    if not progress.exists():
        raise VftError(f"{out} holds no encoded clips; run `vft train tokenizer --out {out}` first")
    if tokenizer.config.latent_shape != shape:
        raise VftError(
            f"tokenizer {tokenizer.config.name!r} has latents {tokenizer.config.latent_shape}, "
            f"{out} holds {shape}: choose the preset and tokenizer of one run"
        )
    count = int(progress.read_text())
    latents = torch.from_file(
        str(out / "latents.f16"), shared=False, size=count * math.prod(shape), dtype=torch.float16
    ).view(count, *shape)
    sources = dataset_sources(recipe, real, count)
    scenes = {i: world.draw_scene(s) for i, s in enumerate(sources) if isinstance(s, int)}
    check = sorted(scenes)[-4:]
    fresh = encode_scenes(tokenizer, [scenes[i] for i in check], dtype).float()
    stored = latents[check].float()
    if float((fresh - stored).norm() / stored.norm()) > 0.2:
        raise VftError(
            f"the clips of {out}/latents.f16 are not those drawn now: give the tokenizer of that "
            "folder, and the same --preset, --real or --no-real that made it"
        )
    return latents, scenes
