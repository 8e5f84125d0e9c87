"""What is known of each clip, on disk: a small safetensors file each, written whole or not at all.

A killed run goes on where it stopped, and processes that share a folder share the work. A folder is
named by everything that its numbers follow from; a clip that has changed is computed anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from ..files.atomic import write_bytes
from ..files.untrusted import open_tensors


class Store:
    """Records of one kind in `folder`: tensors by name, for each clip. `facts`: what they all
    follow from."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        text = json.dumps(facts, indent=1, sort_keys=True)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "facts.json").exists():
            write_bytes(self.folder / "facts.json", text.encode())

    def has(self, clip: str, mark: str) -> bool:
        """Whether there is a whole record of the clip as it is now."""
        try:
            with open_tensors(self._path(clip), "pt") as f:
                return (f.metadata() or {}) == {"clip": clip, "mark": mark}
        except (OSError, ValueError, SafetensorError):
            return False

    def missing(self, clips: Sequence[str], marks: Mapping[str, str]) -> list[str]:
        return [clip for clip in clips if not self.has(clip, marks[clip])]

    def put(self, clip: str, mark: str, record: Mapping[str, Tensor]) -> None:
        """Keep a clip's record, float tensors of at least one axis."""
        tensors = {k: v.contiguous().cpu() for k, v in record.items()}
        write_bytes(self._path(clip), save(tensors, {"clip": clip, "mark": mark}))

    def get(self, clip: str, name: str) -> Tensor:
        with open_tensors(self._path(clip), "pt") as f:
            return f.get_tensor(name)

    def names(self, clip: str) -> set[str]:
        with open_tensors(self._path(clip), "pt") as f:
            return set(f.keys())

    def names_of(self, clips: Sequence[str]) -> tuple[set[str], set[str]]:
        """What the records of all of them hold, and what those of some hold."""
        each = [self.names(clip) for clip in clips]
        return set.intersection(*each), set.union(*each)

    def values(self, clips: Sequence[str], name: str) -> list[float]:
        """One number of each clip."""
        return [float(self.get(clip, name)) for clip in clips]

    def rows(self, clips: Sequence[str], name: str) -> list[Tensor]:
        """Features `[T,D]` float32 of each clip, in a file without a name that goes with them:
        memory holds what is being read."""
        first = self.get(clips[0], name)
        shape = (len(clips), *first.shape)
        with tempfile.TemporaryFile(dir=self.folder) as f:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, later a crash
                os.posix_fallocate(f.fileno(), 0, 4 * math.prod(shape))
            kept = np.memmap(f, np.float32, "w+", shape=shape)
        for i, clip in enumerate(clips):
            kept[i] = self.get(clip, name).numpy()
        return list(torch.from_numpy(kept))

    def _path(self, clip: str) -> Path:
        name = hashlib.sha256(clip.encode("utf-8", "surrogateescape")).hexdigest()[:24]
        return self.folder / f"{name}.safetensors"
