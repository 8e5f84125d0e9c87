"""One machine's work: decode beside the model, encode chunks of many clips at once, commit shards.

    decoders (processes) -> batches (a thread) -> the model -> commit, shard by shard

Every chunk is encoded by itself, so a batch takes chunks of any clips and the device never waits
for one clip to end.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import VftError
from ..files.tensor_files import digest
from ..footage.footage import to_video
from ..tokenizer.tokenizer import Tokenizer
from .decoding import Decoders, Done, Piece
from .encoding import read_chunks
from .formats import Record
from .plan import Failure, Plan, Settings, Shard, commit
from .sources import Source

AHEAD = 2  # batches that may be decoded beyond the one that is put together


@dataclass
class Pace:
    """How a run goes: clips that are done and failed, records, seconds in all and of those the
    device waited for frames."""

    clips: int = 0
    failed: int = 0
    records: int = 0
    chunks: int = 0
    seconds: float = 0.0
    waited: float = 0.0


@dataclass
class _Open:
    """A clip on its way: what came of it, by (window, chunk)."""

    attempt: int = 0
    firsts: dict[int, int] = field(default_factory=dict)
    frames: dict[int, int] = field(default_factory=dict)
    chunks: dict[tuple[int, int], dict[str, np.ndarray]] = field(default_factory=dict)
    done: Done | None = None
    problem: str | None = None

    def at(self, attempt: int) -> bool:
        """Whether what comes of this attempt counts; a later one begins anew."""
        if attempt > self.attempt:
            self.attempt, self.firsts, self.frames, self.chunks = attempt, {}, {}, {}
        return attempt == self.attempt

    @property
    def complete(self) -> bool:
        return self.done is not None and len(self.chunks) == self.done.chunks


def plan_of(
    source: Source, tokenizer: Tokenizer, *, per_shard: int, format: str = "webdataset",
    fps: float | None = 0.0, fit: str = "crop", window: int = 0, stride: int | None = None,
    exact: bool = False, budget: int | None = None, extras: Sequence[str] = (),
    autoencoder: str = "",
) -> Plan:  # fmt: skip
    """The plan of a run. `fps` 0: the tokenizer's own, None: every frame; `stride` None: windows
    that do not overlap; `budget` None: all ids; `autoencoder`: see :func:`autoencoder_mark`, where
    latents are asked for. VftError for what does not fit."""
    c = tokenizer.config
    if per_shard < 1:
        raise VftError(f"got {per_shard} clips a shard; give 1 or more")
    settings = Settings(
        c.fps if fps == 0 else fps, fit, window, window if stride is None else stride, exact,
        tokenizer.check_budget(c.registers if budget is None else budget), tuple(extras),
        c.size, c.chunk_frames, c.overlap,
    )  # fmt: skip
    return Plan(
        source.mark, len(source.clips), per_shard, format, c.name, tokenizer.fingerprint,
        autoencoder, str(tokenizer.dtype).removeprefix("torch."),
        settings,
    )  # fmt: skip


def autoencoder_mark(weights: Any) -> str:
    """16 hex digits of an autoencoder's weights as they are in its file (float32 or float16):
    latents are training data for a tokenizer with this autoencoder alone."""
    return digest("", {name: w.half() for name, w in weights.items()})


class Machine:
    """A model with decoders beside it, which work on one shard after another."""

    def __init__(
        self, source: Source, plan: Plan, tokenizer: Tokenizer, folder: Path, *,
        workers: int = 1, batch: int = 4,
    ) -> None:  # fmt: skip
        self.source, self.plan, self.tokenizer, self.folder = source, plan, tokenizer, folder
        self.batch = batch
        slots = -(-AHEAD * batch // workers) + 1
        self.decoders = Decoders(plan.settings, workers, slots)
        self.pace = Pace()

    def run(
        self, units: Iterable[int], progress: Callable[[Pace], None] = lambda pace: None
    ) -> Iterator[Shard]:
        """Make these shards; each comes when it is committed, and some clips of the next ones are
        on their way then. `progress` is called after every batch."""
        units = list(units)
        left = {unit: len(self.plan.clips_of(unit)) for unit in units}
        ended: dict[int, list[tuple[int, list[Record] | Failure]]] = defaultdict(list)
        clips = ((n, self.source.clips[n]) for unit in units for n in self.plan.clips_of(unit))
        open_clips: dict[int, _Open] = defaultdict(_Open)
        began = time.monotonic()
        for item in _ahead(_batches(self.decoders.run(clips), self.batch), self._note_wait):
            if isinstance(item, Done):
                numbers = [item.clip]
                if open_clips[item.clip].at(item.attempt):
                    open_clips[item.clip].done = item
            else:
                numbers = sorted({p.clip for p in item.pieces})
                self._encode(item, open_clips)
            for number in numbers:
                if not (clip := open_clips[number]).complete:
                    continue
                del open_clips[number]
                unit = number // self.plan.per_shard
                left[unit] -= 1
                ended[unit].append((number, self._records(number, clip)))
                self.pace.clips += 1
                if not left[unit]:
                    yield self._commit(unit, ended.pop(unit))
            self.pace.seconds = time.monotonic() - began
            progress(self.pace)

    def close(self) -> None:
        self.decoders.close()

    def _note_wait(self, seconds: float) -> None:
        self.pace.waited += seconds

    def _encode(self, batch: _Batch, open_clips: dict[int, _Open]) -> None:
        """The chunks of a batch into their clips. A chunk that cannot be encoded (its numbers run
        over) is its clip's problem alone."""
        pieces = batch.pieces
        self.pace.chunks += len(pieces)
        try:
            found = self._read(batch.frames)
        except VftError:
            found = None
        for i, p in enumerate(pieces):
            clip = open_clips[p.clip]
            if not clip.at(p.attempt):
                continue
            one: dict[str, np.ndarray] = {}
            try:
                read, at = (
                    (found, i) if found is not None else (self._read(batch.frames[i:][:1]), 0)
                )
                # Clones: a view would keep the whole batch.
                one = {k: _packed(k, x[at], self.plan.settings, p.chunk) for k, x in read.items()}
            except VftError as e:
                clip.problem = str(e)
            clip.chunks[p.window, p.chunk] = one
            clip.firsts[p.window] = p.first
            clip.frames[p.window] = max(p.read, clip.frames.get(p.window, 0))

    def _read(self, frames: np.ndarray) -> dict[str, Tensor]:
        count, device = len(frames), self.tokenizer.device
        if device.type != "cpu" and count < self.batch:
            # Always one shape: other kernels would be chosen for another, and ids might differ.
            frames = np.concatenate([frames, *[frames[-1:]] * (self.batch - count)])
        video = to_video(torch.from_numpy(frames), device)
        return {
            name: x[:count]
            for name, x in read_chunks(self.tokenizer, video, self.plan.settings.extras).items()
        }

    def _records(self, number: int, clip: _Open) -> list[Record] | Failure:
        assert clip.done is not None
        reason = clip.done.reason or clip.problem
        if reason is None and not clip.chunks:
            reason = "it has no frames"
        if reason is not None:
            self.pace.failed += 1
            return Failure(number, self.source.clips[number].name, reason)
        s = self.plan.settings
        facts = {
            "tokenizer": self.plan.tokenizer, "fingerprint": self.plan.fingerprint,
            "size": (s.size, s.size), "fit": s.fit, **clip.done.facts,
        }  # fmt: skip
        found = []
        for window in sorted(clip.firsts):
            parts = [clip.chunks[at] for at in sorted(clip.chunks) if at[0] == window]
            whole = {
                name: (np.stack if name == "latents" else np.concatenate)([p[name] for p in parts])
                for name in parts[0]
            }
            ids = whole.pop("ids")
            found.append(
                Record(
                    number, window, clip.firsts[window], self.source.clips[number].caption, ids,
                    {**facts, "frames": clip.frames[window]}, whole,
                )
            )  # fmt: skip
        self.pace.records += len(found)
        return found

    def _commit(self, unit: int, ended: list[tuple[int, list[Record] | Failure]]) -> Shard:
        ended.sort(key=lambda pair: pair[0])
        failures = [what for _, what in ended if isinstance(what, Failure)]
        records = [r for _, what in ended if not isinstance(what, Failure) for r in what]
        return commit(self.folder, self.plan, unit, records, failures)


def _packed(name: str, x: Tensor, s: Settings, chunk: int) -> np.ndarray:
    """One chunk's part of a record. Later chunks begin with a latent frame that the one before
    holds; their latents keep it."""
    if name == "latents":
        return np.array(x.numpy(), np.float16)
    x = x[s.overlap if chunk else 0 :]
    if name == "ids":
        return np.array(x[:, : s.budget].numpy(), np.uint16)
    return np.array(x.numpy(), np.float16)


@dataclass(frozen=True)
class _Batch:
    pieces: list[Piece]
    frames: np.ndarray  # uint8 (B, T, H, W, 3), this process's own


def _batches(found: Iterator[Piece | Done], size: int) -> Iterator[_Batch | Done]:
    """Chunks in batches, copied out of shared memory, ends of clips between them."""
    held: list[Piece] = []
    for item in found:
        if isinstance(item, Done):
            yield item
            continue
        held.append(item)
        if len(held) == size:
            yield _batch(held)
            held = []
    if held:
        yield _batch(held)


def _batch(pieces: list[Piece]) -> _Batch:
    frames = np.stack([p.frames for p in pieces])
    for p in pieces:
        p.release()
    return _Batch(pieces, frames)


def _ahead(
    items: Iterator[_Batch | Done], waited: Callable[[float], None]
) -> Iterator[_Batch | Done]:
    """`items`, made by a thread while the device works on those before; `waited(seconds)` for
    each that was not there in time."""
    ready: queue.Queue[Any] = queue.Queue(maxsize=2)
    stop = threading.Event()

    def put(what: Any) -> None:
        while not stop.is_set():
            with suppress(queue.Full):
                ready.put(what, timeout=0.2)
                return

    def make() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    return
            put(None)
        except BaseException as e:
            put(e)

    thread = threading.Thread(target=make, name="vft-batches", daemon=True)
    thread.start()
    try:
        while True:
            began = time.monotonic()
            item = ready.get()
            waited(time.monotonic() - began)
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join(timeout=5)
