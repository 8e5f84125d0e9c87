"""The tokenizer's and prior's training clips as latents, encoded once from footage."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ..autoencoder.vae import VideoAutoencoder
from ..config.tokenizer import TokenizerConfig
from ..files.atomic import check_space, write_bytes
from ..files.tensor_files import digest
from ..footage.footage import Footage, to_video
from .features import FrozenFeatures
from .loop import step_generator

BLOCK = 64  # clips that are drawn from one number
FEATURE_GRID = 8  # feature vectors a side of each latent frame


@dataclass(frozen=True)
class Latents:
    """`latents` `[N,C,t,h,w]` float16; `features` `[N,t,F,g,g]` float16 of the last frame that each
    latent frame stands for (None: not asked for). The first `worlds` clips of every `BLOCK` are
    procedural, numbers 0, 1, 2, … of the footage's worlds."""

    latents: Tensor
    features: Tensor | None
    worlds: int

    def __len__(self) -> int:
        return len(self.latents)

    def seeds(self, world_seeds: list[int]) -> list[int | None]:
        """The seed of each clip's world; None for footage."""
        found: list[int | None] = []
        for start in range(0, len(self), BLOCK):
            first = start // BLOCK * self.worlds
            found += world_seeds[first : first + self.worlds]
            found += [None] * (BLOCK - self.worlds)
        return found


def world_count(clips: int, share: float) -> int:
    """How many worlds a dataset of `clips` clips takes."""
    return clips // BLOCK * round(BLOCK * share)


@torch.no_grad()
def encode_dataset(
    config: TokenizerConfig, vae: VideoAutoencoder, footage: Footage, clips: int,
    world_share: float, seed: int, device: torch.device, dtype: torch.dtype,
    folder: Path | None = None, features: FrozenFeatures | None = None,
    deadline: float | None = None,
) -> Latents:  # fmt: skip
    """Draw `clips` clips and encode them with `vae`. Kept on the device; or, given a `folder`, in
    files there (raw, memory-mapped), going on where an earlier call stopped, if that had the same
    footage and the same `vae`. `deadline` (of
    time.monotonic): what is not encoded by then is left out."""
    c, worlds = config, round(BLOCK * world_share)
    worlds = BLOCK if footage.bank is None else 0 if footage.worlds is None else worlds
    count = clips // BLOCK * BLOCK
    grid = (c.latent_frames, 0 if features is None else features.channels[-1],
            FEATURE_GRID, FEATURE_GRID)  # fmt: skip
    rows = _rows(folder, "latents", (count, *c.latent_shape), device)
    seen = None if features is None else _rows(folder, "features", (count, *grid), device)
    # A mark for each file: features may not have been asked for when the latents were made.
    kept = ["latents"] if features is None else ["latents", "features"]
    marks = [] if folder is None else [folder / f"{name}.done" for name in kept]
    source = "" if folder is None else _source(footage, vae, (c.chunk_frames, c.size, worlds, seed))
    begin = min((_count(mark, source) for mark in marks), default=0)
    vae = copy.deepcopy(vae).to(dtype)  # the one given keeps its weights' last digits
    done = begin
    for start in tqdm(range(begin, count, BLOCK), desc="encoding clips", mininterval=1):
        if deadline is not None and done >= 4 * BLOCK and time.monotonic() > deadline:
            break
        first = start // BLOCK * worlds
        for i, video in _batches(c, footage, first, worlds, step_generator(seed, start, 0, device)):
            at = slice(start + i, start + i + len(video))
            rows[at] = vae.encode(video.to(dtype)).half().to(rows.device)
            if seen is not None and features is not None:
                last = video[:, :, ::4].transpose(1, 2).flatten(0, 1)
                found = F.adaptive_avg_pool2d(features(last.to(dtype))[-1].float(), FEATURE_GRID)
                seen[at] = found.unflatten(0, (len(video), -1)).half().to(seen.device)
        done = start + BLOCK
        for mark in marks:
            write_bytes(mark, f"{done} {source}".encode())
    return Latents(rows[:done], None if seen is None else seen[:done], worlds)


def _source(footage: Footage, vae: VideoAutoencoder, facts: tuple[int, ...]) -> str:
    """A mark of what latents follow from."""
    bank = "" if footage.bank is None else footage.bank.mark()
    return digest(f"{bank} {facts}", vae.state_dict())


def _count(mark: Path, source: str) -> int:
    """How many clips of that source are encoded."""
    count, _, made_of = mark.read_text().partition(" ") if mark.exists() else ("0", "", "")
    return int(count) if made_of in ("", source) else 0  # "": before sources were noted down


def _batches(
    c: TokenizerConfig, footage: Footage, first: int, worlds: int, generator: torch.Generator
) -> Iterator[tuple[int, Tensor]]:
    """One block: (place in it, clips `[b,3,T,H,W]`), worlds first."""
    if worlds:
        assert footage.worlds is not None
        for i in range(0, worlds, 16):
            part = range(first + i, first + min(i + 16, worlds))
            yield i, to_video(footage.worlds.clips(part), generator.device)
    for i in range(worlds, BLOCK, 16):
        assert footage.bank is not None
        n = min(16, BLOCK - i)
        yield i, footage.bank.draw(generator, n, c.chunk_frames, c.size)


def _rows(
    folder: Path | None, name: str, shape: tuple[int, ...], device: torch.device
) -> Tensor:  # fmt: skip
    if folder is None:
        return torch.empty(shape, dtype=torch.float16, device=device)
    count = torch.Size(shape).numel()
    path = folder / f"{name}.f16"
    _reserve(path, 2 * count)
    return torch.from_file(str(path), shared=True, size=count, dtype=torch.float16).view(shape)


def _reserve(path: Path, size: int) -> None:
    """Grow the file to `size` bytes, on the disk: where that is full, writing to a mapped file that
    is not all there ends the process. (torch.from_file, left to grow a file, writes a zero over
    its first byte.) VftError if there is no room."""
    with path.open("ab") as f:
        size = max(size, f.tell())
        check_space(path.parent, size - f.tell(), str(path))
        f.truncate(size)
    with path.open("rb+") as f, suppress(AttributeError):  # Windows and macOS have no such call
        os.posix_fallocate(f.fileno(), 0, size)
