"""Files appear whole or not at all; one process at a time works where only one can."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import VftError

fcntl: Any = None
with suppress(ImportError):  # Windows has none: there, what a killed process left stays
    import fcntl


def temporary(path: Path) -> Path:
    """What a file is called until it is complete: hidden, beside `path`, another name each time."""
    return path.with_name(f"{_beginning(path)}{secrets.token_hex(4)}.tmp{path.suffix}")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, an empty file; on success it is on the disk and takes
    `path`'s place in one step, on an exception it is removed and what stood at `path` stays. What
    a killed process left of `path` is removed. Raises OSError."""
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(None, "it is there and read-only")
    sweep(path)
    tmp = temporary(path)
    with _held(tmp):
        try:
            yield tmp
            with tmp.open("rb+") as f:
                os.fsync(f.fileno())
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
    with replacing(path) as tmp:
        tmp.write_bytes(data)


def check_place(path: str | Path, need: int = 0) -> None:
    """VftError unless a file can be written at `path`, whose folder has `need` bytes free: said
    before the work, not after it."""
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise VftError(f"cannot write {path}: give a file name in an existing folder")
    with suppress(_Tried), replacing(path):  # no permission system fools a file that is made
        raise _Tried
    if need:
        check_space(path.parent, need, str(path))


def check_space(folder: Path, need: int, what: str, remedy: str = "another folder") -> None:
    """VftError unless `folder`, or the nearest one above that is there, has `need` bytes free."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    usage = shutil.disk_usage(there)
    if usage.total and need > usage.free:
        raise VftError(
            f"{what} needs {in_units(need)} of free space; {there} has {in_units(usage.free)}: "
            f"make room, or choose {remedy}"
        )


def check_other(out: Path, given: Path, what: str) -> None:
    """VftError where writing `out` would replace the file `given`, which is `what`."""
    with suppress(OSError):  # one of them is not there
        if out.is_file() and out.samefile(given):
            raise VftError(f"{out} is {what}: choose another name for what is written")


@contextmanager
def alone(folder: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Makes `folder`; no other process is in such a block for it at the same time. `wait` is called
    if one has to be waited for. Ends with the process, however that ends. None on Windows. A folder
    that was made for a block that fails, and is empty, goes again."""
    made = not folder.exists()
    with _held(folder, True, wait):
        try:
            yield
        except BaseException:
            if made:
                with suppress(OSError):
                    folder.rmdir()
            raise


def in_units(count: float) -> str:
    """Bytes for people: 10.5 GB."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


class _Tried(Exception):
    """Nothing is to be written."""


def _beginning(path: Path) -> str:
    """Of the names of `path`'s temporaries; a name has room for 255 bytes."""
    return f".{os.fsencode(path.stem)[:150].decode(errors='ignore')}."


def sweep(path: Path) -> None:
    """Removes what killed processes left of `path`: temporaries that nobody holds."""
    if fcntl is None:
        return
    pattern = f"{glob.escape(_beginning(path))}{'[0-9a-f]' * 8}.tmp{glob.escape(path.suffix)}"
    for left in path.parent.glob(pattern):
        with suppress(OSError), left.open("rb+") as f:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


@contextmanager
def _held(
    path: Path, folder: bool = False, wait: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Makes the file or folder `path` and holds a lock on it."""
    if fcntl is None:
        if folder:
            path.mkdir(parents=True, exist_ok=True)
        yield
        return
    while True:
        try:
            if folder:
                path.mkdir(parents=True, exist_ok=True)
            f = os.open(path, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                wait()
                fcntl.flock(f, fcntl.LOCK_EX)
            except OSError:
                pass  # a file system without locks
        except FileNotFoundError:
            if not folder:
                raise
            continue  # removed between the two lines
        if path.exists() and os.path.samestat(os.fstat(f), path.stat()):
            break
        os.close(f)  # who held it has removed it
    try:
        yield
    finally:
        os.close(f)
