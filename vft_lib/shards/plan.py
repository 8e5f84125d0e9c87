"""What a run of `vft tokenize` is: how clips become records, and which clips become which shard.

Shard u holds the clips from u * per_shard on. It is the unit of work: it is made by one process, in
one go, and it is there when its file is, under its own name. Beside it stands `shard-U.json`, which
says what it holds and which clips failed; that is written first, so that a shard that is there is
always accounted for. A run that was killed leaves whole shards and temporary files, which the next
one removes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import VftError
from ..files.atomic import alone, replacing, write_bytes
from ..files.untrusted import read_json
from .formats import EXTRAS, FORMATS, Record, pyarrow_for, write_records

FORMAT, VERSION = "vft-shards", 1
PLAN, FAILURES = "tokens.json", "failures.parquet"


@dataclass(frozen=True)
class Settings:
    """How a clip becomes records.

    `fps` None: every frame of the file. `window` 0: the whole clip, one record; W: a record for W
    frames from every `stride`-th frame on, as far as they are there (a clip that is shorter is one
    record, padded as `vft encode` does). `exact`: whole chunks only, no frame is padded: what is
    left over at the end is not encoded, a clip shorter than a chunk fails. `budget`: ids a latent
    frame. `extras`: of `formats.EXTRAS`. `size`, `chunk` and `overlap` are the tokenizer's.
    """

    fps: float | None
    fit: str
    window: int
    stride: int
    exact: bool
    budget: int
    extras: tuple[str, ...]
    size: int
    chunk: int
    overlap: int

    def __post_init__(self) -> None:
        if self.window and (self.exact or self.window < 1 or self.stride < 1):
            raise VftError(
                f"got a window of {self.window} frames and a stride of {self.stride}; give numbers "
                "from 1 up, and not `exact` with them"
            )
        if unknown := set(self.extras) - set(EXTRAS):
            raise VftError(f"unknown: {', '.join(unknown)}; choose from {', '.join(EXTRAS)}")


@dataclass(frozen=True)
class Plan:
    """One run, whoever works on it. `source` is the mark of the list of clips, `autoencoder` the
    digest of the tokenizer's, `dtype` what it computes in."""

    source: str
    clips: int
    per_shard: int
    format: str
    tokenizer: str
    fingerprint: str
    autoencoder: str
    dtype: str
    settings: Settings

    @property
    def units(self) -> int:
        return -(-self.clips // self.per_shard)

    def clips_of(self, unit: int) -> range:
        return range(unit * self.per_shard, min(self.clips, (unit + 1) * self.per_shard))

    def begin(self, folder: Path, resume: bool) -> None:
        """Note the plan down in `folder`, or find it there. VftError if another one is, or this one
        and `resume` is not said."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / PLAN
        if path.exists():
            there = read_plan(folder)
            if other := _differences(there, self):
                raise VftError(
                    f"{folder} was begun with other {', '.join(other)}; use the same, or choose "
                    "another --out"
                )
            if not resume:
                raise VftError(f"{folder} holds this run already; add --resume to go on with it")
            return
        write_bytes(path, json.dumps(self.to_json(), indent=1).encode())

    def to_json(self) -> dict[str, Any]:
        return {"kind": FORMAT, "version": VERSION, **dataclasses.asdict(self)}


def read_plan(folder: Path) -> Plan:
    """VftError if `folder` is no folder of shards."""
    path = folder / PLAN
    try:
        data = read_json(path.read_bytes())
        if data.pop("kind") != FORMAT or data.pop("version") != VERSION:
            raise ValueError(f"it is of another kind, or not of version {VERSION}")
        settings = data.pop("settings")
        settings["extras"] = tuple(settings["extras"])
        plan = Plan(**data, settings=Settings(**settings))
        if plan.format not in FORMATS or min(plan.clips, plan.per_shard) < 1:
            raise ValueError("its entries are out of range")
    except FileNotFoundError:
        raise VftError(f"{folder} holds no tokens: there is no {PLAN} in it") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise VftError(f"{path} is not readable: {e}") from None
    return plan


def _differences(a: Plan, b: Plan) -> list[str]:
    one, other = (p.to_json() | dataclasses.asdict(p.settings) for p in (a, b))
    names = {"source": "clips", "clips": "clips", "per_shard": "--clips-per-shard"}
    return sorted(
        {names.get(k, k) for k in one if k != "settings" and _plain(one[k]) != _plain(other[k])}
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Failure:
    clip: int
    source: str
    reason: str


@dataclass(frozen=True)
class Shard:
    """What is beside a shard: its `file` (None: it holds no record, all its clips failed), and for
    each record its clip and its latent frames."""

    unit: int
    file: Path | None
    clips: tuple[int, ...]
    rows: tuple[int, ...]
    failures: tuple[Failure, ...]


def name_of(unit: int) -> str:
    return f"shard-{unit:06d}"


def commit(folder: Path, plan: Plan, unit: int, records: Sequence[Record],
           failures: Sequence[Failure]) -> Shard:  # fmt: skip
    """Write a shard: what it holds first, then its file, each in one step. Done again, it writes
    the same bytes."""
    path = folder / (name_of(unit) + FORMATS[plan.format])
    facts = {
        "unit": unit, "file": path.name if records else None,
        "clips": [r.clip for r in records], "rows": [len(r.ids) for r in records],
        "failures": [dataclasses.astuple(f) for f in failures],
    }  # fmt: skip
    write_bytes(folder / (name_of(unit) + ".json"), json.dumps(facts).encode())
    if records:
        with replacing(path) as tmp:
            write_records(tmp, records, plan.settings.extras)
    return _shard(folder, facts)


def read_shard(folder: Path, unit: int) -> Shard | None:
    """What shard `unit` holds; None if it is not complete. VftError if it is damaged."""
    path = folder / (name_of(unit) + ".json")
    try:
        facts = json.loads(path.read_bytes())
        shard = _shard(folder, facts)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise VftError(f"{path} is not readable ({e}); delete it to have it made again") from None
    return shard if shard.file is None or shard.file.exists() else None


def _shard(folder: Path, facts: dict[str, Any]) -> Shard:
    unit, name = facts["unit"], facts["file"]
    if name is not None and Path(name).stem != name_of(unit):
        raise ValueError(f"its file is {name!r}")
    clips, rows = (tuple(map(int, facts[n])) for n in ("clips", "rows"))
    if len(clips) != len(rows) or (name is None) != (not clips) or min(rows, default=1) < 1:
        raise ValueError("its clips and rows do not fit together")
    failures = tuple(Failure(int(c), str(s), str(r)) for c, s, r in facts["failures"])
    return Shard(unit, None if name is None else folder / Path(name).name, clips, rows, failures)


def shards_of(folder: Path, plan: Plan) -> Iterator[Shard]:
    """All that are complete, in order."""
    for unit in range(plan.units):
        shard = read_shard(folder, unit)
        if shard is not None:
            yield shard


def write_failures(folder: Path, plan: Plan) -> list[Failure]:
    """`failures.parquet`: the clips of all complete shards that gave no record, and why."""
    pa = pyarrow_for(FAILURES)
    with alone(folder / ".failures", lambda: None):  # who comes later sees more shards
        found = [f for shard in shards_of(folder, plan) for f in shard.failures]
        schema = pa.schema([("clip", pa.int64()), ("source", pa.string()), ("reason", pa.string())])
        table = pa.Table.from_pylist([dataclasses.asdict(f) for f in found], schema=schema)
        with replacing(folder / FAILURES) as tmp:
            pa.parquet.write_table(table, tmp)
    with suppress(OSError):
        (folder / ".failures").rmdir()
    return found
