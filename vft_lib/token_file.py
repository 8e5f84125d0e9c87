"""The `.vft` file: a grid of ids and what they are of. Needs no torch.

A safetensors container with one tensor `ids` (`U16`, `[t,k]`) and one metadata entry `vft` with
JSON. 21 latent frames at 32 ids each are 1,344 bytes of ids and some 400 of header.
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
from .config.tokenizer import MAX_FPS, MIN_FPS
from .errors import TokenFileError, VftError, printable
from .files.atomic import write_bytes
from .files.untrusted import open_tensors, read_json

VERSION = 1
MAX_FILE_BYTES = 1 << 28  # 256 MiB: two weeks of video at 32 ids per latent frame
MAX_FRAMES = 1 << 31
MAX_SIDE = 1 << 16  # pixels


def write_token_file(
    path: str | Path, facts: Mapping[str, Any], ids: np.ndarray, notes: Mapping[str, str] | None
) -> None:
    """Write ids, uint16 `[t,k]`, with the fields of `Tokens` beside them, atomically. `notes` are
    kept in the header too."""
    meta = {"version": VERSION} | {k: v for k, v in facts.items() if v is not None}
    header = {**(notes or {}), "vft": json.dumps(meta, separators=(",", ":"))}
    write_bytes(path, save({"ids": ids}, header))


def read_token_file(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """The fields of `Tokens` but for the ids, checked, and the ids, uint16 `[t,k]`. Anything but a
    sound file raises TokenFileError with one line."""
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
            return _checked(meta, path), f.get_tensor("ids")
    except FileNotFoundError:
        raise TokenFileError(f"{path} does not exist") from None
    except VftError:
        raise
    except (OSError, SafetensorError, ValueError) as e:
        raise TokenFileError(f"{path} is not a readable token file: {e}") from None


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
