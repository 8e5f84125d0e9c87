"""Clips as grids of ids, coarse to fine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import VftError
from .token_file import read_token_file, write_token_file


@dataclass(frozen=True)
class Tokens:
    """Clips as ids, coarse to fine: `ids` is int64 `[B,t,k]`, register j of latent frame i at
    `[:, i, j]`. A shorter row is the same clip at a smaller budget.

    `tokenizer` and `fingerprint` say whose ids these are; `frames` is the clip's real length,
    before it was padded to whole chunks; `fps` its frame rate; `size` the model's (h, w) in
    pixels; `source_size` (h, w) of the clip before `fit` brought it to that size. `source` is the
    name of the clip's file as it was: a stranger's may hold anything, `one_line` it to show it.
    """

    ids: Tensor
    tokenizer: str
    fingerprint: str
    frames: int
    fps: float
    size: tuple[int, int]
    source_size: tuple[int, int] | None = None
    fit: str = "crop"
    source: str | None = None

    def __post_init__(self) -> None:
        if self.ids.ndim != 3 or self.ids.dtype != torch.int64:
            raise VftError(
                f"ids have shape {list(self.ids.shape)} and dtype {self.ids.dtype}; "
                "expected int64 [B,t,k]"
            )

    @property
    def budget(self) -> int:
        """Ids per latent frame."""
        return self.ids.shape[2]

    @property
    def count(self) -> int:
        """Ids per clip."""
        return self.ids[0].numel()

    @property
    def id_bytes(self) -> int:
        """Bytes of one clip's ids: two each."""
        return 2 * self.count

    @property
    def seconds(self) -> float:
        """Duration of the real frames."""
        return self.frames / self.fps

    @property
    def facts(self) -> dict[str, Any]:
        """Every field but the ids."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "ids"}

    def truncate(self, budget: int) -> Tokens:
        """Keep the first `budget` ids of every latent frame; nothing is encoded again.

        Raises VftError unless 1 <= budget <= the budget there is: truncation cannot add detail.
        """
        if not 1 <= budget <= self.budget:
            raise VftError(
                f"budget {budget} is out of range: these tokens hold {self.budget} per latent "
                f"frame; choose 1 to {self.budget}"
            )
        return dataclasses.replace(self, ids=self.ids[:, :, :budget])

    def budget_within(self, *, count: int | None = None, id_bytes: int | None = None) -> int:
        """The largest budget whose ids are at most `count` a clip, or at most `id_bytes` bytes.
        Raises VftError if not even one id per latent frame fits."""
        if (count is None) == (id_bytes is None):
            raise VftError("give a number of ids or of bytes, one of them")
        limit = count if count is not None else (id_bytes or 0) // 2
        rows = self.ids.shape[1]
        if limit < rows:
            raise VftError(
                f"one id for each of {rows} latent frames is {rows} ids, {2 * rows} bytes; "
                f"{limit} are allowed: raise the limit, or cut the clip in time"
            )
        return min(limit // rows, self.budget)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, clip: int) -> Tokens:
        """One clip of a batch, still with its batch axis."""
        return dataclasses.replace(self, ids=self.ids[clip][None])

    def save(self, path: str | Path, notes: Mapping[str, str] | None = None) -> None:
        """Write one clip's tokens, atomically. `notes` are kept beside the metadata, and not read
        back by `load`: a ComfyUI workflow, for one."""
        if len(self) != 1:
            raise VftError(f"a token file holds one clip, got {len(self)}; save tokens[i] each")
        if not 0 <= int(self.ids.min()) <= int(self.ids.max()) < 1 << 16:
            raise VftError(f"ids go up to {int(self.ids.max())}; a token file holds 0 to 65535")
        write_token_file(path, self.facts, self.ids[0].numpy().astype(np.uint16), notes)

    @staticmethod
    def load(path: str | Path) -> Tokens:
        """Read a token file. Anything but a sound one raises TokenFileError with one line."""
        facts, ids = read_token_file(Path(path))
        return Tokens(ids=torch.from_numpy(ids.astype(np.int64))[None], **facts)
