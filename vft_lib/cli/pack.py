"""`vft train pack`: all real training pictures in one file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_pack_parser(steps: Any) -> None:
    """Add `pack` to the steps of `train`."""
    p = steps.add_parser("pack", help="real training pictures in one file; writes OUT")
    p.add_argument("--out", type=Path, required=True, help="the file, for --pack FILE")
    p.add_argument("--size", type=int, default=128, help="training size in px (default: 128)")
    p.add_argument("--fps", type=float, default=8.0, help="frames per second (default: 8)")
    p.add_argument("--quality", type=int, default=80, help="of AVIF, 0 to 100 (default: 80)")
    p.add_argument(
        "--megabytes", type=float, default=36.0, help="the most that it may take (default: 36)"
    )
    p.add_argument(
        "--real", type=Path, action="append", default=[], metavar="DIR",
        help="a folder of pictures in place of the packages; may be given several times",
    )  # fmt: skip
    p.add_argument("--processes", type=int, help="default: one per core")
    p.set_defaults(func=_pack)


def _pack(args: argparse.Namespace) -> int:
    from ..footage.packing import Recipe, write_pack

    recipe = Recipe(args.size, args.fps, args.quality, args.megabytes)
    info = write_pack(args.out, recipe, args.real, args.processes)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")
    for split in ("train", "held"):
        clips = [p for p in info.pictures if (p.kind, p.split) == ("clip", split)]
        stills = sum((p.kind, p.split) == ("still", split) for p in info.pictures)
        frames = sum(p.frames for p in clips)
        print(f"{split}: {len(clips)} clips of {frames} frames, {stills} stills")
    for name, facts in info.packages.items():
        print(f"{name} {facts['version']}: {facts['licence']}")
    return 0
