"""`vft download`: published models fetched from the hub, verified, converted to our single file.

    look up -> what the hub has -> ask -> fetch -> convert, all under a lock

Nothing is fetched unless `download` is called. `catalog.py` knows the names, `hub_files.py` talks
to the hub, `convert.py` reads what arrives.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, VftError
from ..files.atomic import check_space, write_bytes
from .catalog import Entry, look_up, models_folder
from .hub_files import Offer, Progress, explained, fetch, fetched, forget, offer, read

if TYPE_CHECKING:
    import torch

SOURCES = ".sources"  # in the models folder: published files while they are fetched and converted
AUTOENCODER = 700_000_000  # bytes, at most, of a video autoencoder: 158 M parameters in float32


def download(
    name: str, to: str | Path | None = None, dtype: torch.dtype | None = None, *,
    keep_source: bool = False, progress: Callable[[str], Progress] | None = None,
    confirm: Callable[[Sequence[Offer], Path], bool] | None = None,
    note: Callable[[str], None] | None = None, endpoint: str | None = None,
) -> Path:  # fmt: skip
    """Fetch a published model and write it as our single file into the folder `to` (default: the
    models folder, see :func:`vft_lib.models.catalog.models_folder`). Returns the file's path.

    `name` is a catalogue name, or a hub id `org/repo` or `org/repo/folder`. `dtype` casts the
    weights (None: as published). `confirm(offers, target)` is asked before anything large is
    fetched, with the licence and size of all of it (without it nothing is asked); if it says no, or
    on any problem, VftError is raised with one line. `progress(label)` gives a `(done, total)`
    callback in bytes for each long step; raise in it to cancel. `note` gets remarks. `keep_source`
    leaves the published files in `.sources` beside the result. `endpoint` is the hub's address
    (default: `$HF_ENDPOINT`, else the public hub).

    An interrupted download goes on where it stopped, in this or another process. Every file is
    checked against the hub's checksum. The result appears whole or not at all, `NAME.json` beside
    it says which commit it came from. A file that is there already is not fetched again.
    """
    entry = look_up(name)
    if entry is None:
        raise VftError(
            f"no model {name!r} in the catalogue: `vft download --list` shows the names, and a hub "
            "id org/repo works too"
        )
    folder = models_folder() if to is None else Path(to).absolute()
    target, note = folder / entry.file_name, note or (lambda line: None)
    if target.is_file():
        _tidy(entry, target, note)
        note(f"{target} is there already; to fetch it again, delete it first")
        return target
    if not entry.listed:
        note(f"{entry.hub_id} is not in the catalogue; licence and size are what the hub says")
    with explained(entry, target, endpoint=endpoint):
        offers = plan(entry, endpoint, note)
    _check_space(offers, folder, dtype)
    if confirm is not None and not confirm(offers, target):
        raise VftError(f"{name}: nothing was downloaded")
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        # In order of name: two processes that need the same two never wait for each other.
        for repo in sorted({_root(folder, o).parent for o in offers}):
            locks.enter_context(_lock(repo, note))
        if not target.is_file():  # else another process was faster
            sources = fetch_sources(offers, folder, progress)
            _convert(offers, sources, target, dtype, keep_source)
            if keep_source:
                note(f"the published files are in {', '.join(map(str, sources))}")
            else:
                for o in offers:
                    forget([f.path for f in o.files], _root(folder, o))
    return target


def fetch_sources(
    offers: Sequence[Offer], folder: Path, progress: Callable[[str], Progress] | None = None
) -> list[Path]:
    """The verified published folders, below `folder`: the model's, and that of its autoencoder (the
    second offer) unless the model's own file has one."""
    sources: list[Path] = []
    for o in offers:
        if sources and _has_autoencoder(sources[0]):
            break
        root = _root(folder, o)
        with explained(o.entry, folder / offers[0].entry.file_name, o, root):
            for file in o.files:
                fetch(o, file, root, progress)
        sources.append(root / o.entry.folder)
    return sources


def _convert(
    offers: Sequence[Offer], sources: Sequence[Path], target: Path, dtype: torch.dtype | None,
    kept: bool,
) -> None:  # fmt: skip
    from .loading import convert

    entry, vae = offers[0].entry, sources[1] if len(sources) > 1 else None
    # Without a config.json it is in the weight file, and that file is what is converted.
    whole = (sources[0] / "config.json").exists()
    source = sources[0] if whole else sources[0] / entry.files[-1].rpartition("/")[2]
    # Before the model: if it is there, so is its record.
    used = [_record(o) | {"kept": kept} for o in offers[: len(sources)]]
    record = target.with_suffix(".json")
    write_bytes(record, json.dumps(used, indent=1).encode() + b"\n")
    try:
        convert(source, target, dtype=dtype, vae=vae, name=entry.name, license=offers[0].licence)
    except BaseException:
        record.unlink()
        raise


def _record(o: Offer) -> dict[str, Any]:
    files = [dataclasses.asdict(f) for f in o.files]
    return {"repo": o.entry.repo, "commit": o.commit, "licence": o.licence, "files": files}


def _tidy(entry: Entry, target: Path, note: Callable[[str], None]) -> None:
    """Removes the published files of a model that is there, unless they were to be kept: a process
    that was killed once it had converted them left them behind."""
    try:
        if json.loads(target.with_suffix(".json").read_bytes())[0]["kept"]:
            return
    except (OSError, ValueError, LookupError, TypeError):
        pass  # no record, or one of an earlier version
    repo = target.parent / SOURCES / entry.repo.replace("/", "--")
    for root in [p for p in repo.glob("*") if p.is_dir()]:
        config = root / entry.folder / "config.json"
        vae = _hub_vae(config.read_bytes(), entry) if config.is_file() else None
        with _lock(repo, note):
            forget(entry.files, root)
        if vae is not None:
            _tidy(vae, target, note)


# ------------------------------------------------------------------ what has to be fetched


def plan(
    entry: Entry, endpoint: str | None = None, note: Callable[[str], None] = lambda line: None
) -> list[Offer]:
    """What would be fetched: the entry's offer, and a second one if its config takes the
    autoencoder from elsewhere. Asks the hub; reads the config, a few kB."""
    first = offer(entry, endpoint)
    config = next((f for f in first.files if f.path.endswith("config.json")), None)
    vae = _hub_vae(read(first, config), entry) if config else None
    if vae is None:
        return [first]
    note(f"the autoencoder of {entry.name} comes from {vae.hub_id}, if its own file has none")
    return [first, offer(vae, endpoint)]


def _hub_vae(config: bytes, entry: Entry) -> Entry | None:
    """The model whose autoencoder a published config borrows: `hub_vae: {repo, revision}`."""
    from ..checkpoints.published import parse_config

    data = parse_config(config, f"config.json of {entry.hub_id}")
    inner = data.get("config")
    named = (inner if isinstance(inner, dict) else data).get("hub_vae")
    if named is None:
        return None
    repo, revision = (
        (named.get(k) for k in ("repo", "revision")) if isinstance(named, dict) else ("", "")
    )
    vae = look_up(repo) if isinstance(repo, str) and repo.count("/") == 1 else None
    try:
        if vae is None or not isinstance(revision, (str, type(None))):
            raise ConfigError("expected an object with repo and revision")
        return dataclasses.replace(vae, revision=revision or "main")
    except ConfigError as e:
        raise VftError(f"the config of {entry.hub_id} has hub_vae {str(named)[:80]}: {e}") from None


def _has_autoencoder(source: Path) -> bool:
    from ..checkpoints.convert import fit
    from ..files.tensor_files import Source

    return any(name.startswith("vae.") for name in fit(Source.open(source).shapes)[1])


def _check_space(offers: Sequence[Offer], folder: Path, dtype: torch.dtype | None) -> None:
    """VftError unless the files and the converted one fit beside each other."""
    result = offers[0].size * (2 if str(dtype) == "torch.float32" else 1)
    result += sum(min(o.size, AUTOENCODER) for o in offers[1:])
    need = result + sum(o.size - fetched(o, _root(folder, o)) for o in offers)
    what = f"{offers[0].entry.name}, while it is fetched and converted,"
    check_space(folder, need, what, "another folder with --to or VFT_HOME")


def _root(folder: Path, o: Offer) -> Path:
    """Where the files of an offer are fetched to."""
    return folder / SOURCES / o.entry.repo.replace("/", "--") / o.commit


@contextmanager
def _lock(repo: Path, note: Callable[[str], None]) -> Iterator[None]:
    """One process at a time fetches from a repository. Ends with the process, however it ends."""
    from filelock import FileLock, Timeout

    repo.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(repo.with_name(repo.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        note("another process is downloading from there; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
