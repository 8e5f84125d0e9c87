"""Training clips, encoded once: the tokenizer's as latents, the prior's as ids."""

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
from ..config.prior import PriorConfig
from ..config.tokenizer import TokenizerConfig
from ..files.atomic import check_space, write_bytes
from ..files.tensor_files import digest
from ..footage.bank import ClipBank
from ..footage.footage import Footage, to_video
from ..footage.worlds import Worlds, training_seeds
from ..tokenizer.tokenizer import Tokenizer
from ..world.world import Scene, draw_scene, draw_story
from .features import FrozenFeatures
from .loop import step_generator

BLOCK = 64  # clips that are drawn from one number
FEATURE_GRID = 8  # feature vectors a side of each latent frame
SEQUENCES = 16  # clips of one kind that are drawn from one number
LONG_EVERY, REAL_EVERY = 4, 13  # of so many blocks one is of the longest clips, one of footage


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
    rows = reserved(folder, "latents", (count, *c.latent_shape), device)
    seen = None if features is None else reserved(folder, "features", (count, *grid), device)
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


def reserved(
    folder: Path | None, name: str, shape: tuple[int, ...], device: torch.device | str,
    dtype: torch.dtype = torch.float16,
) -> Tensor:  # fmt: skip
    """Room for a data set on `device`; given a `folder`, a file there, mapped, with what it holds
    already."""
    if folder is None:
        return torch.empty(shape, dtype=dtype, device=device)
    folder.mkdir(parents=True, exist_ok=True)
    count = torch.Size(shape).numel()
    path = folder / f"{name}.{'f' if dtype.is_floating_point else 'i'}{8 * dtype.itemsize}"
    _reserve(path, dtype.itemsize * count)
    return torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(shape)


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


@dataclass(frozen=True)
class Sequences:
    """`ids` `[N,t,K]` int32, room for the longest; clip i has `rows[i]` latent frames of them and
    shows `scenes[i]` (None: footage)."""

    ids: Tensor
    rows: Tensor
    scenes: tuple[Scene | None, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def one_act(self) -> Tensor:
        """`[N]` bool: what of a clip's beginning is cut off does not change its caption."""
        return torch.tensor([s is None or not s.main.then for s in self.scenes], dtype=torch.bool)


@dataclass(frozen=True)
class Plan:
    """Which clip is what: every block is of one kind."""

    config: PriorConfig
    blocks: int
    footage: bool
    seed: int

    def is_long(self, block: int) -> bool:
        c = self.config
        return 0 < c.chunk < c.latent_frames and block % LONG_EVERY == 0

    def is_real(self, block: int) -> bool:
        return self.footage and block % REAL_EVERY == REAL_EVERY - 1

    def frames(self, block: int) -> int:
        c = self.config
        return c.frames if self.is_long(block) or not c.chunk else 1 + 4 * (c.chunk - 1)

    def seeds(self) -> list[int]:
        return training_seeds(self.blocks * SEQUENCES, self.seed)

    def scene(self, block: int, seed: int) -> Scene:
        return draw_story(seed) if self.is_long(block) else draw_scene(seed)


@torch.no_grad()
def encode_sequences(
    plan: Plan, tokenizer: Tokenizer, bank: ClipBank | None, *, processes: int = 0,
    folder: Path | None = None, deadline: float | None = None,
) -> Sequences:  # fmt: skip
    """Draw the plan's clips and encode them. Given a `folder`, ids are kept there, and a call goes
    on where an earlier one stopped. `deadline` (of time.monotonic): what is not encoded by then is
    left out. Worlds are drawn ahead by `processes` processes (0: when they are needed)."""
    c, device, seeds = plan.config, tokenizer.device, plan.seeds()
    count = plan.blocks * SEQUENCES
    ids = reserved(folder, "ids", (count, c.latent_frames, c.registers), "cpu", torch.int32)
    mark = None if folder is None else folder / f"ids-{tokenizer.fingerprint}.done"
    done = int(mark.read_text()) if mark is not None and mark.exists() else 0
    rows = torch.zeros(count, dtype=torch.int64)
    scenes: list[Scene | None] = []
    drawn = {
        long: Worlds(
            [s for b in range(done, plan.blocks) for s in seeds[b * SEQUENCES :][:SEQUENCES]
             if plan.is_long(b) is long and not plan.is_real(b)],
            plan.frames(0) if long else plan.frames(1), c.size, processes,
            draw_story if long else draw_scene,
        )
        for long in (False, True)
    }  # fmt: skip
    used = {False: 0, True: 0}
    for b in tqdm(range(plan.blocks), desc="encoding sequences", mininterval=1):
        late = deadline is not None and b >= 4 and time.monotonic() > deadline
        if b >= done and late:
            break
        at = slice(b * SEQUENCES, (b + 1) * SEQUENCES)
        long, real = plan.is_long(b), plan.is_real(b)
        scenes += [None] * SEQUENCES if real else [plan.scene(b, s) for s in seeds[at]]
        t = c.latent_frames if long or not c.chunk else c.chunk
        rows[at] = t
        if b < done:
            continue
        if real:
            assert bank is not None
            generator = step_generator(plan.seed, b, 0, bank.device)
            video = bank.draw(generator, SEQUENCES, plan.frames(b), c.size)
        else:
            first = used[long]
            used[long] += SEQUENCES
            video = to_video(drawn[long].clips(range(first, first + SEQUENCES)), device)
        for i, part in enumerate(video.to(tokenizer.dtype).split(4)):
            found = tokenizer.encode(part).ids[:, :, : c.registers]
            ids[at][4 * i : 4 * i + 4, :t] = found.to(ids)
        if mark is not None:
            write_bytes(mark, str(b + 1).encode())
    for worlds in drawn.values():
        worlds.close()
    n = len(scenes)
    return Sequences(ids[:n], rows[:n], tuple(scenes))
