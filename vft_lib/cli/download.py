"""`vft download`: the catalogue as a table, and fetching one model of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import VftError
from .common import DTYPES, answer, note, stored_dtype

if TYPE_CHECKING:
    from ..models.hub_files import Offer


def add_download_parser(subparsers: Any) -> None:
    """Add `download` to the command line."""
    about = "fetch a published model, by its catalogue name or hub id, and convert it"
    parser = subparsers.add_parser("download", help=about, description=about)
    parser.set_defaults(func=_download)
    parser.add_argument("name", nargs="?", metavar="NAME")
    parser.add_argument("--list", action="store_true", help="show the catalogue")
    parser.add_argument("--to", type=Path, metavar="DIR", help="default: the models folder")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="default: as published")
    parser.add_argument("--yes", action="store_true", help="agree to licence and size unasked")
    parser.add_argument("--keep-source", action="store_true", help="keep the published files too")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _download(args: argparse.Namespace) -> None:
    if args.list == bool(args.name):
        raise VftError("give either the NAME of a model or --list")
    if args.list:
        answer(args, *_catalogue())
        return
    if not args.yes and not sys.stdin.isatty():
        raise VftError("there is no terminal to ask on; --yes agrees to the licence and the size")
    from ..files.atomic import in_units
    from ..models.catalog import look_up, models_folder
    from ..models.hub import download

    path = download(
        args.name, args.to, stored_dtype(args), keep_source=args.keep_source, note=note,
        progress=partial(args.bars, unit="B"), confirm=partial(_confirm, unasked=args.yes),
    )  # fmt: skip
    entry, size = look_up(args.name), path.stat().st_size
    assert entry is not None
    facts = {"name": entry.name, "kind": entry.kind, "file": path, "file_bytes": size}
    use = f"use it with --tokenizer {args.name if path.parent == models_folder() else path}"
    if entry.kind != "tokenizer":
        encodes = "SemanTok's tokenizers encode with it"
        use = f"it writes ids of {entry.tokenizer}" if entry.tokenizer else encodes
    answer(args, f"{path}: {in_units(size)}; {use}", facts)


def _confirm(offers: Sequence[Offer], target: Path, unasked: bool) -> bool:
    """Shows what would be fetched, on stderr, and asks on the terminal."""
    for offer in offers:
        print(offer.describe(), file=sys.stderr)
    print(f"  into     {target}", file=sys.stderr)
    if unasked:
        return True
    print("Download? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _catalogue() -> tuple[str, dict[str, Any]]:
    """The catalogue as a table and as data."""
    from ..models.catalog import catalog, find, models_folder

    rows, models = [["name", "kind", "size", "licence", "here", "what"]], []
    for entry in catalog().values():
        file = find(entry.name)
        size = "?" if entry.size_gb is None else f"~{entry.size_gb:g} GB"
        here = "yes" if file else "no"
        rows.append([entry.name, entry.kind, size, entry.licence, here, entry.about])
        models.append({
            "name": entry.name, "kind": entry.kind, "repo": entry.repo, "files": entry.files,
            "revision": entry.revision, "size_gb": entry.size_gb, "licence": entry.licence,
            "commercial": entry.commercial, "about": entry.about, "tokenizer": entry.tokenizer,
            "file": file,
        })  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]
    folder = models_folder()
    lines.append(f"Sizes are approximate. Models folder: {folder} (VFT_HOME changes it)")
    return "\n".join(lines), {"folder": folder, "models": models}
