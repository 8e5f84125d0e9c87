"""The way in for what strangers wrote: safetensors files and the texts in their headers.

Limits are far above what real files have, and low enough that a file of a few kilobytes cannot
make us work or allocate for long. Every reader of a format of ours or of a published one comes
through here; SECURITY.md says what is promised.
"""

from __future__ import annotations

import ast
import json
import math
import warnings
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from ..errors import printable

POINTER = b"version https://git-lfs"  # how such files begin
HEADER_BYTES = 1 << 23  # of a safetensors file: 10 GB of published weights have 0.3 MB
NAME_CHARS = 256  # of a tensor's name; published ones have up to 100
AXES = 8  # of a tensor
TEXT_CHARS = 1 << 20  # of one JSON text: the largest is a prior's config with its vocabulary
LITERAL_CHARS = 1 << 15  # of one Python or YAML text: a published config has 9,000
VALUES = 1 << 18  # in one text, however they are shared
DEPTH = 32  # of nesting; a published config has 7


def open_tensors(path: Path, framework: str) -> Any:
    """`safe_open` for a file that may be anything. OSError or ValueError, with a reason."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")
    with path.open("rb") as f:
        if f.read(len(POINTER)) == POINTER:
            why = "it is a Git LFS pointer, which stands for the file"
            raise ValueError(f"{why}; run `git lfs pull` in its folder")
        f.seek(0)
        size = int.from_bytes(f.read(8), "little")
        if size > HEADER_BYTES:
            raise ValueError(f"its header has {size} bytes; expected at most {HEADER_BYTES}")
        header = f.read(size).decode("utf-8")
    # Read by the library too, which takes the last of two entries of one name.
    for name, entry in _object(_json(header)).items():
        if len(name) > NAME_CHARS or not printable(name):
            raise ValueError(f"a tensor is called {name[:NAME_CHARS]!r}")
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if isinstance(shape, list) and len(shape) > AXES:
            raise ValueError(f"tensor {name!r} has more than {AXES} axes")
    try:
        return safe_open(path, framework)
    except SafetensorError as e:
        raise ValueError(str(e)) from None


def read_json(text: str | bytes) -> Any:
    """JSON -> :func:`plain` data; ValueError, with a reason, for anything else."""
    if len(text) > TEXT_CHARS:
        raise ValueError(f"it has {len(text)} characters; expected at most {TEXT_CHARS}")
    return plain(_json(text if isinstance(text, str) else text.decode("utf-8")))


def read_literal(text: str) -> Any:
    """JSON, a Python literal or YAML, whichever it is -> :func:`plain` data; else the text."""
    try:
        return read_json(text)
    except ValueError:
        pass
    if len(text) > LITERAL_CHARS or _nesting(text) > DEPTH:
        return text
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the parser, about the stranger's spelling
        for read in (ast.literal_eval, _yaml):
            try:
                return plain(read(text))
            except (
                ValueError,
                SyntaxError,
                RecursionError,
                MemoryError,
                TypeError,
                yaml.YAMLError,
            ):
                continue  # MemoryError: what Python's parser says of too many signs
    return text


def plain(value: Any) -> Any:
    """Nothing but objects with text keys, lists, text, finite numbers of at most 64 bits,
    booleans and None, neither many nor deep (a tuple becomes a list); else ValueError."""
    left = VALUES

    def check(v: Any, depth: int, name: str) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > DEPTH:
            raise ValueError(f"it holds more than {VALUES} values, or nests deeper than {DEPTH}")
        if v is None or type(v) in (str, bool):
            return v
        if (type(v) is int and abs(v) < 1 << 63) or (type(v) is float and math.isfinite(v)):
            return v
        if type(v) in (list, tuple):
            return [check(x, depth + 1, name) for x in v]
        if type(v) is dict and all(type(k) is str for k in v):
            return {k: check(x, depth + 1, k) for k, x in v.items()}
        what = v if type(v) is float else f"a {type(v).__name__} beyond plain data"
        raise ValueError(f"its entry {name[:80]!r} is {what}")

    return check(value, 0, "")


def _json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it nests too deep") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two entries of one name, each reader takes another: we take neither."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("an entry stands in it twice")
    return entries


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}; expected an object")
    return value


def _nesting(text: str) -> int:
    """The most brackets that are open at once (in quotes or not)."""
    depth = deepest = 0
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        deepest = max(deepest, depth)
    return deepest


class _Loader(yaml.SafeLoader):
    """YAML without references: a few of them stand for as many values as there are atoms."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("a reference")
        return super().compose_node(parent, index)


def _yaml(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
