"""The published models by name, and where their files lie on this machine. Opens no socket."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

from ..config.fields import build
from ..errors import CheckpointError, ConfigError, VftError
from ..files.packaged import packaged
from ..files.untrusted import plain

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CATALOG_BYTES = 1 << 18  # the one that comes with this program has 11,000
CATALOG_DOTS = 64  # in a line: a name of parts takes the square of their number to read

# One part of a path or a name. It begins with a letter or digit: no "..", no "-option", no "/".
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_NAME = re.compile(_PART)
_REPO = re.compile(f"{_PART}/{_PART}")
_PATH = re.compile(f"{_PART}(/{_PART})*")


@dataclass(frozen=True)
class Entry:
    """One published model. `files` are paths within the repository `repo`, all in one folder;
    `size_gb` is approximate (None: unknown), in units of 1e9 bytes. weights/catalog.toml says what
    the other fields mean. Raises ConfigError for a path that leaves the repository and the like."""

    name: str
    kind: Literal["tokenizer", "prior", "image encoder"]
    repo: str
    revision: str
    files: tuple[str, ...]
    licence: str
    commercial: Literal["yes", "limited", "no", "unknown"]
    size_gb: float | None
    about: str
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        for what, text, pattern in [
            ("name", self.name, _NAME), ("repo", self.repo, _REPO),
            ("revision", self.revision, _PATH), *(("files", f, _PATH) for f in self.files),
        ]:  # fmt: skip
            if not pattern.fullmatch(text) or len(text) > 200:
                raise ConfigError(f"{what}: {text[:200]!r} is not a plain {what.rstrip('s')}")
        if not self.files or len({f.rpartition("/")[0] for f in self.files}) != 1:
            raise ConfigError(f"files: expected one or more in one folder, got {self.files}")
        if (self.tokenizer is None) == (self.kind == "prior"):
            raise ConfigError("a prior names its tokenizer, others do not")

    @property
    def listed(self) -> bool:
        """Whether it is in the catalogue; else only its place is known."""
        return self.size_gb is not None

    @property
    def folder(self) -> str:
        """Where in the repository the files are; "" at its top."""
        return self.files[0].rpartition("/")[0]

    @property
    def hub_id(self) -> str:
        """`org/repo`, or `org/repo/folder`: another way to name this model."""
        return f"{self.repo}/{self.folder}".rstrip("/")

    @property
    def file_name(self) -> str:
        """Of the converted single file."""
        return f"{self.name}.safetensors"

    @property
    def facts(self) -> str:
        """Size and licence, for a message."""
        size = "size unknown" if self.size_gb is None else f"about {self.size_gb:g} GB"
        return f"{size}, licence {self.licence}"


def read_catalog(path: Path) -> dict[str, Entry]:
    """The entries of a catalogue file by name, in its order, every field checked. Raises VftError
    with one line that names the file and the entry."""
    try:
        if path.stat().st_size > CATALOG_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes; expected up to {CATALOG_BYTES}")
        text = path.read_text(encoding="utf-8")
        if max(map(str.count, text.splitlines(), repeat(".")), default=0) > CATALOG_DOTS:
            raise ValueError(f"a line of it has more than {CATALOG_DOTS} dots")
        data = plain(tomllib.loads(text))
    except (OSError, ValueError) as e:
        raise VftError(f"{path} is not a readable catalogue: {e}") from None
    except RecursionError:
        raise VftError(f"{path} is not a readable catalogue: it nests too deep") from None
    models = data.pop("model", None)
    if data or not isinstance(models, list):
        raise VftError(f"{path}: expected [[model]] entries only, got {sorted(data) or models!r}")
    entries: dict[str, Entry] = {}
    for i, model in enumerate(models):
        name = model.get("name") if isinstance(model, dict) else None
        try:
            entry = build(Entry, model, f"model {name!r}" if name else f"model {i + 1}")
        except ConfigError as e:
            raise VftError(f"{path}: {e}") from None
        if entry.name in entries:
            raise VftError(f"{path}: two models are called {entry.name!r}; names are unique")
        entries[entry.name] = entry
    for entry in entries.values():
        of = entries.get(entry.tokenizer or "")
        if entry.tokenizer and (of is None or of.kind != "tokenizer"):
            raise VftError(f"{path}: {entry.name!r} belongs to {entry.tokenizer!r}, no tokenizer")
    return entries


@lru_cache(maxsize=1)
def catalog() -> dict[str, Entry]:
    """The catalogue that comes with this program, by name. Do not change it."""
    return read_catalog(packaged("catalog.toml"))


def models_folder() -> Path:
    """Where downloaded models are kept: `$VFT_HOME`, else `videoflextok` in the user's data folder:
    `$XDG_DATA_HOME` or `~/.local/share`, on macOS `~/Library/Application Support`, on Windows
    `%LOCALAPPDATA%`. It need not exist yet."""
    if own := os.environ.get("VFT_HOME"):
        return Path(own).expanduser().absolute()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Application Support"
    else:
        base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser().absolute() / "videoflextok"


def look_up(name: str) -> Entry | None:
    """What `name` means: a catalogue name, or a hub id `org/repo` or `org/repo/folder`, in the
    catalogue or not. None if it can be neither. Raises VftError if the repository holds several."""
    entries = catalog()
    if name in entries:
        return entries[name]
    parts = name.split("/")
    if len(parts) < 2 or not _PATH.fullmatch(name) or name.endswith((".safetensors", ".json")):
        return None
    known = [e for e in entries.values() if name in (e.hub_id, e.repo)]
    if len(known) > 1:
        names = ", ".join(e.name for e in known)
        raise VftError(f"{name} holds several models; name one of {names}")
    if known:
        return known[0]
    folder = "".join(f"{part}/" for part in parts[2:])
    return build(Entry, _unlisted(name, "/".join(parts[:2]), folder), repr(name))


def _unlisted(name: str, repo: str, folder: str) -> dict[str, Any]:
    return {
        "name": name.replace("/", "--"), "kind": "tokenizer", "repo": repo, "revision": "main",
        "files": [f"{folder}config.json", f"{folder}model.safetensors"], "licence": "unknown",
        "commercial": "unknown", "size_gb": None, "about": "not in the catalogue",
    }  # fmt: skip


def find(name: str) -> Path | None:
    """The converted single file of a catalogue name or hub id in the models folder, or None."""
    entry = look_up(name)
    path = entry and models_folder() / entry.file_name
    return path if path and path.is_file() else None


def locate(name: str, kind: str = "tokenizer") -> Path:
    """The file that a catalogue name or hub id means, once it has been downloaded; else
    CheckpointError says how to get it. Never downloads anything."""
    entry = look_up(name)
    if entry is None:
        raise CheckpointError(
            f"no {kind} {name!r}: neither 'default', nor an existing file, nor a name that "
            "`vft download --list` shows"
        )
    if entry.listed and entry.kind != kind:
        its = f"; its tokenizer is {entry.tokenizer!r}" if entry.kind == "prior" else ""
        found, wanted = (f"an {k}" if k[0] == "i" else f"a {k}" for k in (entry.kind, kind))
        raise CheckpointError(f"{name} is {found}, not {wanted}{its}")
    if (path := find(name)) is None:
        raise CheckpointError(
            f"{kind} {name!r} is not on this machine: no such file, and none in "
            f"{models_folder()}; `vft download {name}` fetches it ({entry.facts})"
        )
    return path
