"""The `.vft` file: a grid of ids and what they are of. Needs no torch.

A safetensors container with a tensor `ids` and one metadata entry `vft` with JSON. Version 1, where
all latent frames hold as many: `ids` is `U16` `[t,k]`. Version 2: a tensor `budgets`, `U16` `[t]`,
says how many each holds, and `ids` `U16` `[n]` are those of one latent frame after the other.
21 latent frames at 32 ids each are 1,344 bytes of ids and some 400 of header.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save

from .config.fields import MAX_TEXT
from .config.tokenizer import MAX_FPS, MAX_REGISTERS, MIN_FPS
from .errors import TokenFileError, VftError, printable
from .files.atomic import write_bytes
from .files.untrusted import HEADER_BYTES, open_tensors, read_json

VERSIONS = (1, 2)
MAX_FILE_BYTES = 1 << 28  # 256 MiB: two weeks of video at 32 ids per latent frame
MAX_FRAMES = 1 << 31
MAX_SIDE = 1 << 16  # pixels
MAX_GRID = 1 << 22  # latent frames times the largest budget: 2 hours of 8 frames a second at 256
MAX_SPREAD = 4  # or, of a longer clip, times the ids there are: a small file takes little memory


def write_token_file(
    path: str | Path, facts: Mapping[str, Any], ids: np.ndarray, notes: Mapping[str, str] | None
) -> None:
    """Write ids, uint16, with the fields of `Tokens` beside them, atomically: `[t,k]`, or `[n]`
    where `facts["budgets"]` says how many each latent frame holds. `notes` are kept in the header
    too. VftError for what would not be read again."""
    budgets = facts.get("budgets")
    meta = {"version": VERSIONS[budgets is not None]}
    meta |= {k: v for k, v in facts.items() if v is not None and k != "budgets"}
    _checked(json.loads(json.dumps(meta)), Path(path))
    tensors = {"ids": ids}
    if budgets is not None:
        tensors["budgets"] = np.array(budgets, np.int64)
        if problem := _uneven(tensors["budgets"], ids.size):
            raise VftError(f"{path}: {problem}; cut the clip in time, or choose a smaller budget")
        tensors["budgets"] = tensors["budgets"].astype(np.uint16)
    header = {**(notes or {}), "vft": json.dumps(meta, separators=(",", ":"))}
    size = len(json.dumps({"__metadata__": header}, ensure_ascii=False).encode()) + 256
    if size > HEADER_BYTES:
        raise VftError(f"{path}: the notes are too large to be read again; save it without them")
    write_bytes(path, save(tensors, header))


def read_token_file(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """The fields of `Tokens` but for the ids, checked, and the ids, uint16: `[t,k]`, or `[n]` where
    `budgets` is not None. Anything but a sound file raises TokenFileError with one line."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TokenFileError(f"{path} has {path.stat().st_size} bytes: no token file")
        with open_tensors(path, "np") as f:
            meta = read_json((f.metadata() or {}).get("vft", "null"))
            if not isinstance(meta, dict) or "version" not in meta:
                raise TokenFileError(f"{path} is a safetensors file, but not a token file")
            version = meta["version"]
            if version not in VERSIONS or type(version) is not int:
                raise TokenFileError(
                    f"{path} is a token file of version {str(version)[:20]!r}; this program reads "
                    f"versions {VERSIONS[0]} to {VERSIONS[-1]}: update it"
                )
            names = ["ids"] if version == 1 else ["budgets", "ids"]
            if sorted(f.keys()) != names:
                wanted = " and ".join(map(repr, names))
                raise TokenFileError(f"{path} holds other tensors than {wanted}")
            for name, form in zip(names, ("[t,k]",) if version == 1 else ("[t]", "[n]")):
                kind, shape = f.get_slice(name).get_dtype(), f.get_slice(name).get_shape()
                if kind != "U16" or len(shape) != form.count(",") + 1 or 0 in shape:
                    raise TokenFileError(f"{path}: {name} are {kind} {shape}, expected U16 {form}")
            facts = _checked(meta, path)
            if version == 1:
                return facts, f.get_tensor("ids")
            budgets = f.get_tensor("budgets").astype(np.int64)
            if problem := _uneven(budgets, f.get_slice("ids").get_shape()[0]):
                raise TokenFileError(f"{path}: {problem}")
            return facts | {"budgets": tuple(budgets.tolist())}, f.get_tensor("ids")
    except FileNotFoundError:
        raise TokenFileError(f"{path} does not exist") from None
    except VftError:
        raise
    except (OSError, SafetensorError, ValueError) as e:
        raise TokenFileError(f"{path} is not a readable token file: {e}") from None


def _uneven(budgets: np.ndarray, count: int) -> str:
    """What is wrong with budgets, int64 `[t]`, of a file with that many ids; "" if nothing."""
    least, most, total = int(budgets.min()), int(budgets.max()), int(budgets.sum())
    if not 1 <= least < most <= MAX_REGISTERS:
        return f"budgets are {least} to {most}; expected 1 to {MAX_REGISTERS}, not all alike"
    if total != count:
        return f"{count} ids, but its budgets are of {total}"
    if len(budgets) * most > max(MAX_GRID, MAX_SPREAD * count):
        return f"{count} ids spread over {len(budgets)} latent frames of up to {most}: too thin"
    return ""


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
        "fit": meta["fit"], "source": text("source", True), "budgets": None,
    }  # fmt: skip
