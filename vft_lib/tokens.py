"""The token grid and its file.

A `.vft` file is a safetensors container: one tensor `ids` (`U16`, `[t,k]`) and one metadata entry
`vft` with JSON. 21 latent frames at 32 ids each are 1,344 bytes of ids and some 400 of header.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import save
from torch import Tensor

from .config.fields import MAX_TEXT
from .config.tokenizer import MAX_FPS, MIN_FPS
from .errors import TokenFileError, VftError, printable
from .files.atomic import write_bytes
from .files.untrusted import open_tensors, read_json

VERSION = 1
MAX_FILE_BYTES = 1 << 28  # 256 MiB: two weeks of video at 32 ids per latent frame
MAX_FRAMES = 1 << 31
MAX_SIDE = 1 << 16  # pixels


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
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del fields["ids"]
        meta = {"version": VERSION} | {k: v for k, v in fields.items() if v is not None}
        ids = self.ids[0].numpy().astype(np.uint16)
        header = {**(notes or {}), "vft": json.dumps(meta, separators=(",", ":"))}
        write_bytes(path, save({"ids": ids}, header))

    @staticmethod
    def load(path: str | Path) -> Tokens:
        """Read a token file. Anything but a sound one raises TokenFileError with one line."""
        path = Path(path)
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise TokenFileError(f"{path} has {path.stat().st_size} bytes: no token file")
            with open_tensors(path, "np") as f:
                meta = read_json((f.metadata() or {}).get("vft", "null"))
                if not isinstance(meta, dict) or "version" not in meta:
                    raise TokenFileError(f"{path} is a safetensors file, but not a token file")
                if meta["version"] != VERSION:
                    raise TokenFileError(
                        f"{path} is a token file of version {str(meta['version'])[:20]!r}; this "
                        f"program reads version {VERSION}: update it"
                    )
                if list(f.keys()) != ["ids"]:
                    raise TokenFileError(f"{path} holds other tensors than the one named 'ids'")
                kind, shape = f.get_slice("ids").get_dtype(), f.get_slice("ids").get_shape()
                if kind != "U16" or len(shape) != 2 or 0 in shape:
                    raise TokenFileError(f"{path}: ids are {kind} {shape}, expected U16 [t,k]")
                ids = torch.from_numpy(f.get_tensor("ids").astype(np.int64))[None]
        except FileNotFoundError:
            raise TokenFileError(f"{path} does not exist") from None
        except VftError:
            raise
        except (OSError, SafetensorError, ValueError) as e:
            raise TokenFileError(f"{path} is not a readable token file: {e}") from None
        return Tokens(ids=ids, **_checked(meta, path))


def _checked(meta: dict[str, Any], path: Path) -> dict[str, Any]:
    """The metadata fields, typed and in range; unknown entries are ignored (newer minor fields)."""

    def fail(name: str) -> TokenFileError:
        return TokenFileError(f"{path}: metadata entry {name!r} is {str(meta.get(name))[:80]!r}")

    def text(name: str, optional: bool = False) -> str | None:
        value = meta.get(name)
        if value is None and optional:
            return None
        if isinstance(value, str) and len(value) <= MAX_TEXT and (optional or printable(value)):
            return value
        raise fail(name)

    def pair(name: str, optional: bool = False) -> tuple[int, int] | None:
        value = meta.get(name)
        if value is None and optional:
            return None
        if (
            isinstance(value, list)
            and len(value) == 2
            and all(type(v) is int and 0 < v <= MAX_SIDE for v in value)
        ):
            return value[0], value[1]
        raise fail(name)

    frames, fps = meta.get("frames"), meta.get("fps")
    if type(frames) is not int or not 1 <= frames <= MAX_FRAMES:
        raise fail("frames")
    if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not MIN_FPS <= fps <= MAX_FPS:
        raise fail("fps")
    if meta.get("fit") not in ("crop", "pad", "stretch"):
        raise fail("fit")
    return {
        "tokenizer": text("tokenizer"), "fingerprint": text("fingerprint"), "frames": frames,
        "fps": float(fps), "size": pair("size"), "source_size": pair("source_size", True),
        "fit": meta["fit"], "source": text("source", True),
    }  # fmt: skip
