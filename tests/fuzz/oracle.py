"""What must hold whatever the bytes are: an object or a VftError of one line, soon, in little
memory, with nothing imported, run or opened but the given file."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vft_lib.errors import VftError

SECONDS = 1.0  # of this process's own time, for one input
MEMORY = 100 << 20  # bytes by which the most memory ever used may grow
MESSAGE = 1100  # characters

# Only the given file is opened (by Python; safetensors opens what it is told to), nothing else is
# run. `compile` stays: ast.literal_eval parses with it, and makes no code.
FORBIDDEN = (
    "open", "import", "exec", "os.", "socket.", "subprocess.", "ctypes.", "pickle.", "shutil.",
    "urllib.", "marshal.",
)  # fmt: skip
ALLOWED = ("os.putenv", "os.unsetenv", "os.listdir", "os.scandir", "os.rename", "os.remove")

_shared = Path("/dev/shm")
_folder = tempfile.TemporaryDirectory("", "vft-fuzz-", _shared if _shared.is_dir() else None)
FOLDER = Path(_folder.name)
_guard: list[str] | None = None


class Finding(AssertionError):
    """A reader did what no file may make it do."""


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _guard is None or not event.startswith(FORBIDDEN) or event in ALLOWED:
        return
    if args and (isinstance(args[0], int) or str(args[0]).startswith(str(FOLDER))):
        return  # ours
    _guard.append(f"{event}{args[:2]!r}"[:300])


sys.addaudithook(_audit)


def judge(reader: Callable[[bytes], None], data: bytes) -> bool:
    """Run a target on one input. Returns whether it was accepted; raises Finding."""
    global _guard
    modules, peak = set(sys.modules), _peak()
    accepted, message = True, ""
    events: list[str] = []
    began = time.process_time()
    _guard = events
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reader(data)
    except VftError as e:
        accepted, message = False, str(e)
    except Finding:
        raise
    except (Exception, RecursionError) as e:
        raise Finding(f"{type(e).__name__}: {str(e)[:500]}") from e
    finally:
        _guard = None
    took = time.process_time() - began
    if events:
        raise Finding(f"the file made the reader do {events[0]}")
    if took > SECONDS:
        raise Finding(f"took {took:.1f} s")
    if _peak() - peak > MEMORY:
        raise Finding(f"took {(_peak() - peak) >> 20} MiB")
    if new := set(sys.modules) - modules:
        raise Finding(f"imported {sorted(new)[:3]}")
    if not accepted and not (message.isprintable() and 0 < len(message) <= MESSAGE):
        raise Finding(f"the message is no short line: {message[:200]!r} ({len(message)})")
    return accepted


def warm(reader: Callable[[bytes], None], examples: list[bytes]) -> None:
    """Once, unguarded: what a process imports and builds when it reads its first file."""
    for data in examples:
        reader(data)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def same(a: Any, b: Any, what: str) -> None:
    """What was read is what is read again."""
    if a != b:
        raise Finding(f"{what} changed: {str(a)[:200]} became {str(b)[:200]}")


def printable(*texts: str | None) -> None:
    """What may be printed, is."""
    for text in texts:
        if text is not None and not (text.isprintable() and len(text) <= MESSAGE):
            raise Finding(f"would be printed: {text[:200]!r} ({len(text)})")
