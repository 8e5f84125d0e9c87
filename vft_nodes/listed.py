"""Files that the nodes offer by name: which there are, how names are spelled, what changed."""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LISTED = 1000  # token files of each folder, at most
PATIENCE = 1.0  # seconds to read folders in; what is left is read the next time
SETTLED = (
    2_000_000_000  # ns; the coarsest clock of a file system: a younger folder may change unseen
)
HEADER = 1 << 24  # bytes of a model file that are looked at, at most
PIECE = 1 << 20


def spellings(name: str) -> Iterator[str]:
    """A name as it is, then with the separators of the other systems: a workflow may have been
    saved on Windows and be opened on Linux, or the other way round."""
    yield name
    yield from {name.replace("\\", "/"), name.replace("/", "\\")} - {name}


def stamp_tokens(path: Path) -> str:
    """Changes when the file's content does. Token files are small: all of it is read."""
    found = hashlib.sha256()
    with path.open("rb") as f:
        while piece := f.read(PIECE):
            found.update(piece)
    return found.hexdigest()


def stamp_model(path: Path) -> str:
    """Changes when a model file does, though it be gigabytes: times and size, and the header, which
    in our files holds a digest of the weights."""
    facts = path.stat()
    with path.open("rb") as f:
        size = int.from_bytes(f.read(8), "little")
        header = hashlib.sha256(f.read(min(size, HEADER))).hexdigest()
    return f"{path}:{facts.st_mtime_ns}:{facts.st_ctime_ns}:{facts.st_size}:{header}"


@dataclass(frozen=True)
class _Folder:
    """What one folder held when it was read."""

    changed: int  # ns
    tokens: tuple[str, ...]
    folders: tuple[str, ...]


class TokenFiles:
    """The token files below a folder that may hold very many others. A folder is read once, and
    again when it has changed; where that takes long, the rest comes with the next call."""

    def __init__(self, suffix: str) -> None:
        self.suffix = suffix
        self._read: dict[str, _Folder] = {}

    def below(self, root: Path, patience: float = PATIENCE) -> list[str]:
        """Their names from `root`, with "/", newest first; hidden folders and links to folders are
        left out, and so is what vanishes meanwhile."""
        end = time.monotonic() + patience
        found: list[tuple[float, str]] = []
        waiting = deque([str(root)])
        while waiting and len(found) < LISTED:
            place = waiting.popleft()
            try:
                changed, again = os.stat(place).st_mtime_ns, False
                known = self._read.get(place)
                if known is None or known.changed != changed:
                    known, again = self._look_into(place, changed), True
            except OSError:  # gone, or not ours to read
                continue
            waiting.extend(os.path.join(place, name) for name in known.folders)
            for name in known.tokens:
                path = Path(place, name)
                try:  # a link to nothing has no time either
                    found.append((-os.path.getmtime(path), path.relative_to(root).as_posix()))
                except OSError:
                    continue
            if again and time.monotonic() > end:
                break
        return [name for _, name in sorted(found)[:LISTED]]

    def _look_into(self, place: str, changed: int) -> _Folder:
        tokens, folders = [], []
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if not entry.name.startswith("."):
                        folders.append(entry.name)
                elif entry.name.lower().endswith(self.suffix) and entry.is_file():
                    tokens.append(entry.name)
        folder = _Folder(changed, tuple(tokens), tuple(sorted(folders)))
        if time.time_ns() - changed > SETTLED:
            self._read[place] = folder
        else:
            self._read.pop(place, None)
        return folder
