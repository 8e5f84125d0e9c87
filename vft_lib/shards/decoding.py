"""Frames of many clips, decoded by processes beside this one and passed on in shared memory.

Each process has a stretch of memory cut into slots of one chunk, and a pipe of its own: no lock is
shared, so one that dies takes nothing along. Its clip is tried once more by a new one, and is then
a failure as any other. They import neither torch nor the model.
"""

from __future__ import annotations

import math
import mmap
import multiprocessing
import os
import signal
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from ..errors import VftError, one_line
from ..video.video_in import probe, read_frames, shown_size
from .plan import Settings
from .sources import Clip

TRIES = 2  # of a clip at which a process died


@dataclass(frozen=True)
class Piece:
    """One chunk of a window: `frames` uint8 `[T,H,W,3]`, the tokenizer's T (a short one is filled
    with its last frame). `read`: frames of the window so far, those that fill it up not counted.
    `attempt`: how often the clip was begun before."""

    clip: int
    attempt: int
    window: int
    first: int
    chunk: int
    read: int
    frames: np.ndarray
    release: Callable[[], None]


@dataclass(frozen=True)
class Done:
    """A clip at its end, of which so many chunks came. `reason`: why it gives no record."""

    clip: int
    attempt: int
    chunks: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None


class Decoders:
    """`count` processes with `slots` chunks of memory each."""

    def __init__(self, settings: Settings, count: int, slots: int) -> None:
        self.settings, self.slots = settings, slots
        self.workers = [_Worker(settings, slots) for _ in range(count)]
        for worker in self.workers:
            worker.wait()
        self.closing = False

    def run(self, clips: Iterator[tuple[int, Clip]]) -> Iterator[Piece | Done]:
        """The chunks of all clips, as they come: those of one clip in order, clips mixed. Waits
        where all slots are taken, so what comes must be released."""
        again: deque[tuple[int, Clip]] = deque()
        attempts: dict[int, int] = {}
        stocked = True

        def give(worker: _Worker) -> None:
            nonlocal stocked
            task = again.popleft() if again else next(clips, None)
            if task is None:
                stocked = False
                return
            worker.give(*task, attempts.get(task[0], 0))

        while True:
            for worker in self.workers:
                if worker.task is None and (stocked or again):
                    give(worker)
            busy = {w.pipe: w for w in self.workers if w.task is not None}
            if not busy:
                return
            for pipe in connection.wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]
                try:
                    said = worker.pipe.recv()
                except (EOFError, OSError):
                    if self.closing:
                        return
                    number, clip = worker.task  # type: ignore[misc]
                    attempts[number] = attempts.get(number, 0) + 1
                    self._replace(worker)
                    if attempts[number] < TRIES:
                        again.append((number, clip))
                    else:
                        why = f"the process that decodes it died ({worker.died()}), twice"
                        yield Done(number, worker.attempt, worker.sent, reason=why)
                    continue
                yield worker.heard(said)

    def _replace(self, worker: _Worker) -> None:
        worker.close()
        self.workers[self.workers.index(worker)] = new = _Worker(self.settings, self.slots)
        new.wait()

    def close(self) -> None:
        self.closing = True
        for worker in self.workers:
            worker.close()


class _Worker:
    def __init__(self, settings: Settings, slots: int) -> None:
        shape = (slots, settings.chunk, settings.size, settings.size, 3)
        self.folder = tempfile.TemporaryDirectory(prefix="vft-clips-", ignore_cleanup_errors=True)
        self.file, self.frames = _shared(shape)
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(
            target=_work, args=(theirs, self.file, self.folder.name, settings, shape), daemon=True
        )
        self.process.start()
        theirs.close()
        self.task: tuple[int, Clip] | None = None
        self.attempt = self.sent = 0

    def wait(self) -> None:
        """Until it has begun. From then on its memory has no name: it goes with the processes,
        however they end. VftError if it did not begin."""
        try:
            self.pipe.recv()
        except (EOFError, OSError):
            self.close()
            raise VftError(
                f"a process that decodes could not be started ({self.died()}); in a program of "
                'your own, call this below `if __name__ == "__main__":`'
            ) from None
        with suppress(OSError):  # Windows keeps names of what is open
            os.unlink(self.file)

    def give(self, number: int, clip: Clip, attempt: int) -> None:
        self.task, self.attempt, self.sent = (number, clip), attempt, 0
        self._send(clip)

    def heard(self, said: Any) -> Piece | Done:
        kind, facts = said
        assert self.task is not None
        number = self.task[0]
        if kind == "piece":
            slot = facts.pop("slot")
            self.sent += 1
            return Piece(number, self.attempt, **facts, frames=self.frames[slot],
                         release=lambda: self._send(slot))  # fmt: skip
        self.task = None
        return Done(number, self.attempt, **facts)

    def _send(self, what: object) -> None:
        with suppress(OSError):  # it died: found out where it is listened to
            self.pipe.send(what)

    def died(self) -> str:
        code = self.process.exitcode
        return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"

    def close(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()
        with suppress(OSError):
            os.unlink(self.file)
        self.folder.cleanup()


def _shared(shape: tuple[int, ...]) -> tuple[str, np.ndarray]:
    """Room for frames in a file that is mapped, in memory where that has the space."""
    size = math.prod(shape)
    for folder in ("/dev/shm", None):
        if folder is None or os.path.isdir(folder):
            number, name = tempfile.mkstemp(prefix="vft-frames-", dir=folder)
            try:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(number, 0, size)  # a container's is often small
                else:
                    os.truncate(number, size)
                return name, _mapped(number, shape)
            except OSError:
                os.unlink(name)
                if folder is None:
                    raise
            finally:
                os.close(number)
    raise AssertionError


def _mapped(number: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(mmap.mmap(number, math.prod(shape)), np.uint8).reshape(shape)


# ------------------------------------------------------------------ in the other process


def _work(
    pipe: Connection, file: str, folder: str, settings: Settings, shape: tuple[int, ...]
) -> None:  # fmt: skip
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the other one's
    with open(file, "rb+") as shared:
        room = _mapped(shared.fileno(), shape)
    free, tasks = deque(range(len(room))), deque[Clip]()
    pipe.send("ready")

    def listen() -> None:
        said = pipe.recv()
        (free if isinstance(said, int) else tasks).append(said)

    with suppress(EOFError, OSError, KeyboardInterrupt):  # the other one has ended
        while True:
            while not tasks:
                listen()
            facts: dict[str, Any] = {"chunks": 0}
            try:
                for piece, frames in chunks_of(tasks.popleft(), settings, facts, folder):
                    while not free:
                        listen()
                    slot = free.popleft()
                    room[slot, : len(frames)] = frames
                    room[slot, len(frames) :] = frames[-1]
                    facts["chunks"] += 1
                    pipe.send(("piece", piece | {"slot": slot}))
            except _Unusable as e:
                facts["reason"] = str(e)
            except (BrokenPipeError, EOFError):
                raise
            except Exception as e:  # of whatever decodes it: one clip, not the run
                facts["reason"] = one_line(f"{type(e).__name__}: {e}")
            pipe.send(("done", facts))


class _Unusable(Exception):
    """Why a clip gives no record."""


def chunks_of(
    clip: Clip, s: Settings, facts: dict[str, Any], folder: str
) -> Iterator[tuple[dict[str, int], list[np.ndarray]]]:
    """A clip -> (its place, up to `s.chunk` frames) of one chunk after another; `facts["facts"]`
    gets what its records say beside their ids. A tar's clip is unpacked in `folder`."""
    if clip.problem is not None:
        raise _Unusable(clip.problem)
    with ExitStack() as stack:
        try:
            path = (
                clip.path if clip.length is None else stack.enter_context(_extracted(clip, folder))
            )
            fps = s.fps or probe(path).fps
            size = (s.size, s.size)
            most = None if clip.end is None else max(1, round((clip.end - clip.start) * fps))
            facts["facts"] = {
                "fps": fps, "source_size": shown_size(path), "source": clip.name,
            }  # fmt: skip
            frames = read_frames(
                path, fps=s.fps, size=size, fit=s.fit, max_frames=most, start=clip.start,
                on_problem=lambda message: None,
            )  # fmt: skip
            stack.callback(frames.close)
            yield from _sliding(frames, s) if s.window else _whole(frames, s)
        except (VftError, OSError) as e:
            reason = str(e) if clip.length is None else str(e).replace(path, clip.name)
            raise _Unusable(one_line(reason)) from None


def _whole(
    frames: Iterator[np.ndarray], s: Settings
) -> Iterator[tuple[dict[str, int], list[np.ndarray]]]:
    """All of a clip as one window."""
    held: list[np.ndarray] = []
    chunk = read = 0
    for frame in frames:
        if len(held) == s.chunk:
            yield {"window": 0, "first": 0, "chunk": chunk, "read": read}, held
            held, chunk = held[s.chunk - s.overlap :], chunk + 1
        held.append(frame)
        read += 1
    if len(held) == s.chunk or not s.exact:
        yield {"window": 0, "first": 0, "chunk": chunk, "read": read}, held
    elif not chunk:
        raise _Unusable(f"it has {read} frames, fewer than one chunk of {s.chunk} (exact)")


def _sliding(
    frames: Iterator[np.ndarray], s: Settings
) -> Iterator[tuple[dict[str, int], list[np.ndarray]]]:
    """Windows of a clip, each with its own chunks."""
    held: deque[np.ndarray] = deque(maxlen=s.window)
    window = 0
    for read, frame in enumerate(frames, 1):
        held.append(frame)
        if read == s.window + window * s.stride:
            yield from _pieces(list(held), window, window * s.stride, s)
            window += 1
    if not window:
        yield from _pieces(list(held), 0, 0, s)


def _pieces(
    frames: list[np.ndarray], window: int, first: int, s: Settings
) -> Iterator[tuple[dict[str, int], list[np.ndarray]]]:
    step = s.chunk - s.overlap
    for chunk, begin in enumerate(range(0, max(1, len(frames) - s.overlap), step)):
        part = frames[begin : begin + s.chunk]
        yield {
            "window": window, "first": first, "chunk": chunk, "read": begin + len(part)
        }, part  # fmt: skip


@contextmanager
def _extracted(clip: Clip, folder: str) -> Iterator[str]:
    """A tar's clip as a file."""
    assert clip.length is not None
    with open(clip.path, "rb") as tar, tempfile.NamedTemporaryFile(dir=folder) as file:
        tar.seek(clip.offset)
        left = clip.length
        while left and (data := tar.read(min(left, 1 << 20))):
            file.write(data)
            left -= len(data)
        file.flush()
        yield file.name
