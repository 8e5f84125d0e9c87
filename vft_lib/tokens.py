"""Clips as grids of ids, coarse to fine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import VftError
from .token_file import read_token_file, write_token_file


@dataclass(frozen=True, eq=False)
class Tokens:
    """Clips as ids, coarse to fine: `ids` is int64 `[B,t,k]`, register j of latent frame i at
    `[:, i, j]`. A shorter row is the same clip at a smaller budget.

    `budgets`, where latent frames differ: how many ids each of the t holds, in every clip of the
    batch, k the most of them; in place of those that are not there stands -1. None: all hold k.

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
    budgets: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.ids.ndim != 3 or self.ids.dtype != torch.int64:
            raise VftError(
                f"ids have shape {list(self.ids.shape)} and dtype {self.ids.dtype}; "
                "expected int64 [B,t,k]"
            )
        if self.budgets is not None:
            t, k = self.ids.shape[1:]
            least, most = (f(self.budgets, default=0) for f in (min, max))
            if len(self.budgets) != t or least < 1 or most != k or least == most:
                raise VftError(
                    f"got {len(self.budgets)} budgets from {least} to {most} for {t} latent frames "
                    f"of up to {k} ids; expected one each, 1 to {k}, {k} among them, not all alike"
                )
            if (self.ids != -1).masked_fill(self.there, False).any():
                raise VftError("ids beyond the budget of their latent frame are expected to be -1")

    def __eq__(self, other: object) -> bool:
        """The same ids of the same clip."""
        if not isinstance(other, Tokens):
            return NotImplemented
        return self.facts == other.facts and torch.equal(self.ids, other.ids)

    def __hash__(self) -> int:
        return hash((self.fingerprint, self.frames, self.ids.shape))

    @property
    def budget(self) -> int:
        """Ids per latent frame; where they differ, of those that hold most."""
        return self.ids.shape[2]

    @property
    def rows(self) -> tuple[int, ...]:
        """Ids of each latent frame."""
        return self.budgets or (self.budget,) * self.ids.shape[1]

    @property
    def there(self) -> Tensor:
        """Which ids a latent frame holds: bool `[t,k]`."""
        return torch.arange(self.budget) < torch.tensor(self.rows)[:, None]

    @property
    def count(self) -> int:
        """Ids per clip."""
        return sum(self.rows)

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

    def truncate(self, budget: int | Sequence[int]) -> Tokens:
        """Keep the first `budget` ids of every latent frame (all, of one that holds fewer), or as
        many as a sequence says of each of the t. Nothing is encoded again.

        Raises VftError unless 1 <= budget <= the budget there is: truncation cannot add detail.
        """
        count, most = len(self.rows), self.rows
        if isinstance(budget, int | np.integer):
            each, most = [int(budget)] * count, (self.budget,) * count
        else:
            try:
                each = [index(k) for k in budget]
            except TypeError:
                raise VftError(
                    f"budget is {budget!r}; give a whole number, or one for each latent frame"
                ) from None
        if len(each) != count:
            raise VftError(f"got {len(each)} budgets for {count} latent frames")
        for wanted, there in zip(each, most):
            if not 1 <= wanted <= there:
                raise VftError(
                    f"budget {wanted} is out of range: these tokens hold {there} per latent "
                    f"frame; choose 1 to {there}"
                )
        return self.with_ids(self.ids, list(map(min, each, self.rows)))

    def with_ids(self, ids: Tensor, rows: Sequence[int], **fields: Any) -> Tokens:
        """A copy that holds the first `rows[i]` of `ids[:, i]`, for each latent frame i; `ids` may
        be of another length. `fields` are replaced too."""
        k = max(rows)
        ids = ids[:, :, :k]
        if min(rows) == k:
            return dataclasses.replace(self, ids=ids, budgets=None, **fields)
        beyond = torch.arange(k) >= torch.tensor(rows)[:, None]  # (t, k)
        ids = ids.masked_fill(beyond, -1)
        return dataclasses.replace(self, ids=ids, budgets=tuple(rows), **fields)

    def within(self, *, count: int | None = None, id_bytes: int | None = None) -> int:
        """How many ids a clip may hold: `count`, or as many as fit `id_bytes`, at most those there
        are. Raises VftError if not even one id per latent frame fits."""
        if (count is None) == (id_bytes is None):
            raise VftError("give a number of ids or of bytes, one of them")
        limit = count if count is not None else (id_bytes or 0) // 2
        rows = len(self.rows)
        if limit < rows:
            raise VftError(
                f"one token for each of {rows} latent frames is {rows} tokens, {2 * rows} bytes; "
                + (f"{count} tokens" if count is not None else f"{id_bytes} bytes")
                + " are allowed: raise the limit, or cut the clip in time"
            )
        return min(limit, self.count)

    def budget_within(self, *, count: int | None = None, id_bytes: int | None = None) -> int:
        """The largest budget at which a clip holds at most `count` ids, or at most `id_bytes` bytes
        of them. Raises VftError if not even one id per latent frame fits."""
        limit, total = self.within(count=count, id_bytes=id_bytes), 0
        for k in range(1, self.budget + 1):
            total += sum(k <= row for row in self.rows)
            if total > limit:
                return k - 1
        return self.budget

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
        ids = self.ids[0] if self.budgets is None else self.ids[0][self.there]
        if not 0 <= int(ids.min()) <= int(ids.max()) < 1 << 16:
            raise VftError(f"ids go up to {int(ids.max())}; a token file holds 0 to 65535")
        write_token_file(path, self.facts, ids.numpy().astype(np.uint16), notes)

    @staticmethod
    def load(path: str | Path) -> Tokens:
        """Read a token file. Anything but a sound one raises TokenFileError with one line."""
        facts, ids = read_token_file(Path(path))
        found = torch.from_numpy(ids.astype(np.int64))
        if (budgets := facts["budgets"]) is not None:
            k = max(budgets)
            grid = torch.full((len(budgets), k), -1)
            grid[torch.arange(k) < torch.tensor(budgets)[:, None]] = found
            found = grid
        return Tokens(ids=found[None], **facts)
