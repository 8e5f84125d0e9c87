"""One file with all real pictures to train on, at training size; read with Pillow alone.

A pack is a zip file without compression: `index.json`, and an AVIF file for each picture: a moving
clip as an image sequence, a still as one image. `vft train pack` writes it (`packing.py`), and
training with `--pack FILE` reads nothing else: no other package, no video library, no network.
A pack may come from a stranger: its index and the header of every picture are checked against
limits before a picture is decoded.
"""

from __future__ import annotations

import io
import math
import multiprocessing
import os
import struct
import zipfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import AvifImagePlugin, Image, features

from ..errors import VftError, printable
from ..files.untrusted import TEXT_CHARS, read_json

FORMAT, VERSION, INDEX = "vft-pack", 1, "index.json"
KINDS, SPLITS = ("clip", "still"), ("train", "held")
MAX_FILE = 1 << 27  # bytes of a pack; the default one has 25 MB
MAX_PICTURES = 20_000
MAX_FRAMES = 1000  # of a clip
MAX_SIDE = 1024  # px
MAX_DECODED = 1 << 33  # bytes of all frames together
FEW = 2000  # frames; so many are decoded while another process imports what it needs


class PackError(VftError):
    """A pack that is damaged, of another format, or beyond the limits."""


@dataclass(frozen=True)
class Picture:
    """One entry of the index: `frames` of `height` x `width` px in the zip's entry `file`."""

    name: str
    kind: str  # "clip" or "still"
    file: str
    frames: int
    height: int
    width: int
    fps: float  # frames per second of a clip; 0 for a still
    split: str  # "train", or "held" out for measuring
    package: str  # where it comes from; a key of `PackInfo.packages`


@dataclass(frozen=True)
class PackInfo:
    """The index: `size` is the training size in px the pack was made for; `packages` gives for
    each source its version and licence."""

    size: int
    fps: float
    packages: dict[str, dict[str, str]]
    pictures: tuple[Picture, ...]

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, **asdict(self)}


@dataclass(frozen=True)
class Pack:
    """Decoded pictures by name: clips uint8 `[T,H,W,3]`, stills uint8 `[H,W,3]`, RGB. The short
    side is larger than `info.size`, to crop from; sizes differ between pictures."""

    clips: dict[str, np.ndarray]
    stills: dict[str, np.ndarray]
    info: PackInfo


def load_pack(path: str | Path, split: str | None = None, processes: int | None = None) -> Pack:
    """Read and decode a pack, all of it or one `split` ("train" or "held").

    `processes` decode at the same time (None: one per CPU core). Raises PackError for a file that
    is no pack, is damaged or exceeds the limits, VftError for a Pillow that cannot read AVIF.
    """
    if split not in (None, *SPLITS):
        raise VftError(f"Got split {split!r}; choose one of {', '.join(SPLITS)}, or None for all.")
    if not features.check("avif"):
        raise VftError("this Pillow reads no AVIF; pip install 'Pillow>=11.3'")
    path = Path(path)
    info, blobs = _read(path, split)
    chosen = [p for p in info.pictures if split in (None, p.split)]
    jobs = list(zip(chosen, blobs))
    count = min(processes or os.cpu_count() or 1, sum(p.frames for p in chosen) // FEW + 1)
    try:
        arrays = _decode_all(jobs, count)
    except ValueError as e:
        raise PackError(f"{path}: {e}; copy the pack again") from None
    clips = {p.name: a for p, a in zip(chosen, arrays) if p.kind == "clip"}
    return Pack(clips, {p.name: a[0] for p, a in zip(chosen, arrays) if p.kind == "still"}, info)


def read_index(path: str | Path) -> PackInfo:
    """The index of a pack, without decoding anything. Raises PackError."""
    return _read(Path(path), split="")[0]


def decode(picture: Picture, data: bytes) -> np.ndarray:
    """A picture's frames, uint8 `[T,H,W,3]`. ValueError if they are not as the index says."""
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # frames are small, processes many
    try:
        with Image.open(io.BytesIO(data), formats=["AVIF"]) as image:
            found = (getattr(image, "n_frames", 1), image.height, image.width)
            if found != (picture.frames, picture.height, picture.width):
                raise ValueError(f"it has frames, height and width {found}")
            out = np.empty((*found, 3), np.uint8)
            for i in range(picture.frames):
                image.seek(i)
                out[i] = np.asarray(image.convert("RGB"))
    except Exception as e:  # Pillow's readers raise anything for a damaged file
        raise ValueError(f"picture {picture.name!r} cannot be read ({e})") from None
    return out


def _decode_all(jobs: list[tuple[Picture, bytes]], processes: int) -> list[np.ndarray]:
    if processes > 1:
        # Long clips first, or the last of them is waited for.
        order = sorted(range(len(jobs)), key=lambda i: -jobs[i][0].frames)
        try:
            with ProcessPoolExecutor(processes, mp_context=_context()) as pool:
                done = pool.map(_decode_job, [jobs[i] for i in order], chunksize=4)
                return [a for _, a in sorted(zip(order, done), key=lambda pair: pair[0])]
        except BrokenProcessPool:
            pass  # a program without `if __name__ == "__main__"` has no processes: decoded here
    return [decode(*job) for job in jobs]


def _decode_job(job: tuple[Picture, bytes]) -> np.ndarray:
    return decode(*job)


def _context() -> Any:
    """Processes without this one's threads and CUDA; they import this module once together."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _read(path: Path, split: str | None) -> tuple[PackInfo, list[bytes]]:
    """The checked index, and the encoded pictures of a split (of all for None)."""
    try:
        if not path.is_file():
            raise ValueError("there is no such file")
        if path.stat().st_size > MAX_FILE:
            raise ValueError(f"it has more than {MAX_FILE >> 20} MiB")
        with zipfile.ZipFile(path) as archive:
            entries = {e.filename: e for e in archive.infolist()}
            if any(e.compress_type or e.flag_bits & 1 for e in entries.values()):
                raise ValueError("its entries are compressed or encrypted")
            if sum(e.file_size for e in entries.values()) > MAX_FILE:
                raise ValueError("its entries overlap")
            if INDEX not in entries or entries[INDEX].file_size > TEXT_CHARS:
                raise ValueError(f"it holds no {INDEX}, or one that is too large")
            info = _checked(read_json(archive.read(INDEX)))
            missing = [p.file for p in info.pictures if p.file not in entries]
            if missing:
                raise ValueError(f"it lacks {missing[0]!r} and {len(missing) - 1} more")
            wanted = [p for p in info.pictures if split in (None, p.split)]
            return info, [archive.read(p.file) for p in wanted]
    except (OSError, ValueError, EOFError, RuntimeError, struct.error, zipfile.BadZipFile) as e:
        reason = str(e) or type(e).__name__
        raise PackError(
            f"{path} is no pack that can be read: {reason}; `vft train pack` makes one"
        ) from None


def _checked(index: Any) -> PackInfo:
    """The index as dataclasses; ValueError, with a reason, for anything out of bounds."""
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(f"its index is not of format {FORMAT}")
    if index.get("version") != VERSION:
        raise ValueError(f"it is of version {index.get('version')}; this program reads {VERSION}")
    size, fps, packages = index.get("size"), index.get("fps"), index.get("packages")
    if type(size) is not int or not 1 <= size <= MAX_SIDE or not _rate(fps) or not fps:
        raise ValueError("its size or fps is out of bounds")
    if not isinstance(packages, dict) or not all(
        printable(k)
        and isinstance(v, dict)
        and all(type(s) is str and printable(s) for s in v.values())
        for k, v in packages.items()
    ):
        raise ValueError("its packages are not names, versions and licences")
    rows = index.get("pictures")
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_PICTURES:
        raise ValueError(f"its index lists no pictures, or more than {MAX_PICTURES}")
    pictures = tuple(_picture(row, packages) for row in rows)
    for field in ("name", "file"):
        if len({getattr(p, field) for p in pictures}) < len(pictures):
            raise ValueError(f"two pictures have the same {field}")
    if sum(math.prod((p.frames, p.height, p.width, 3)) for p in pictures) > MAX_DECODED:
        raise ValueError(f"its pictures take more than {MAX_DECODED >> 30} GiB")
    return PackInfo(size, float(fps), packages, pictures)


def _picture(row: Any, packages: Sequence[str] | dict[str, Any]) -> Picture:
    fields = Picture.__dataclass_fields__
    if not isinstance(row, dict) or row.keys() != fields.keys():
        raise ValueError(f"a picture's entry has other fields than {', '.join(fields)}")
    for key in ("name", "kind", "file", "split", "package"):
        if type(row[key]) is not str or not 0 < len(row[key]) <= 256 or not printable(row[key]):
            raise ValueError(f"a picture's {key} is no short text")
    p = Picture(**row)
    limits = {"frames": MAX_FRAMES, "height": MAX_SIDE, "width": MAX_SIDE}
    for key, limit in limits.items():
        if type(row[key]) is not int or not 1 <= row[key] <= limit:
            raise ValueError(f"picture {p.name!r} has {key} {row[key]}; expected 1 to {limit}")
    if p.kind not in KINDS or p.split not in SPLITS or p.package not in packages:
        raise ValueError(f"picture {p.name!r} is of an unknown kind, split or package")
    if not _rate(p.fps) or (p.kind == "still" and p.frames > 1):
        raise ValueError(f"picture {p.name!r} has fps {p.fps} and {p.frames} frames")
    return p


def _rate(fps: Any) -> bool:
    return type(fps) in (int, float) and 0 <= fps <= 480
