"""What there is to tokenize: a folder of clips, a list of them, or WebDataset tars.

Whatever it is, it becomes a list of clips in an order that does not change, so that a number names
a clip. What cannot be used is in that list too, with the reason: nothing is dropped in silence.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import VftError
from ..files.untrusted import read_json
from ..footage.real import SUFFIXES, clip_files
from .formats import pyarrow_for

LISTS = {".txt", ".csv", ".tsv", ".parquet"}
COLUMNS = ("path", "caption", "start", "end")
MAX_CAPTION = 10_000  # characters


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip, or a stretch of one. `name`: its path as the source says it. In seconds, `start`
    and `end` (None: to its end). In a tar it lies at `offset` and has `length` bytes. `problem`:
    why it cannot be used."""

    name: str
    path: str
    caption: str | None = None
    start: float = 0.0
    end: float | None = None
    offset: int = 0
    length: int | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Source:
    """The clips in their order, and a mark that is another one if anything about them is."""

    clips: list[Clip]
    mark: str


def open_source(path: Path) -> Source:
    """The clips of a folder (with captions in `clip.txt` beside `clip.mp4`, if there), of a list
    (.txt: a path a line, and behind tabs a caption, start, end; .csv, .tsv and .parquet: columns of
    these names), of a WebDataset tar or a folder of them (captions in `.txt` or as `caption` in
    `.json`). Paths of a list are relative to its folder.

    VftError for what is none of these, or holds no clip; a damaged entry is a clip with a problem.
    """
    suffix = path.suffix.lower()
    found: Iterable[Clip]
    if path.is_dir():
        tars = sorted(p for p in path.iterdir() if p.suffix.lower() == ".tar" and p.is_file())
        files = clip_files(path)
        if tars and files:
            raise VftError(f"{path} holds clips and tars; give a folder of one kind")
        found = _of_tars(tars) if tars else _of_files(path, files)
    elif not path.exists():
        raise VftError(f"there is no {path}; give a folder, a list or a tar")
    elif suffix == ".tar":
        found = _of_tars([path])
    elif suffix in LISTS:
        found = _of_rows(path, _rows(path, suffix))
    elif suffix in SUFFIXES:
        found = _of_files(path.parent, [path])
    else:
        raise VftError(f"{path} is no source of clips: give a folder, {', '.join(LISTS)} or .tar")
    clips = list(found)
    if not clips:
        raise VftError(f"{path} holds no clip ({', '.join(sorted(SUFFIXES))})")
    mark = hashlib.sha256()
    for c in clips:
        facts = (c.name, c.caption, c.start, c.end, c.offset, c.length, c.problem)
        mark.update(json.dumps(facts).encode() + b"\n")
    return Source(clips, mark.hexdigest()[:16])


def _of_files(folder: Path, files: list[Path]) -> Iterator[Clip]:
    for file in files:
        caption, beside = None, file.with_suffix(".txt")
        if beside.is_file():
            caption = beside.read_text(encoding="utf-8", errors="replace").strip() or None
        yield _clip(file.relative_to(folder).as_posix(), file, caption)


def _rows(path: Path, suffix: str) -> Iterator[Mapping[str, Any]]:
    if suffix == ".parquet":
        pa = pyarrow_for("a Parquet list")
        try:
            with pa.parquet.ParquetFile(path) as file:
                there = [name for name in COLUMNS if name in file.schema_arrow.names]
                if "path" not in there:
                    raise VftError(f"{path} has no column `path`")
                for batch in file.iter_batches(columns=there):
                    yield from batch.to_pylist()
        except (OSError, pa.ArrowException) as e:
            raise VftError(f"{path} is not a readable Parquet file: {e}") from None
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as f:
            if suffix == ".txt":
                for line in f:
                    if line.strip():
                        yield dict(zip(COLUMNS, line.rstrip("\r\n").split("\t")))
                return
            reader = csv.DictReader(f, delimiter="\t" if suffix == ".tsv" else ",")
            if "path" not in (reader.fieldnames or ()):
                raise VftError(f"{path} has no column `path` in its first line")
            yield from reader
    except (UnicodeDecodeError, csv.Error) as e:
        raise VftError(f"{path} is not a readable list: {e}") from None


def _of_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Iterator[Clip]:
    for row in rows:
        name = str(row.get("path") or "").strip()
        if not name:
            yield Clip("", "", problem="its row has no path")
            continue
        caption = row.get("caption")
        caption = None if caption is None else str(caption).strip() or None
        try:
            start, end = (_seconds(row.get(edge)) for edge in ("start", "end"))
        except ValueError:
            facts = f"start {row.get('start')!r}, end {row.get('end')!r}"
            yield Clip(name, "", problem=f"its row says {facts}; expected seconds from 0 up")
            continue
        if end is not None and end <= (start or 0.0):
            yield Clip(name, "", problem=f"its row ends at {end:g} s, before it begins")
            continue
        yield _clip(name, path.parent / name, caption, start or 0.0, end)


def _seconds(value: Any) -> float | None:
    if value is None or str(value).strip() == "":
        return None
    seconds = float(value)
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError
    return seconds


def _of_tars(tars: list[Path]) -> Iterator[Clip]:
    for tar in tars:
        held: dict[str, dict[str, tarfile.TarInfo]] = {}
        problem = None
        with tar.open("rb") as raw:
            try:
                with tarfile.open(fileobj=raw, mode="r:") as f:
                    for member in f:
                        # Hidden files, macOS's `._clip.mp4` among them, are nobody's.
                        hidden = any(p[0] == "." for p in PurePosixPath(member.name).parts)
                        if member.isreg() and not hidden:
                            stem = PurePosixPath(member.name).name.partition(".")[0]
                            key = str(PurePosixPath(member.name).with_name(stem))
                            kind = member.name[len(key) :].lower()
                            held.setdefault(key, {})[kind] = member
            except (tarfile.TarError, OSError, ValueError) as e:
                problem = f"the tar cannot be read further: {e}"
            for parts in held.values():
                clip = next(
                    (m for k, m in parts.items() if "." + k.split(".")[-1] in SUFFIXES), None
                )
                if clip is not None:
                    yield _clip(
                        f"{tar.name}/{clip.name}", tar, _beside(raw, parts),
                        offset=clip.offset_data, length=clip.size,
                    )  # fmt: skip
        if problem is not None:
            yield Clip(tar.name, "", problem=problem)


def _beside(raw: Any, parts: Mapping[str, tarfile.TarInfo]) -> str | None:
    """The caption of a tar's clip."""
    for kind in (".txt", ".json"):
        if kind in parts and parts[kind].size <= 1 << 20:
            raw.seek(parts[kind].offset_data)
            text = raw.read(parts[kind].size).decode("utf-8", "replace")
            if kind == ".json":
                try:
                    facts = read_json(text)
                except ValueError:
                    continue
                text = facts.get("caption") if isinstance(facts, dict) else None
            if isinstance(text, str) and text.strip():
                return text.strip()
    return None


def _clip(
    name: str, path: Path, caption: str | None, start: float = 0.0, end: float | None = None,
    offset: int = 0, length: int | None = None,
) -> Clip:  # fmt: skip
    problem = None
    if caption is not None and len(caption) > MAX_CAPTION:
        problem = f"its caption has {len(caption)} characters; expected at most {MAX_CAPTION}"
        caption = None
    return Clip(name, str(path), caption, start, end, offset, length, problem)
