"""Where clips and captions come from: folders, the procedural world, lists; and whose part is whose
in a shared run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol as Interface

import numpy as np

from ..errors import VftError
from ..footage.real import clip_files
from ..footage.worlds import HELD_OUT_SEEDS
from ..video.frames import Report
from ..video.video_in import probe, read_frames
from ..world import world
from .protocol import Protocol

WORLD = "world"  # names the procedural world in place of a folder
WORLD_FPS = 8.0
SLOWER = 0.98  # of the protocol's frame rate: below, frames are repeated


class Source(Interface):
    """Clips by name. `ids` are their names in order."""

    @property
    def ids(self) -> Sequence[str]: ...

    def read(self, clip: str) -> np.ndarray:
        """uint8 `[T,S,S,3]` as the protocol takes it. VftError for a clip that is too short."""

    def mark(self, clip: str) -> str:
        """Changes when the clip does."""

    def label(self, clip: str) -> str:
        """The clip's class, "" if there is none."""


@dataclass(frozen=True)
class Folder:
    """Clips below a folder, by their path in it without the suffix."""

    root: Path
    files: dict[str, Path]
    protocol: Protocol
    note: Report

    @property
    def ids(self) -> list[str]:
        return list(self.files)

    def read(self, clip: str) -> np.ndarray:
        p, path = self.protocol, self.files[clip]
        info = probe(path)
        if info.frames != 1 and info.fps < SLOWER * p.fps:
            self.note(f"{path.name} has {info.fps:.3g} frames a second: at {p.fps:g} some repeat")
        frames = list(
            read_frames(
                path, fps=p.fps, size=(p.size, p.size), max_frames=p.frames, on_problem=self.note
            )
        )
        if len(frames) < p.frames:
            raise VftError(
                f"{path} has {len(frames)} frames at {p.fps:g} a second, the protocol takes "
                f"{p.frames}; leave it out (--ids FILE), or choose fewer (--frames)"
            )
        return np.stack(frames)

    def mark(self, clip: str) -> str:
        facts = self.files[clip].stat()
        return f"{facts.st_size} {facts.st_mtime_ns}"

    def label(self, clip: str) -> str:
        return clip.rpartition("/")[0].rpartition("/")[2]


@dataclass(frozen=True)
class World:
    """The first worlds that training never draws."""

    count: int
    protocol: Protocol

    @property
    def ids(self) -> list[str]:
        return [f"world {seed}" for seed in HELD_OUT_SEEDS[: self.count]]

    def scene(self, clip: str) -> world.Scene:
        return world.draw_scene(int(clip.split()[1]))

    def read(self, clip: str) -> np.ndarray:
        return self.scene(clip).render(self.protocol.frames, self.protocol.size)

    def mark(self, clip: str) -> str:
        return clip

    def label(self, clip: str) -> str:
        return self.scene(clip).main.motion


def open_source(
    name: str, protocol: Protocol, note: Report, ids: Path | None = None, limit: int | None = None,
    pooled: bool = True,
) -> Folder | World:  # fmt: skip
    """The clips of a folder (or of the world), in order of their names: those that the file `ids`
    lists, one a line, or all; the first `limit` of them, and the protocol's pool at most if it is
    a reference (`pooled`). VftError for a folder without clips, two of one name, names that are not
    there, and of the world for another frame rate than its own."""
    every = len(HELD_OUT_SEEDS)
    most = min(limit or every, (protocol.pool if pooled else None) or every)
    if name == WORLD:
        if protocol.fps != WORLD_FPS:
            raise VftError(f"the procedural world moves at {WORLD_FPS:g} fps (--fps)")
        if ids is not None:
            raise VftError("the procedural world has no list of clips: leave out --ids")
        if limit is None and protocol.pool is None:
            raise VftError("the procedural world has no end: say how many clips with --limit N")
        return World(most, protocol)
    root = Path(name)
    if not root.is_dir():
        raise VftError(f"there is no folder {name}; give a folder of clips, or `{WORLD}`")
    files: dict[str, Path] = {}
    for path in clip_files(root):
        clip = path.relative_to(root).with_suffix("").as_posix()
        if clip in files:
            raise VftError(f"{path} and {files[clip].name} have one name; rename one of them")
        files[clip] = path
    if not files:
        raise VftError(f"{root} holds no clip")
    if ids is not None:
        listed = [line for line in _lines(ids) if line]
        gone = [clip for clip in listed if clip not in files]
        if gone or len(set(listed)) < len(listed):
            what = f"{gone[0]!r} is not in {root}" if gone else "a name stands there twice"
            raise VftError(f"{ids}: {what}; list paths in the folder, without suffix, one a line")
        files = {clip: files[clip] for clip in listed}
    return Folder(root, dict(list(files.items())[:most]), protocol, note)


def read_captions(path: Path) -> dict[str, str]:
    """Captions by clip, of lines `clip<TAB>caption`; without tabs, the lines are named by their
    numbers from 1. VftError for a file without any, and for names that stand there twice."""
    lines = [line for line in _lines(path) if line]
    if not lines:
        raise VftError(f"{path} holds no caption; one a line, or lines of clip<TAB>caption")
    tabs = sum("\t" in line for line in lines)
    if tabs not in (0, len(lines)):
        raise VftError(f"{path}: {tabs} of {len(lines)} lines have a tab; all or none may")
    if not tabs:
        return {f"{i}": line for i, line in enumerate(lines, 1)}
    pairs = [line.split("\t", 1) for line in lines]
    found = {clip: caption.strip() for clip, caption in pairs}
    if len(found) < len(pairs):
        raise VftError(f"{path}: a clip stands there twice; one caption a clip")
    return found


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as e:
        raise VftError(f"{path} cannot be read as text ({e})") from None


@dataclass(frozen=True)
class Share:
    """Part `part` (from 0) of `parts` of the work. Batches are dealt in turn, and never cut: what a
    clip gets may depend on its batch."""

    part: int = 0
    parts: int = 1

    def batches(self, ids: Sequence[str], size: int) -> list[list[str]]:
        """This part's batches of at most `size`."""
        every = [list(ids[i : i + size]) for i in range(0, len(ids), size)]
        return every[self.part :: self.parts]
