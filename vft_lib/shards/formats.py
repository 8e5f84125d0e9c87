"""Records as files: WebDataset tars or Parquet. A record is a clip, or a window of one, as ids.

In a tar: `KEY.ids.npy`, uint16 `[t,k]`; `KEY.json` with what they are of; `KEY.NAME.npy`, float16,
for each of the extras. `webdataset` reads it too. In Parquet a column for each fact; `ids` is
binary, uint16 little endian, `rows` of them times `budget`; extras are binary, float16.
"""

from __future__ import annotations

import io
import json
import math
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config.tokenizer import MAX_FPS, MIN_FPS
from ..errors import VftError
from ..files.untrusted import read_json

if TYPE_CHECKING:
    from ..tokens import Tokens

FORMATS = {"webdataset": ".tar", "parquet": ".parquet"}
EXTRAS = ("codes", "hidden", "latents")
MAX_MEMBER = 1 << 30  # bytes of one record's array
GROUP = 64  # rows of a Parquet row group: what a reader holds at once


@dataclass(frozen=True)
class Record:
    """`ids` uint16 `[t,k]` of clip number `clip` of the source, window `window`, which begins with
    the clip's frame `first`. `facts`: what `Tokens` holds beside its ids. `extras`, float16:
    "codes" `[t,K,6]`, what the registers say before quantization; "hidden" `[t,K,d]`, the encoder's
    last hidden states; "latents" `[n,C,5,h,w]`, the autoencoder's latents of each chunk."""

    clip: int
    window: int
    first: int
    caption: str | None
    ids: np.ndarray
    facts: dict[str, Any]
    extras: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.clip:09d}-{self.window:06d}"

    @property
    def tokens(self) -> Tokens:
        """As the rest of the library takes them: ids int64 `[1,t,k]`."""
        import torch

        from ..tokens import Tokens

        ids = torch.from_numpy(self.ids.astype(np.int64))[None]
        # The source's sound begins with the clip.
        return Tokens(ids=ids, **self.facts | ({"source": None} if self.first else {}))


def pyarrow_for(what: str) -> Any:
    """pyarrow, or VftError with the extra that brings it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise VftError(f'{what} needs pyarrow: pip install ".[library]"') from None
    return pyarrow


def write_records(path: Path, records: Iterable[Record], extras: Sequence[str] = ()) -> None:
    """Write records to a file that is called like one of `FORMATS`; the same records give the same
    bytes."""
    if path.suffix == ".tar":
        _write_tar(path, records)
    else:
        _write_parquet(path, records, extras)


def read_records(path: Path, extras: Sequence[str] = ()) -> Iterator[Record]:
    """The records of a file, one at a time, with those of the `extras` that are asked for.
    VftError, with one line, for anything but a sound file."""
    try:
        yield from (_read_tar if path.suffix == ".tar" else _read_parquet)(path, extras)
    except (
        tarfile.TarError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        NotImplementedError,
    ) as e:
        if isinstance(e, VftError):
            raise
        raise VftError(f"{path} is not a readable shard of tokens: {e}") from None


# ------------------------------------------------------------------ tar


def _write_tar(path: Path, records: Iterable[Record]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for r in records:
            meta = {"clip": r.clip, "window": r.window, "first": r.first, "caption": r.caption}
            text = json.dumps(meta | r.facts, separators=(",", ":"))
            _add(tar, f"{r.key}.json", text.encode())
            for name, array in (("ids", r.ids), *r.extras.items()):
                data = io.BytesIO()
                np.save(data, array.astype("<u2" if name == "ids" else "<f2"))
                _add(tar, f"{r.key}.{name}.npy", data.getvalue())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _read_tar(path: Path, extras: Sequence[str]) -> Iterator[Record]:
    held: dict[str, bytes] = {}
    key = None
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            stem, _, kind = member.name.partition(".")
            if stem != key and held:
                yield _of_members(held, extras)
                held = {}
            key = stem
            wanted = kind in ("json", "ids.npy") or kind.removesuffix(".npy") in extras
            if wanted and member.isreg():
                if member.size > MAX_MEMBER:
                    raise ValueError(f"{member.name} has {member.size} bytes")
                file = tar.extractfile(member)
                held[kind] = b"" if file is None else file.read()
            tar.members = []  # type: ignore[attr-defined]  # else it keeps the headers of all
    if held:
        yield _of_members(held, extras)


def _of_members(held: dict[str, bytes], extras: Sequence[str]) -> Record:
    meta = read_json(held["json"])
    arrays = {name: _of_npy(held[f"{name}.npy"]) for name in ("ids", *extras)}
    return _record(meta, arrays.pop("ids"), arrays)


def _of_npy(data: bytes) -> np.ndarray:
    """np.load believes a header that asks for more memory than there is."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"an array of npy version {version}")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran or dtype not in ("<u2", "<f2"):
        raise ValueError(f"an array of {dtype}; expected uint16 or float16 in C order")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape).copy()


# ------------------------------------------------------------------ Parquet


def _schema(pa: Any, extras: Sequence[str], shapes: dict[str, list[int]]) -> Any:
    numbers = ("clip", "window", "first", "frames", "rows", "budget", "height", "width",
               "source_height", "source_width")  # fmt: skip
    texts = ("caption", "source", "fit", "tokenizer", "fingerprint")
    columns = [(name, pa.int64()) for name in numbers]
    columns += [(name, pa.string()) for name in texts]
    columns += [("fps", pa.float64())]
    columns += [(name, pa.binary()) for name in ("ids", *extras)]
    return pa.schema(columns, metadata={"shapes": json.dumps(shapes)})


def _write_parquet(path: Path, records: Iterable[Record], extras: Sequence[str]) -> None:
    pa = pyarrow_for("writing Parquet")
    held: list[dict[str, Any]] = []
    writer = None
    for r in records:
        if writer is None:
            shapes = {name: list(r.extras[name].shape[1:]) for name in extras}
            schema = _schema(pa, extras, shapes)
            writer = pa.parquet.ParquetWriter(path, schema, compression="zstd")
        f = dict(r.facts)
        f["height"], f["width"] = f.pop("size")
        f["source_height"], f["source_width"] = f.pop("source_size") or (None, None)
        held.append(
            f | {"clip": r.clip, "window": r.window, "first": r.first, "caption": r.caption}
            | {"rows": r.ids.shape[0], "budget": r.ids.shape[1]}
            | {"ids": r.ids.astype("<u2").tobytes()}
            | {name: r.extras[name].astype("<f2").tobytes() for name in extras}
        )  # fmt: skip
        if len(held) == GROUP:
            writer.write_table(pa.Table.from_pylist(held, schema=writer.schema))
            held = []
    if writer is not None:
        if held:
            writer.write_table(pa.Table.from_pylist(held, schema=writer.schema))
        writer.close()


def _read_parquet(path: Path, extras: Sequence[str]) -> Iterator[Record]:
    pa = pyarrow_for("reading Parquet")
    with pa.parquet.ParquetFile(path) as file:
        shapes = read_json((file.schema_arrow.metadata or {}).get(b"shapes", b"{}"))
        names = [n for n in file.schema_arrow.names if n not in EXTRAS or n in extras]
        for batch in file.iter_batches(batch_size=GROUP, columns=names):
            for row in batch.to_pylist():
                ids = np.frombuffer(row.pop("ids"), "<u2").copy()
                ids = ids.reshape(row.pop("rows"), row.pop("budget"))
                arrays = {
                    name: np.frombuffer(row.pop(name), "<f2").reshape(-1, *shapes[name]).copy()
                    for name in extras
                }
                row["size"] = row.pop("height"), row.pop("width")
                source = row.pop("source_height"), row.pop("source_width")
                row["source_size"] = None if None in source else source
                yield _record(row, ids, arrays)


# ------------------------------------------------------------------ both


def _record(meta: Any, ids: np.ndarray, extras: dict[str, np.ndarray]) -> Record:
    """ValueError or KeyError for what no record holds."""
    if not isinstance(meta, dict):
        raise ValueError("a record's facts are no object")
    if ids.dtype != np.uint16 or ids.ndim != 2 or 0 in ids.shape:
        raise ValueError(f"its ids are {ids.dtype} {list(ids.shape)}; expected uint16 [t,k]")
    for name, array in extras.items():
        if array.dtype != np.float16 or array.ndim < 2:
            raise ValueError(f"its {name} are {array.dtype} {list(array.shape)}")
    sides = {name: _pair(meta[name]) for name in ("size", "source_size")}
    numbers = [meta[name] for name in ("clip", "window", "first", "frames")]
    texts = [meta[name] for name in ("tokenizer", "fingerprint", "fit")]
    fps = float(meta["fps"])
    if (
        any(type(n) is not int or n < 0 for n in numbers)
        or any(type(text) is not str for text in texts)
        or not all(isinstance(meta.get(n), (str, type(None))) for n in ("caption", "source"))
        or sides["size"] is None
        or not (math.isfinite(fps) and MIN_FPS <= fps <= MAX_FPS)
    ):
        raise ValueError("a record's facts are out of range")
    facts = {
        "tokenizer": meta["tokenizer"], "fingerprint": meta["fingerprint"],
        "frames": meta["frames"], "fps": fps, **sides, "fit": meta["fit"],
        "source": meta.get("source"),
    }  # fmt: skip
    return Record(
        meta["clip"], meta["window"], meta["first"], meta.get("caption"), ids, facts, extras
    )


def _pair(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    h, w = value
    if not (type(h) is int and type(w) is int and 0 < h <= 1 << 16 and 0 < w <= 1 << 16):
        raise ValueError(f"a size is {value!r}")
    return h, w
