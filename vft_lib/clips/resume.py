"""What a decode has finished, kept beside its output until that is complete: OUT.chunks.

One file a chunk, `00000.safetensors` and on: its frames, and the last one as the model gave it,
which the next chunk begins with. Each carries a key over all that determines the result, so that
chunks of other tokens, models or settings are never mixed in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import VftError
from ..files.atomic import alone, write_bytes

Say = Callable[[str], None]


@contextmanager
def chunks_beside(out: Path, facts: Mapping[str, Any], go_on: bool, say: Say) -> Iterator[Chunks]:
    """The chunks of the decode to `out` that `facts` determine. Those that an interrupted one left
    are gone on with if `go_on` says so, else discarded, and `say` is told. Two processes that
    decode to one file take turns. On success nothing is left; on an exception the finished chunks
    are. VftError if they are to be gone on with, but follow from other facts."""
    folder = out.with_name(out.name + ".chunks")
    if folder.exists() and not folder.is_dir():
        raise VftError(f"{folder} is in the way: finished chunks are kept in a folder of that name")
    with alone(folder, lambda: say(f"another process is decoding to {out}; waiting for it")):
        chunks = Chunks(folder, facts)
        there = len(chunks.files())
        if go_on and there and not chunks.count:
            raise VftError(
                f"the {there} chunks in {folder} are of other tokens, models or settings: give "
                "those of the interrupted decode, or decode without --resume to begin anew"
            )
        if go_on and there:
            say(f"going on after the {chunks.count} chunks in {folder}")
        elif there:
            chunks.count = 0
            say(f"beginning anew, not asked to --resume: {there} chunks in {folder} are discarded")
        chunks.discard(chunks.count)
        try:
            yield chunks
        except BaseException:
            if chunks.count:
                say(f"{chunks.count} finished chunks are kept in {folder}: decode with --resume")
            else:
                chunks.remove()
            raise
        chunks.remove()


class Chunks:
    """The first `count` chunks, as files in `folder`."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        text = json.dumps(facts, sort_keys=True, default=str)
        self.folder, self.key = folder, hashlib.sha256(text.encode()).hexdigest()
        self.count = 0
        while self._is_mine(self._file(self.count)):
            self.count += 1

    def __iter__(self) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Frames uint8 `[T,H,W,3]`, and the last as float32 `[1,3,H,W]`, of each chunk."""
        for i in range(self.count):
            with safe_open(self._file(i), "pt") as f:
                yield f.get_tensor("frames").numpy(), f.get_tensor("last")

    def add(self, frames: np.ndarray, last: Tensor) -> None:
        """Keep one more chunk."""
        data = {"frames": torch.from_numpy(frames), "last": last.contiguous()}
        write_bytes(self._file(self.count), save(data, {"key": self.key}))
        self.count += 1

    def discard(self, first: int) -> None:
        """Remove the chunks from `first` on, and what was being written."""
        unfinished = self.folder.glob(".*.tmp.safetensors")
        for file in [*self.files()[first:], *unfinished]:
            file.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove all, and the folder unless someone else keeps something there."""
        self.discard(0)
        with suppress(OSError):
            self.folder.rmdir()

    @property
    def size(self) -> int:
        """Bytes of the files that are there."""
        return sum(f.stat().st_size for f in self.files())

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]" * 5 + ".safetensors"))

    def _file(self, i: int) -> Path:
        return self.folder / f"{i:05}.safetensors"

    def _is_mine(self, file: Path) -> bool:
        try:
            with safe_open(file, "pt") as f:
                return (f.metadata() or {}).get("key") == self.key
        except (OSError, SafetensorError):
            return False
