"""Files appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import VftError


def temporary(path: Path) -> Path:
    """What a file is called until it is complete: beside `path`, another name in each process."""
    return path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it takes `path`'s place in one step, on
    an exception it is removed and what stood at `path` stays."""
    tmp = temporary(path)
    try:
        yield tmp
        os.replace(tmp, path)
    finally:
        with suppress(OSError):
            tmp.unlink(missing_ok=True)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """:func:`whole`, with a VftError for what goes wrong. The folder must exist."""
    path = Path(path)
    if not path.parent.is_dir():
        raise VftError(f"cannot write {path}: the folder {path.parent} does not exist; create it")
    try:
        with whole(path) as tmp:
            yield tmp
    except OSError as e:
        raise VftError(f"cannot write {path}: {e.strerror or e}") from None


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`, atomically and durably."""
    with replacing(path) as tmp, tmp.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
