"""Work in parts: chunks of a clip, less at once where memory runs out, progress of each as that of
all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Progress = Callable[[int, int], None]
Estimate = Callable[[Tensor], None]

log = logging.getLogger(__name__)


def in_parts(
    work: Callable[[int, int, bool], Tensor], count: int, at_once: int, tight: bool = False
) -> Tensor:
    """`work(begin, end, tight)` -> `[end - begin, ...]` over all of `count` clips, `at_once` of
    them at a time, concatenated.

    Where memory runs out, half as many are tried from there on, and one clip alone with `tight`
    (which may be asked for from the start). What then still fails is raised as it came. Each retry
    is logged as a warning.
    """
    parts: list[Tensor] = []
    begin = 0
    while begin < count:
        end = min(begin + at_once, count)
        try:
            parts.append(work(begin, end, tight))
            begin = end
            continue
        except (MemoryError, RuntimeError) as e:
            if not out_of_memory(e) or (end - begin == 1 and tight):
                raise
        # Here the traceback is gone, and with it the tensors that it held.
        if end - begin == 1:
            tight = True
            log.warning("out of memory: trying again with less at once")
        else:
            at_once = (end - begin) // 2
            log.warning(
                "out of memory with %d clips at once: trying again with %d", end - begin, at_once
            )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def out_of_memory(e: BaseException) -> bool:
    """Whether it says that memory ran out: Python's, NumPy's, or torch's on any device, whose
    allocator on the CPU has no exception of its own."""
    words = ("out of memory", "allocate memory", "not enough memory", "bad_alloc")
    return isinstance(e, MemoryError) or (
        isinstance(e, RuntimeError) and any(w in str(e) for w in words)
    )


def part_of(progress: Progress | None, i: int, count: int) -> Progress | None:
    """Progress of part i of `count` equal ones as that of the whole."""
    if progress is None:
        return None
    return lambda done, total: progress(i * total + done, count * total)


def counted(
    progress: Progress | None, i: int, chunks: int, batch: int
) -> Callable[[int, int], Progress | None]:
    """(a, b) -> the progress of clips a to b of chunk i as that of all clips and chunks."""

    def of(a: int, b: int) -> Progress | None:
        if progress is None:
            return None
        return lambda done, total: progress(
            i * total + (a * total + (b - a) * done) // batch, chunks * total
        )

    return of


def windows(frames: Iterable[Tensor], size: int, overlap: int) -> Iterator[list[Tensor]]:
    """Windows of `size` frames, each beginning with the last `overlap` of the one before; the last
    may be shorter."""
    window: list[Tensor] = []
    fresh = 0
    for frame in frames:
        if len(window) == size:
            yield window
            window, fresh = window[size - overlap :], 0
        window.append(frame)
        fresh += 1
    if fresh:
        yield window


@dataclass(frozen=True)
class Chunk:
    """What the clips of a batch become a chunk from: ids `[B,t,k]`, noise `[B,C,t,h,w]`, given
    frames `[B,3,T,H,W]`, budgets `[B,t]`."""

    ids: Tensor
    noise: Tensor
    given: Tensor | None
    keep: Tensor | None

    def __getitem__(self, clips: slice) -> Chunk:
        parts = (self.ids, self.noise, self.given, self.keep)
        return Chunk(*(None if x is None else x[clips] for x in parts))  # type: ignore[arg-type]
