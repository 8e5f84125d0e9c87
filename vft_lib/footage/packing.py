"""`vft train pack`: all real training pictures of some packages or folders in one small file.

Every picture is decoded, sampled at the training rate, brought a little above the training size,
and encoded as AVIF, whose image sequences code the differences between frames. What is finished
stays beside the pack until it is complete, so that an interrupted run goes on. Left out: what is
there twice, and stills that are no pictures (logos, title cards of programs without pictures).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import io
import json
import multiprocessing
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..errors import VftError, one_line
from ..files.atomic import alone, replacing
from ..video.frames import VideoError, fit_frame
from ..video.video_in import read_frames
from .pack import INDEX, MAX_FRAMES, PackInfo, Picture
from .real import clip_files

PACKAGES = tuple(
    f"comfyui-workflow-templates-media-{part}"
    for part in ("video", "api", "image", "other", "assets-01", "assets-02")
)
SUFFIXES = {".webp", ".gif", ".png", ".jpg", ".jpeg", ".avif"} | {
    ".mp4", ".webm", ".mkv", ".mov", ".avi"
}  # fmt: skip
LEAST = 5  # different frames of a clip; fewer are a slide show
LONGEST = 160  # frames kept of a clip
WIDEST = 16 / 9
CLIP_MARGIN, STILL_MARGIN = 9 / 8, 5 / 4  # short side over the training size, to crop from
SPEED = 6  # of the AVIF encoder, 0 (slow, small) to 10
THUMB = 16  # px a side of the pictures that are compared
ALIKE = 0.93  # correlation of thumbnails: the same scene, so the same side of the split
SAME = 3.0  # mean difference of thumbnails, of 255: the same picture
FLAT = 0.7  # of a still in a single colour: a logo or a drawing
# Words in the names of previews whose workflows make no pictures, but title cards for themselves.
TITLE_CARDS = frozenset(
    (
        *("audio", "speech", "voice", "music", "song", "sfx", "tts", "t2a", "t2m", "dialogue"),
        *("llm", "claude", "chat", "svg", "vector"),
    )
)


@dataclass(frozen=True)
class Recipe:
    """How pictures are packed: training `size` in px, frames per second, AVIF quality 0..100, and
    the limit of the whole file in megabytes (10^6 bytes)."""

    size: int = 128
    fps: float = 8.0
    quality: int = 80
    megabytes: float = 36.0


@dataclass(frozen=True)
class _Source:
    path: Path
    name: str
    package: str


@dataclass(frozen=True)
class _Part:
    """An encoded picture on the disk, and what it is compared by: uint8 `[n,16,16,3]`."""

    picture: Picture
    data: Path
    thumbs: np.ndarray
    flat: float


def write_pack(
    out: Path, recipe: Recipe, folders: Iterable[Path] = (), processes: int | None = None
) -> PackInfo:
    """Pack the pictures of the installed packages (or of `folders` instead) into `out`.

    Raises VftError for missing packages or folders, and where the result is larger than
    `recipe.megabytes`.
    """
    if not 16 <= recipe.size <= 512 or not 0 < recipe.fps <= 60 or not 0 <= recipe.quality <= 100:
        raise VftError(f"Got {recipe}; give a size of 16 to 512, fps up to 60, quality 0 to 100.")
    sources, packages = _folder_sources(folders) if folders else _package_sources()
    unfinished = out.with_name(out.name + ".parts")
    with alone(unfinished, lambda: _say(f"another process packs {out}; waiting for it")):
        parts = _parts(sources, recipe, unfinished, processes or os.cpu_count() or 1)
        parts = [p for p in parts if p.picture.kind == "clip" or _is_picture(p)]
        if not parts:
            raise VftError("there is no picture to pack; name another --real")
        parts = _split(_without_twins(parts))
        total = sum(p.data.stat().st_size for p in parts)
        if total > recipe.megabytes * 1e6:
            raise VftError(
                f"the pictures take {total / 1e6:.3g} MB at quality {recipe.quality}; expected at "
                f"most {recipe.megabytes:g}: lower --quality or --fps, or raise --megabytes"
            )
        used = {p.picture.package for p in parts}
        packages = {k: v for k, v in packages.items() if k in used}
        info = PackInfo(recipe.size, recipe.fps, packages, tuple(p.picture for p in parts))
        with replacing(out) as tmp, zipfile.ZipFile(tmp, "w") as archive:
            archive.writestr(_entry(INDEX), json.dumps(info.to_json(), separators=(",", ":")))
            for part in parts:
                archive.writestr(_entry(part.picture.file), part.data.read_bytes())
        shutil.rmtree(unfinished)
    return info


def _parts(sources: list[_Source], recipe: Recipe, folder: Path, processes: int) -> list[_Part]:
    jobs = [(source, recipe, folder) for source in sources]
    with ExitStack() as stack:
        found: Iterable[_Part | str] = map(_part, jobs)
        if processes > 1:
            pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(processes))
            found = pool.imap(_part, jobs)
        parts = []
        for part in tqdm(found, "pictures", len(jobs), disable=None):
            if isinstance(part, _Part):
                parts.append(part)
            else:
                _say(part)
    return parts


def _say(text: str) -> None:
    tqdm.write(one_line(text), file=sys.stderr)


def _entry(name: str) -> zipfile.ZipInfo:
    """Without the time, so that the same pictures give the same bytes."""
    return zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))


def _package_sources() -> tuple[list[_Source], dict[str, dict[str, str]]]:
    sources, packages = [], {}
    for package in PACKAGES:
        spec = importlib.util.find_spec(package.replace("-", "_"))
        if spec is None or not spec.submodule_search_locations:
            raise VftError(
                f"package {package} is not installed; pip install it, or name --real DIR"
            )
        facts = importlib.metadata.metadata(package)
        stated = [facts[k] for k in ("License-Expression", "License") if k in facts]
        packages[package] = {"version": facts["Version"], "licence": (stated or ["not stated"])[0]}
        for folder in spec.submodule_search_locations:
            short = package.removeprefix("comfyui-workflow-templates-media-")
            sources += [
                _Source(path, f"{short}/{path.stem}", package)
                for path in clip_files(Path(folder), SUFFIXES)
            ]
    return sources, packages


def _folder_sources(
    folders: Iterable[Path],
) -> tuple[list[_Source], dict[str, dict[str, str]]]:
    sources: list[_Source] = []
    packages: dict[str, dict[str, str]] = {}
    for folder in folders:
        if not folder.is_dir() or folder.name in packages:
            raise VftError(f"{folder} is no folder of pictures, or the second of its name")
        packages[folder.name] = {"version": "", "licence": "not stated"}
        names: set[str] = set()
        for path in clip_files(folder, SUFFIXES):
            name = path.relative_to(folder.parent).with_suffix("").as_posix()
            name += path.suffix if name in names else ""  # beside one of another format
            names.add(name)
            sources.append(_Source(path, name, folder.name))
    return sources, packages


def _part(job: tuple[_Source, Recipe, Path]) -> _Part | str:
    """One picture decoded and encoded, or found done; or why it is left out."""
    source, recipe, folder = job
    raw = source.path.read_bytes()
    settings = repr((recipe.size, recipe.fps, recipe.quality, SPEED)).encode()
    key = hashlib.sha256(settings + raw).hexdigest()[:32]
    facts, data = folder / f"{key}.npz", folder / f"{key}.avif"
    if not facts.exists():
        try:
            frames = _frames(source.path, recipe)
        except VideoError as e:
            return f"left out: {e}"
        changes = int((frames[1:] != frames[:-1]).any((1, 2, 3)).sum())
        if len(frames) > 1 and changes < LEAST - 1:
            return f"left out: {source.name} has {changes + 1} pictures, neither a clip nor a still"
        with replacing(data) as tmp:
            tmp.write_bytes(_encode(frames, recipe))
        thumbs = np.stack(
            [_thumb(frames[i]) for i in sorted({0, len(frames) // 2, len(frames) - 1})]
        )
        with replacing(facts) as tmp:
            np.savez(tmp, shape=np.array(frames.shape), thumbs=thumbs, flat=_flat(frames[0]))
    with np.load(facts, allow_pickle=False) as f:
        t, h, w = (int(n) for n in f["shape"][:3])
        thumbs, flat = f["thumbs"], float(f["flat"])
    kind = "clip" if t > 1 else "still"
    fps = recipe.fps if t > 1 else 0.0
    picture = Picture(source.name, kind, f"{key}.avif", t, h, w, fps, "train", source.package)
    return _Part(picture, data, thumbs, flat)


def _frames(path: Path, recipe: Recipe) -> np.ndarray:
    """uint8 `[T,H,W,3]`, sampled by time, cut to 16:9 at most, a margin above the training size.
    A second frame decides whether the short side is a clip's or a still's."""
    raw = list(read_frames(path, fps=recipe.fps, max_frames=min(LONGEST, MAX_FRAMES)))
    height, width = raw[0].shape[:2]
    margin = CLIP_MARGIN if len(raw) > 1 else STILL_MARGIN
    short = round(recipe.size * margin)
    long = round(short * min(max(height, width) / min(height, width), WIDEST))
    size = (short, long) if width >= height else (long, short)
    return np.stack([fit_frame(frame, size, "crop") for frame in raw])


def _encode(frames: np.ndarray, recipe: Recipe) -> bytes:
    """AVIF, colours at full resolution (half of it costs 2 dB and saves a tenth)."""
    images = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    images[0].save(
        buffer, "AVIF", save_all=len(images) > 1, append_images=images[1:], speed=SPEED,
        quality=recipe.quality, subsampling="4:4:4", max_threads=1,
        duration=round(1000 / recipe.fps),
    )  # fmt: skip
    data = bytearray(buffer.getvalue())
    for box in (b"mvhd", b"tkhd", b"mdhd"):  # they hold the time of day
        at = data.find(box, 0, data.index(b"mdat"))
        if at >= 0:
            two = 16 if data[at + 4] else 8  # bytes of two times, by the box's version
            data[at + 8 : at + 8 + two] = bytes(two)
    return bytes(data)


def _thumb(frame: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).resize((THUMB, THUMB), Image.Resampling.BOX))


def _flat(frame: np.ndarray) -> float:
    """The share of the most frequent colour, of 16 levels a channel."""
    levels = (frame >> 4).astype(np.int32)
    codes = (levels[..., 0] << 8) | (levels[..., 1] << 4) | levels[..., 2]
    return float(np.bincount(codes.ravel()).max() / codes.size)


def _is_picture(still: _Part) -> bool:
    """Whether a still is one, not a logo, a drawing of lines or a title card. A preview of a
    package is called <workflow>-<n>; those without a number are the logos of makers."""
    stem, package = still.picture.name.rsplit("/", 1)[-1].lower(), still.picture.package
    card = not re.search(r"-\d+$", stem) or TITLE_CARDS.intersection(re.split("[^a-z0-9]", stem))
    return still.flat < FLAT and not (package in PACKAGES and card)


def _without_twins(parts: Iterable[_Part]) -> list[_Part]:
    """Each picture once: not the same bytes again, nor what looks the same in every thumbnail."""
    kept: list[_Part] = []
    by_kind: dict[tuple[str, int], list[np.ndarray]] = {}
    for part in parts:
        thumbs = part.thumbs.astype(np.float32)
        others = by_kind.setdefault((part.picture.kind, len(thumbs)), [])
        if not others or np.abs(np.stack(others) - thumbs).mean((2, 3, 4)).max(1).min() > SAME:
            kept.append(part)
            others.append(thumbs)
    return kept


def _split(parts: list[_Part]) -> list[_Part]:
    """One in eight held out, by the hash of the name without the number at its end as
    `RealClips.split`; pictures of one scene go together, under the first of their names."""
    stems = [p.picture.name.rsplit("/", 1)[-1].rsplit("-", 1)[0] for p in parts]
    owner = np.repeat(np.arange(len(parts)), [len(p.thumbs) for p in parts])
    flat = np.concatenate([p.thumbs for p in parts]).reshape(len(owner), -1).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True) + 1e-3
    parent = list(range(len(parts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first: dict[str, int] = {}
    for i, stem in enumerate(stems):
        parent[root(i)] = root(first.setdefault(stem, i))
    for i, j in np.argwhere(flat @ flat.T > ALIKE):
        parent[root(int(owner[i]))] = root(int(owner[j]))
    names: dict[int, str] = {}
    for i, stem in enumerate(stems):
        names[root(i)] = min(stem, names.get(root(i), stem))
    held = [hashlib.sha256(names[root(i)].encode()).digest()[0] % 8 == 0 for i in range(len(parts))]
    return [
        replace(p, picture=replace(p.picture, split="held" if h else "train"))
        for p, h in zip(parts, held)
    ]
