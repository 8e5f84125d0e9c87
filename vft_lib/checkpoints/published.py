"""Published files as plain data: their config, and their tensors under our names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..files.tensor_files import Source
from ..files.untrusted import TEXT_CHARS, read_json, read_literal

HEADER_CHARS = 1 << 18  # of the texts in a single file's header; a published config has 10,000


def read_config(source: Source, known: frozenset[str]) -> dict[str, Any]:
    """`config.json` of a folder, or the entries of a single file's header (in which one of `known`
    must stand), as plain data."""
    file = source.path / "config.json"
    if source.path.is_dir():
        if not file.is_file() or file.stat().st_size > TEXT_CHARS:
            raise CheckpointError(f"{file} is missing, or no config: the folder holds no model")
        return parse_config(file.read_bytes(), str(file))
    if sum(map(len, source.metadata.values())) > HEADER_CHARS:
        raise CheckpointError(f"{source.path}: its header's texts exceed {HEADER_CHARS} characters")
    entries = {k: read_literal(v) for k, v in source.metadata.items()}
    if not entries.keys() & known:
        raise CheckpointError(
            f"{source.path} is neither a file of ours nor a published one: its header holds no "
            "config (a published folder is given as the folder, not as the file in it)"
        )
    entries.pop("format", None)  # "pt": whose tensors they are, written by most tools
    return entries


def parse_config(text: bytes | str, where: str) -> dict[str, Any]:
    """JSON -> dict, or CheckpointError."""
    try:
        data = read_json(text)
    except ValueError as e:
        raise CheckpointError(f"{where} is not JSON: {e}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{where} holds a {type(data).__name__}; expected an object")
    return data


class Renamed(Mapping[str, Tensor]):
    """Published tensors under our names, read when asked for; reshaped where `shapes` says: the
    autoencoder's 1 x 1 and temporal kernels are stored with axes of length one that ours lack."""

    def __init__(
        self, places: dict[str, tuple[Source, str]], shapes: Mapping[str, torch.Size] | None = None
    ) -> None:
        self.places, self.shapes = places, shapes

    def __getitem__(self, name: str) -> Tensor:
        source, key = self.places[name]
        return source[key] if self.shapes is None else source[key].reshape(self.shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)
