"""Work in parts: chunks of a clip, less at once where memory runs out, in float32 where a smaller
format runs over, progress of each as that of all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config.tokenizer import TokenizerConfig
from ..errors import VftError
from ..transformer.offload import offloaded

Progress = Callable[[int, int], None]
Estimate = Callable[[Tensor], None]

log = logging.getLogger(__name__)


Work = Callable[[int, int, bool], Tensor]
"""(begin, end, tight) -> what those clips of a batch become, `[end - begin, ...]`."""


def in_parts(work: Work, count: int, at_once: int, tight: bool = False) -> Tensor:
    """`work` over all of `count` clips, `at_once` of them at a time, concatenated.

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
    allocator on the CPU has no exception of its own; nor have the libraries of a GPU."""
    words = (
        "out of memory", "allocate memory", "not enough memory", "bad_alloc", "ALLOC_FAILED",
        "unable to find an engine",  # cuDNN, where no kernel's workspace fits
    )  # fmt: skip
    return isinstance(e, MemoryError) or (
        isinstance(e, RuntimeError) and any(w in str(e) for w in words)
    )


def finite(model: nn.Module, dtype: torch.dtype, what: str, work: Work) -> Work:
    """`work` of `model` in `dtype`, whose results are numbers: where one holds NaN or infinity it
    is computed once more in float32, which is logged as a warning. VftError, with `what` and the
    remedy, if that does not help, or if there is no memory for it."""

    def checked(begin: int, end: int, tight: bool) -> Tensor:
        found = work(begin, end, tight)
        if bool(found.isfinite().all()):
            return found
        name = str(dtype).removeprefix("torch.")
        broken = f"{what} holds NaN or infinity in {name}"
        if dtype != torch.float32:
            log.warning("%s: computing it once more in float32", broken)
            try:
                with in_float32(model):
                    found = work(begin, end, tight)
            except (MemoryError, RuntimeError) as e:
                if not out_of_memory(e) or end - begin > 1 or not tight:
                    raise
                raise VftError(
                    f"{broken}, and memory does not suffice for float32: choose bfloat16 in place "
                    "of float16, or the CPU (--dtype, --device; in ComfyUI, in the loader)"
                ) from None
            if bool(found.isfinite().all()):
                return found
            broken += " and in float32"
        raise VftError(
            f"{broken}: choose a lower guidance; if it stays, the model's file is damaged: fetch "
            "or convert it again"
        )

    return checked


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """The weights of `model` in float32, beside which those that it had are kept, and come back
    after the block. What is stored in eight bits stays so: it is computed with in the dtype of what
    comes in."""
    away = [p for m in offloaded(model).values() for p in m.layer.parameters()]
    tensors = [*model.parameters(), *model.buffers(), *away]
    kept = [(t, t.data) for t in tensors if t.dtype in (torch.float16, torch.bfloat16)]
    try:
        for t, data in kept:
            t.data = data.float()
        yield
    finally:
        for t, data in kept:
            t.data = data


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


def rows_of(c: TokenizerConfig, ids: Tensor) -> list[Tensor]:
    """The ids of each chunk `[B,t,k]`, or budgets `[B,t]`. A frame that chunks share is there once:
    its ids are made anew from the frame itself, and those of the next row hold their place."""
    t, overlap = c.token_frames, c.overlap
    later = [ids[:, i : i + t - overlap] for i in range(t, ids.shape[1], t - overlap)]
    return [ids[:, :t], *(torch.cat([x[:, :overlap], x], dim=1) for x in later)]


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
