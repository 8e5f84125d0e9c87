"""Safetensors files read and written one tensor at a time: a 10 GB model is never held twice."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from .untrusted import open_tensors

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class Source(Mapping[str, Tensor]):
    """The tensors of one or more safetensors files: names, shapes and metadata are known at once,
    a tensor is read when it is asked for."""

    def __init__(self, path: Path, files: list[Path]) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}
        self.shapes: dict[str, list[int]] = {}
        self.dtypes: dict[str, str] = {}
        self.size = 0
        self._open = {}
        for file in files:
            try:
                handle = open_tensors(file, "pt")
                self.metadata |= handle.metadata() or {}
                self.size += file.stat().st_size
                for name in handle.keys():  # noqa: SIM118  (no mapping)
                    if name in self.shapes:
                        raise CheckpointError(f"{path}: tensor {name!r} is in two of its files")
                    piece = handle.get_slice(name)
                    self.dtypes[name] = piece.get_dtype()
                    self.shapes[name] = list(piece.get_shape())
                    self._open[name] = handle
            except CheckpointError:
                raise
            except (OSError, ValueError) as e:
                raise CheckpointError(f"{file} is not a readable safetensors file: {e}") from None

    @staticmethod
    def open(path: str | Path) -> Source:
        """A safetensors file, or a folder of them."""
        path = Path(path)
        if not path.exists():
            raise CheckpointError(f"{path} does not exist; give a safetensors file or a folder")
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not files:
            raise CheckpointError(f"the folder {path} holds no .safetensors file")
        return Source(path, files)

    def bytes_in(self, dtype: torch.dtype | None) -> int:
        """What the tensors take in `dtype` (None: as they are)."""
        if dtype is None:
            return self.size
        return dtype.itemsize * sum(math.prod(shape) for shape in self.shapes.values())

    def check_dtypes(self) -> None:
        """CheckpointError unless all tensors are of a type that weights come in."""
        for name, dtype in self.dtypes.items():
            if dtype not in DTYPES.values():
                known = ", ".join(DTYPES.values())
                raise CheckpointError(
                    f"{self.path}: tensor {name!r} is {dtype}; expected one of {known}"
                )

    def __getitem__(self, name: str) -> Tensor:
        return self._open[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


class Cast(Mapping[str, Tensor]):
    """Weights cast one at a time, when they are asked for: a large model is never held twice."""

    def __init__(self, weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
        self.weights, self.dtype = weights, dtype
        self._facts: dict[str, tuple[int, str, list[int]]] = {}

    def __getitem__(self, name: str) -> Tensor:
        w = self.weights[name].detach().cpu().to(self.dtype).contiguous()
        self._facts[name] = w.nbytes, DTYPES[w.dtype], list(w.shape)
        return w

    def facts(self, name: str) -> tuple[int, str, list[int]]:
        """A weight's bytes, dtype and shape; one that has been asked for is not read again."""
        if name not in self._facts:
            self[name]
        return self._facts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


class Gathered(Mapping[str, Tensor]):
    """Tensors out of several files or networks: `places` says for each name whose it is."""

    def __init__(self, places: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.places = places

    def __getitem__(self, name: str) -> Tensor:
        return self.places[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def digest(text: str, weights: Mapping[str, Tensor], names: Iterable[str] | None = None) -> str:
    """16 hex digits over a text and every weight (or those of `names`), read one at a time."""
    return digests({text}, weights, names)[text]


def digests(
    texts: Set[str], weights: Mapping[str, Tensor], names: Iterable[str] | None = None
) -> dict[str, str]:
    """For each text its :func:`digest`; the weights are read once."""
    hashes = {text: hashlib.sha256(text.encode()) for text in texts}
    for name in sorted(weights if names is None else names):
        w = weights[name]
        data = _bytes(w)
        for h in hashes.values():
            h.update(f"{name} {w.dtype} {list(w.shape)}".encode())
            h.update(data)
    return {text: h.hexdigest()[:16] for text, h in hashes.items()}


def write_safetensors(path: Path, weights: Cast, metadata: dict[str, str]) -> None:
    """safetensors.torch.save_file for weights that are read one at a time, which also leaves no
    temporary file of its own behind when it is killed. The format: the
    header's length as eight bytes, little-endian, the header in JSON, then the data."""
    # Four-byte numbers first: every tensor then starts at a multiple of its item size.
    order = sorted(weights, key=lambda name: (weights.facts(name)[1] != "F32", name))
    entries: dict[str, object] = {"__metadata__": metadata}
    start = 0
    for name in order:
        count, dtype, shape = weights.facts(name)
        end = start + count
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        start = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as f:
        f.write(len(header).to_bytes(8, "little") + header)
        for name in order:
            f.write(_bytes(weights[name]))


def _bytes(w: Tensor) -> memoryview:
    data: Any = w.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return memoryview(data)
