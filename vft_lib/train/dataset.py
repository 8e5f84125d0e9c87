"""Training clips, encoded once: the tokenizer's as latents, the prior's as ids."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator, Mapping
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
from ..measure.features import FrozenFeatures
from ..tokenizer.tokenizer import Tokenizer
from ..world.world import Scene, draw_scene, draw_story
from .loop import step_generator

BLOCK = 64  # clips that are drawn from one number
FEATURE_GRID = 8  # feature vectors a side of each latent frame
SEQUENCES = 16  # clips of one kind that are drawn from one number
LONG_EVERY, REAL_EVERY = 4, 13  # of so many blocks one is of the longest clips, one of footage


@dataclass(frozen=True)
class Latents:
    """`latents` `[N,C,t,h,w]` float16; `features` `[N,t,F,g,g]` float16 of the last frame that each
    latent frame stands for (None: not asked for)."""

    latents: Tensor
    features: Tensor | None

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
    marks: dict[Path, str] = {}
    if folder is not None:
        facts, weights = (c.chunk_frames, c.size, worlds, seed), vae.state_dict()
        marks[folder / "latents.done"] = _source(footage.bank, facts, weights)
        if features is not None:
            seeing = {f"features.{k}": v for k, v in features.state_dict().items()}
            marks[folder / "features.done"] = _source(footage.bank, facts, weights | seeing)
    begin = min((_count(mark, source) for mark, source in marks.items()), default=0)
    for mark, source in marks.items():  # before anything of another source is written over
        write_bytes(mark, f"{begin} {source}".encode())
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
        for mark, source in marks.items():
            write_bytes(mark, f"{done} {source}".encode())
    return Latents(rows[:done], None if seen is None else seen[:done])


def _source(bank: ClipBank | None, facts: tuple[object, ...], weights: Mapping[str, Tensor]) -> str:
    """A mark of what encoded clips follow from."""
    return digest(f"{'' if bank is None else bank.mark()} {facts}", weights)


def _count(mark: Path, source: str) -> int:
    """How many clips, or blocks of them, of that source are encoded."""
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

    def rows(self, long: bool) -> int:
        """Latent frames."""
        return self.config.latent_frames if long else self.config.chunk or self.config.latent_frames

    def frames(self, long: bool) -> int:
        return self.config.frames if long else self.config.chunk_frames

    def draw(self, long: bool) -> Callable[[int], Scene]:
        return draw_story if long else draw_scene

    def seeds(self) -> list[list[int]]:
        """Of each block's worlds."""
        seeds = training_seeds(self.blocks * SEQUENCES, self.seed)
        return [seeds[i : i + SEQUENCES] for i in range(0, len(seeds), SEQUENCES)]


@torch.no_grad()
def encode_sequences(
    plan: Plan, tokenizer: Tokenizer, bank: ClipBank | None, *, processes: int = 0,
    folder: Path | None = None, deadline: float | None = None,
) -> Sequences:  # fmt: skip
    """Draw the plan's clips and encode them. Given a `folder`, ids are kept there, and a call goes
    on where an earlier one stopped. `deadline` (of time.monotonic): what is not encoded by then is
    left out. Worlds are drawn ahead by `processes` processes (0: when they are needed)."""
    c, seeds = plan.config, plan.seeds()
    count = plan.blocks * SEQUENCES
    ids = reserved(folder, "ids", (count, c.latent_frames, c.registers), "cpu", torch.int32)
    facts = (tokenizer.fingerprint, c.chunk, c.latent_frames, c.registers, plan.seed, plan.footage)
    source = _source(bank, facts, {})
    mark = None if folder is None else folder / "ids.done"
    done = 0
    if mark is not None:
        done = _count(mark, source)  # said again before ids of another source are written over
        write_bytes(mark, f"{done} {source}".encode())
    ahead = {
        long: [
            b for b in range(done, plan.blocks)
            if plan.is_long(b) is long and not plan.is_real(b)
        ]
        for long in (False, True)
    }  # fmt: skip
    drawn = {
        long: Worlds(
            [seed for b in blocks for seed in seeds[b]], plan.frames(long), c.size, processes,
            plan.draw(long),
        )
        for long, blocks in ahead.items()
    }  # fmt: skip
    rows = torch.zeros(count, dtype=torch.int64)
    scenes: list[Scene | None] = []
    for b in tqdm(range(plan.blocks), desc="encoding sequences", mininterval=1):
        late = deadline is not None and b >= 4 and time.monotonic() > deadline
        if b >= done and late:
            break
        at = slice(b * SEQUENCES, (b + 1) * SEQUENCES)
        long, real = plan.is_long(b), plan.is_real(b)
        scenes += [None] * SEQUENCES if real else map(plan.draw(long), seeds[b])
        rows[at] = t = plan.rows(long)
        if b < done:
            continue
        if real:
            assert bank is not None
            generator = step_generator(plan.seed, b, 0, bank.device)
            video = bank.draw(generator, SEQUENCES, plan.frames(long), c.size)
        else:
            first = ahead[long].index(b) * SEQUENCES
            clips = drawn[long].clips(range(first, first + SEQUENCES))
            video = to_video(clips, tokenizer.device)
        for i, part in enumerate(video.to(tokenizer.dtype).split(4)):
            found = tokenizer.encode(part).ids[:, :, : c.registers]
            ids[at][4 * i : 4 * i + 4, :t] = found.to(ids)
        if mark is not None:
            write_bytes(mark, f"{b + 1} {source}".encode())
    for worlds in drawn.values():
        worlds.close()
    n = len(scenes)
    return Sequences(ids[:n], rows[:n], tuple(scenes))
