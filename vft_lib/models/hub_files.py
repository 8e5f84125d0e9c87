"""What the hub has, and fetching one file of it: resumable, verified. Through huggingface_hub.

huggingface_hub is imported by the functions that need it: importing this file opens nothing.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import VftError
from ..files.atomic import in_units
from .catalog import Entry

Progress = Callable[[int, int], None]
TIMEOUT = 20.0  # seconds to wait for the hub's description of a repository
SMALL = 1 << 24  # bytes; what is read into memory
BLOCK = 1 << 22  # bytes hashed at once
HTTP_GET = "huggingface_hub.http_get"  # the name of huggingface_hub's own progress bar


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository. Large files have a SHA-256, small ones a git hash."""

    path: str
    size: int
    sha256: str | None
    git_sha1: str | None


@dataclass(frozen=True)
class Offer:
    """What the hub has for an entry, pinned to one commit."""

    entry: Entry
    commit: str
    licence: str
    gated: bool
    files: tuple[RemoteFile, ...]
    endpoint: str

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(f.size for f in self.files)

    def describe(self) -> str:
        """Several lines for a person who is about to agree."""
        e = self.entry
        known = e.licence not in ("unknown", self.licence)
        said = f" (the catalogue says {e.licence})" if known else ""
        gate = "\n  gated    its terms have to be accepted on its page" if self.gated else ""
        return (
            f"{e.name}: {e.kind}, {e.about}\n"
            f"  from     {e.hub_id}, revision {e.revision}, commit {self.commit[:12]}\n"
            f"  licence  {self.licence}{said}; commercial use: {e.commercial}\n"
            f"  size     {in_units(self.size)} in {len(self.files)} file(s){gate}"
        )


def offer(entry: Entry, endpoint: str | None = None) -> Offer:
    """Asks the hub what it has for `entry`. VftError if one of its files is not there; of a model
    that is not in the catalogue, config.json may be missing (its weight file can carry one)."""
    from huggingface_hub import HfApi, constants

    # Else it also asks its default hub, whatever `endpoint` says, which coding agents there are.
    constants.HF_HUB_DISABLE_TELEMETRY = True
    api = HfApi(endpoint=endpoint)
    try:
        info = api.model_info(
            entry.repo, revision=entry.revision, files_metadata=True, timeout=TIMEOUT
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise VftError(f"{api.endpoint} does not answer like a model hub") from None
    there = {s.rfilename: s for s in info.siblings or []}
    files = []
    for path in entry.files:
        found = there.get(path)
        if found is None and not entry.listed and path.endswith("config.json"):
            continue
        if found is None:
            names = ", ".join(sorted(there)[:12]) or "no files"
            raise VftError(f"{entry.repo} at {entry.revision} has no {path}; it has {names}")
        sha256 = found.lfs.sha256 if found.lfs else None
        if not found.size or not (sha256 or found.blob_id):
            raise VftError(f"{api.endpoint} does not tell the size and checksum of {path}")
        files.append(RemoteFile(path, found.size, sha256, found.blob_id))
    if not info.sha:
        raise VftError(f"{api.endpoint} does not tell the commit of {entry.revision}")
    licence = _licence(info.card_data, entry)
    return Offer(entry, info.sha, licence, bool(info.gated), tuple(files), api.endpoint)


def read(offer: Offer, file: RemoteFile) -> bytes:
    """A small file, verified, into memory."""
    if file.size > SMALL:
        raise VftError(f"{file.path} has {file.size} bytes; expected at most {SMALL}")
    data = io.BytesIO()
    _get(offer, file, data, 0)
    data.seek(0)
    _verify(data, file, lambda done, total: None)
    return data.getvalue()


def fetch(
    offer: Offer, file: RemoteFile, root: Path, progress: Callable[[str], Progress] | None = None
) -> Path:
    """`root / file.path`, fetched unless it is there. What an interrupted call left (`….part`) is
    gone on with. Only a verified file ever bears the final name; one process at a time, please."""
    path = root / file.path
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    bar = progress or (lambda label: lambda done, total: None)
    part = _part(path)
    start = part.stat().st_size if part.is_file() else 0
    start = start if start <= file.size else 0
    if start < file.size:
        with part.open("r+b" if start else "wb") as f:
            out = _Counted(f, bar(f"fetch {path.name}"), file.size)
            f.seek(start)
            try:
                _get(offer, file, out, start)
            except _TooLongError:  # of a server that ignores ranges, all came after the part
                f.seek(0)
                f.truncate()
                _get(offer, file, out, 0)
    try:
        with part.open("rb") as f:
            _verify(f, file, bar(f"verify {path.name}"))
    except VftError:
        part.unlink()
        raise
    os.replace(part, path)
    return path


def fetched(offer: Offer, root: Path) -> int:
    """Bytes of the offer's files that are under `root` already, whole or in part."""
    paths = [p for f in offer.files for p in (root / f.path, _part(root / f.path))]
    return sum(p.stat().st_size for p in paths if p.is_file())


def forget(paths: Iterable[str], root: Path) -> None:
    """Deletes what :func:`fetch` wrote of these files, and the folders that are empty then."""
    for path in (root / p for p in paths):
        for p in (path, _part(path)):
            p.unlink(missing_ok=True)
        for folder in path.parents:
            if not folder.is_relative_to(root.parent) or (
                folder.exists() and any(folder.iterdir())
            ):
                break
            if folder.exists():
                folder.rmdir()


@contextmanager
def explained(
    entry: Entry, target: Path, offer: Offer | None = None, root: Path | None = None,
    endpoint: str | None = None,
) -> Iterator[None]:  # fmt: skip
    """Turns what can go wrong with the hub into one VftError line: the reason, the remedy, and how
    to get `target` without this machine's connection. `root` is where the offer is fetched to,
    `endpoint` the hub that is asked, where there is no offer yet (None: the usual one)."""
    from huggingface_hub import constants, errors

    hub = offer.endpoint if offer else endpoint or constants.ENDPOINT

    unreachable: tuple[type[BaseException], ...] = (OSError, *_transport_errors())
    again = f"`vft download {entry.name if entry.listed else entry.hub_id}`"
    try:
        yield
    except VftError:
        raise
    except errors.GatedRepoError:
        reason = (
            f"{entry.repo} is gated: accept its terms on its page on the hub, log in with "
            f"`hf auth login`, then run {again} again"
        )
    except errors.RevisionNotFoundError:
        reason = f"{entry.repo} has no revision {entry.revision} on {hub}"
    except errors.RepositoryNotFoundError:
        reason = (
            f"the hub {hub} has no repository {entry.repo}, or it is private: check the name, or "
            f"log in with `hf auth login` and run {again} again"
        )
    except errors.OfflineModeIsEnabled:
        reason = f"HF_HUB_OFFLINE forbids to ask the hub; unset it and run {again} again"
    except unreachable as e:
        if getattr(e, "errno", None) and not isinstance(e, (ConnectionError, TimeoutError)):
            raise  # the disk's, not the network's
        have = fetched(offer, root) if offer and root else 0
        kept = f"; it goes on from the {in_units(have)} that are here" if have else ""
        other = ", or with another HF_ENDPOINT" if os.environ.get("HF_ENDPOINT") else ""
        reason = f"the hub {hub} {_failure(e, hub)}; try {again} again later{other}{kept}"
    except _TooLongError:
        reason = f"the hub {hub} sends more than it tells; try {again} again later"
    else:
        return
    raise VftError(f"{reason}. Or by hand: {by_hand(entry, target, offer)}") from None


def _failure(e: BaseException, hub: str) -> str:
    """What happened to a request of `hub`, which may have sent it on."""
    response = getattr(e, "response", None)
    try:
        url = urlsplit(str((response if response is not None else e.request).url))  # type: ignore[attr-defined]
    except (AttributeError, RuntimeError, ValueError):  # an error may know of no request
        url = urlsplit(hub)
    sent_on = f"sends on to {url.scheme}://{url.netloc}, which "
    begin = "" if url.netloc == urlsplit(hub).netloc else sent_on
    if response is not None:
        return f"{begin}answered {response.status_code}"
    said = " ".join(str(e).split())[:150] or type(e).__name__
    return f"{begin}cannot be reached ({said})"


def by_hand(entry: Entry, target: Path, offer: Offer | None = None) -> str:
    """How to get `target` with another machine's connection."""
    names = " and ".join(f.rpartition("/")[2] for f in entry.files)
    facts = f"{in_units(offer.size)}, licence {offer.licence}" if offer else entry.facts
    return (
        f"fetch {names} ({facts}) of {entry.hub_id}, revision {entry.revision}, into one folder, "
        f"then run `vft convert FOLDER {target}`"
    )


def _get(offer: Offer, file: RemoteFile, out: Any, start: int) -> None:
    """Streams the file from byte `start` on into `out`, which stands there. A cut connection is
    taken up again a few times by huggingface_hub."""
    from huggingface_hub import hf_hub_url, utils
    from huggingface_hub.file_download import http_get

    # hf_hub_download would begin again from nothing after an interruption: it gives every attempt
    # a temporary file of its own. http_get is the part of it that resumes.
    url = hf_hub_url(offer.entry.repo, file.path, revision=offer.commit, endpoint=offer.endpoint)
    headers = utils.build_hf_headers() | {"Accept-Encoding": "identity"}
    shown = not utils.are_progress_bars_disabled(HTTP_GET)
    if shown:
        utils.disable_progress_bars(HTTP_GET)
    try:
        http_get(url, out, resume_size=start, headers=headers, expected_size=file.size)
    finally:
        if shown:
            utils.enable_progress_bars(HTTP_GET)


def _verify(f: Any, file: RemoteFile, bar: Progress) -> None:
    """VftError unless the open file `f` has the size and checksum that the hub tells."""
    h = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size)
    done = 0
    while block := f.read(BLOCK):
        h.update(block)
        done += len(block)
        bar(done, file.size)
    if done != file.size or h.hexdigest() != (file.sha256 or file.git_sha1):
        raise VftError(
            f"{file.path} arrived damaged: its checksum is not the hub's; it was thrown away, run "
            "the same command again"
        )


def _licence(card: Any, entry: Entry) -> str:
    """The hub's tag, or what the catalogue knows where the tag says nothing."""
    tag = getattr(card, "license", None)
    if tag == "other":
        tag = getattr(card, "license_name", None)
    return tag if isinstance(tag, str) and tag else entry.licence


def _transport_errors() -> tuple[type[Exception], ...]:
    """Of the HTTP library that this version of huggingface_hub uses; requests' are OSErrors."""
    return tuple(sys.modules[m].HTTPError for m in ("httpx", "httpx2") if m in sys.modules)


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


class _TooLongError(Exception):
    """More bytes come than the file has."""


class _Counted:
    """A file that tells how far it has come, and takes no more than `total` bytes."""

    def __init__(self, file: Any, bar: Progress, total: int) -> None:
        self.file, self.bar, self.total = file, bar, total

    def write(self, data: bytes) -> int:
        if self.file.tell() + len(data) > self.total:
            raise _TooLongError
        count = self.file.write(data)
        self.bar(self.file.tell(), self.total)
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)
