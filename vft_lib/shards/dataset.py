"""Shards of tokens as a torch dataset: `for record in Shards("tokens"): record.tokens`.

Shuffling: shards are put in a random order, and as many neighbours in it as hold `buffer` records
are read and mixed. Where every record stands in an epoch follows from the seed and from the small
files beside the shards, so a reader that was stopped goes on at the very next record without
reading those before it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..errors import VftError
from .formats import EXTRAS, Record, read_records
from .plan import Plan, Shard, read_plan, shards_of

WORKERS = 256  # of one DataLoader at most

HELD_OUT = 32  # of so many clips of the source, the last is kept for validation


@dataclass(frozen=True)
class Index:
    """What lies in a folder of shards: those that are complete and hold records."""

    plan: Plan
    shards: tuple[Shard, ...]

    @staticmethod
    def of(folder: str | Path) -> Index:
        """VftError if there are no shards of tokens."""
        folder = Path(folder)
        plan = read_plan(folder)
        shards = tuple(s for s in shards_of(folder, plan) if s.file is not None)
        if not shards:
            raise VftError(f"{folder} holds no complete shard yet; run `vft tokenize --resume`")
        return Index(plan, shards)

    @property
    def mark(self) -> str:
        """16 hex digits: another plan, or more shards, have others."""
        facts = (self.plan.to_json(), [len(shard.clips) for shard in self.shards])
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def records(self, shards: Sequence[int], held_out: bool | None = None) -> np.ndarray:
        """Where the records of these shards are: int64 `[n,2]`, shard and place in it. `held_out`:
        only those kept for validation, or only the others."""
        parts = []
        for s in shards:
            places = np.arange(len(self.shards[s].clips))
            if held_out is not None:
                held = np.array(self.shards[s].clips) % HELD_OUT == HELD_OUT - 1
                places = places[held == held_out]
            parts.append(np.stack([np.full_like(places, s), places], 1))
        return np.concatenate(parts) if parts else np.zeros((0, 2), np.int64)

    def read(self, where: np.ndarray, extras: Sequence[str] = ()) -> list[Record]:
        """The records at places `[n,2]`, each shard read once."""
        found = {(s, i): record for s, i, record in self._found(where, extras)}
        return [found[s, i] for s, i in where.tolist()]

    def stream(self, where: np.ndarray, extras: Sequence[str] = ()) -> Iterator[Record]:
        """The same in the order of the shards, one in memory at a time."""
        for _, _, record in self._found(where, extras):
            yield record

    def _found(
        self, where: np.ndarray, extras: Sequence[str]
    ) -> Iterator[tuple[int, int, Record]]:  # fmt: skip
        for s in dict.fromkeys(where[:, 0].tolist()):
            wanted = set(where[where[:, 0] == s, 1].tolist())
            for i, record in self._numbered(s, extras):
                if i in wanted:
                    yield s, i, record

    def _numbered(self, shard: int, extras: Sequence[str]) -> Iterator[tuple[int, Record]]:
        """VftError unless the file holds what is written beside it."""
        facts, count = self.shards[shard], -1
        assert facts.file is not None
        for count, record in enumerate(read_records(facts.file, extras)):
            known = count < len(facts.clips)
            if not known or (facts.clips[count], facts.rows[count]) != (
                record.clip,
                len(record.ids),
            ):
                raise VftError(f"{facts.file} does not hold what is said beside it; make it again")
            yield count, record
        if count + 1 != len(facts.clips):
            raise VftError(f"{facts.file} holds {count + 1} records, not {len(facts.clips)}")


@dataclass(frozen=True)
class Order:
    """In which order the records of an index come to one of `world` readers. `seed` None: as they
    lie in the shards."""

    index: Index
    seed: int | None = None
    buffer: int = 4096
    rank: int = 0
    world: int = 1
    held_out: bool | None = None

    def blocks(self, epoch: int) -> Iterator[np.ndarray]:
        """Places `[n,2]` that are read together, one block after another. Over all readers, every
        record comes once an epoch: whole shards are dealt out, or, of fewer shards than readers,
        records."""
        shards = np.arange(len(self.index.shards))
        if self.seed is not None:
            shards = np.random.default_rng((self.seed, epoch)).permutation(shards)
        dealt = len(shards) >= self.world
        shards = shards[self.rank :: self.world] if dealt else shards
        sizes = [len(self.index.shards[s].clips) for s in shards]
        begin = held = number = 0
        for end, size in enumerate(sizes, 1):
            held += size
            if held >= self.buffer or end == len(sizes):
                places = self.index.records(shards[begin:end].tolist(), self.held_out)
                if self.seed is not None:
                    rng = np.random.default_rng((self.seed, epoch, number, int(shards[begin])))
                    places = rng.permutation(places)
                yield places if dealt else places[self.rank :: self.world]
                begin, held, number = end, 0, number + 1


class Shards(IterableDataset[Record]):
    """The records of a folder that `vft tokenize` made, one epoch an iteration.

    `shuffle`: by shard and in a buffer, another way each epoch. `extras`: of "codes", "hidden" and
    "latents", where the run was told to write them. `rank` and `world`: this reader's part, by
    default this process's of torchrun; the workers of a DataLoader (which wants `batch_size=None`,
    or a `collate_fn`) split it further. Every iteration is a new epoch, also after one that was
    left early; `state_dict` and `load_state_dict` go on at the sample, without workers. Raises
    VftError for a folder without shards, and for a damaged one where it is read.
    """

    def __init__(
        self, folder: str | Path, *, shuffle: bool = False, seed: int = 0, buffer: int = 4096,
        extras: Sequence[str] = (), rank: int | None = None, world: int | None = None,
    ) -> None:  # fmt: skip
        self.index = Index.of(folder)
        if missing := set(extras) - set(self.index.plan.settings.extras):
            there = ", ".join(self.index.plan.settings.extras) or "none"
            raise VftError(
                f"{folder} holds no {', '.join(sorted(missing))} (it holds: {there}); tokenize "
                f"--with some of {', '.join(EXTRAS)}"
            )
        self.seed, self.buffer, self.extras = seed if shuffle else None, buffer, tuple(extras)
        self.rank = int(os.environ.get("RANK", 0)) if rank is None else rank
        self.world = int(os.environ.get("WORLD_SIZE", 1)) if world is None else world
        if not 0 <= self.rank < self.world:
            raise VftError(f"got rank {rank} of {world}; give 0 to world - 1")
        self.epoch = self.given = 0
        # The next epoch of this process, and of each worker, whose copy of this goes with it.
        self._next, self._skip = torch.zeros(1 + WORKERS, dtype=torch.int64).share_memory_(), 0

    def __len__(self) -> int:
        """Records of all readers."""
        return sum(len(shard.clips) for shard in self.index.shards)

    def __iter__(self) -> Iterator[Record]:
        worker = get_worker_info()
        split = 1 if worker is None else worker.num_workers
        rank = self.rank * split + (0 if worker is None else worker.id)
        order = Order(self.index, self.seed, self.buffer, rank, self.world * split)
        place = 0 if worker is None else 1 + worker.id % WORKERS
        self.epoch, skip = int(self._next[place]), self._skip
        self._next[place] += 1
        self.given, self._skip = skip, 0
        for block in order.blocks(self.epoch):
            if skip >= len(block):
                skip -= len(block)
                continue
            block, skip = block[skip:], 0
            mixed = self.seed is not None
            for record in (self.index.read if mixed else self.index.stream)(block, self.extras):
                self.given += 1
                yield record
        self.epoch, self.given = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """How far this reader is."""
        return {"epoch": self.epoch, "given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there with the next iteration."""
        self.epoch, self.given = int(state["epoch"]), int(state["given"])
        self._next[:], self._skip = self.epoch, self.given
