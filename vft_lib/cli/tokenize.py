"""`vft tokenize`: clips as shards of tokens; `vft train pack`: pictures in a file to train on."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ..errors import VftError
from ..files.atomic import alone, in_units
from .common import (
    add_dino_option,
    add_resource_options,
    answer,
    load_tokenizer_for,
    note,
    number,
    shard_of,
)

if TYPE_CHECKING:
    from ..shards.plan import Plan
    from ..shards.sources import Source
    from ..shards.tokenizing import Pace
    from ..tokenizer.tokenizer import Tokenizer


def add_tokenize_parser(command: Callable[..., Any]) -> None:
    """Add the command; `command(name, func, about)` as in `vft.build_parser`."""
    p = command("tokenize", _tokenize, "a collection of clips -> shards of tokens")
    p.add_argument(
        "source", type=Path, metavar="SOURCE",
        help="a folder of clips; a list of them (.txt, .csv, .tsv, .parquet); WebDataset tars",
    )  # fmt: skip
    p.add_argument("-o", "--out", type=Path, required=True, metavar="DIR")
    p.add_argument("--format", choices=("webdataset", "parquet"), default="webdataset")
    p.add_argument("--resume", action="store_true", help="go on with what is in DIR")
    p.add_argument(
        "--window", metavar="W|exact",
        help="a record for every W frames (default: one a clip); exact: whole chunks, no padding",
    )  # fmt: skip
    p.add_argument("--stride", type=int, metavar="S", help="from window to window (default: W)")
    p.add_argument(
        "--fps", metavar="F|all", help="default: the tokenizer's; all: every frame of the file"
    )
    p.add_argument("--fit", choices=("crop", "pad", "stretch"), default="crop")
    p.add_argument("-k", "--budget", type=int, metavar="K", help="tokens per latent frame")
    p.add_argument(
        "--with", nargs="+", default=[], dest="extras", metavar="WHAT",
        help="beside the ids, in float16: codes (before quantization), hidden (of the encoder), "
        "latents (of the autoencoder; to train a tokenizer)",
    )  # fmt: skip
    p.add_argument(
        "--clips-per-shard", type=int, default=256, metavar="N",
        help="what a kill costs at most (256)",
    )  # fmt: skip
    group = p.add_argument_group("machines")
    group.add_argument("--workers", type=int, metavar="N", help="decoders (default: cores - 1)")
    group.add_argument("--batch", type=int, metavar="B", help="chunks at once (CPU: 4, else 32)")
    group.add_argument("--shard", metavar="I/N", help="of N processes on one DIR, this is I (0…)")
    group.add_argument(
        "--ray", nargs="?", const="local", metavar="ADDRESS",
        help="on a Ray cluster (default: a local one); all machines see SOURCE and DIR",
    )  # fmt: skip
    group.add_argument("--actors", type=int, metavar="N", help="models at work under --ray")
    add_dino_option(p)
    add_resource_options(p, decoding=False)


def _tokenize(args: argparse.Namespace) -> None:
    from ..shards.formats import pyarrow_for
    from ..shards.plan import FAILURES, read_shard, write_failures
    from ..shards.sources import open_source

    pyarrow_for(f"`vft tokenize` ({FAILURES})")
    index, count = shard_of(args.shard)
    source = open_source(args.source)
    tokenizer = load_tokenizer_for(args)
    plan = _plan(args, source, tokenizer)
    plan.begin(args.out, args.resume)
    mine = range(index, plan.units, count)
    work = args.out / f".work-{index}-of-{count}"
    with alone(work, lambda: note(f"another process makes this part of {args.out}; waiting")):
        left = [unit for unit in mine if read_shard(args.out, unit) is None]
        _sweep(args.out, left)
        if len(left) < len(mine):
            note(f"{len(mine) - len(left)} of {len(mine)} shards are there")
        if args.ray is not None:
            facts = _on_cluster(args, plan, left)
        else:
            facts = _here(args, source, plan, tokenizer, left)
    with suppress(OSError):  # another process may wait for it
        work.rmdir()
    failures = write_failures(args.out, plan)
    shards = [read_shard(args.out, unit) for unit in mine]
    records = sum(len(s.rows) for s in shards if s is not None)
    size = sum(s.file.stat().st_size for s in shards if s is not None and s.file is not None)
    facts |= {"out": args.out, "shards": len(mine), "records": records, "bytes": size,
              "failures": len(failures)}  # fmt: skip
    text = f"{args.out}: {records} records in {len(mine)} shards, {in_units(size)}"
    if failures:
        text += f"; {len(failures)} clips failed, see {args.out / FAILURES}"
    answer(args, text, facts)


def _plan(args: argparse.Namespace, source: Source, tokenizer: Tokenizer) -> Plan:
    from ..models.loading import load_tokenizer
    from ..shards.tokenizing import autoencoder_mark, plan_of

    try:
        exact = args.window == "exact"
        window = 0 if exact else int(args.window or 0)
        fps = None if args.fps == "all" else number(args.fps or "0")
    except ValueError:
        raise VftError(
            f"--window {args.window}, --fps {args.fps}: give numbers, `exact` and `all`"
        ) from None
    mark = ""
    if "latents" in args.extras:
        import torch

        as_stored = load_tokenizer(args.tokenizer, device="cpu", dtype=torch.float32)
        mark = autoencoder_mark(as_stored.vae.state_dict())
    return plan_of(
        source, tokenizer, per_shard=args.clips_per_shard, format=args.format, fps=fps,
        fit=args.fit, window=window, stride=args.stride, exact=exact, budget=args.budget,
        extras=args.extras, autoencoder=mark,
    )  # fmt: skip


def _sweep(folder: Path, units: list[int]) -> None:
    """Removes what killed runs left of shards that are to be made."""
    from ..files.atomic import sweep
    from ..shards.plan import name_of

    for unit in units:
        for suffix in (".json", ".tar", ".parquet"):
            sweep(folder / (name_of(unit) + suffix))


def _here(
    args: argparse.Namespace, source: Source, plan: Plan, tokenizer: Tokenizer, units: list[int]
) -> dict[str, Any]:
    from ..shards.tokenizing import Machine

    if not units:
        return {}
    workers, batch = _sizes(args)
    total = sum(len(plan.clips_of(unit)) for unit in units)
    machine = Machine(source, plan, tokenizer, args.out, workers=workers, batch=batch)
    with tqdm(total=total, unit="clip", smoothing=0.05) as bar, closing(machine):

        def show(pace: Pace) -> None:
            share = pace.waited / max(pace.seconds, 1e-9)
            bar.set_postfix_str(f"device waited {share:.0%}, {pace.failed} failed", refresh=False)
            bar.update(pace.clips - bar.n)

        for _ in machine.run(units, show):
            pass
    pace = machine.pace
    return {
        "seconds": round(pace.seconds, 2), "clips": pace.clips, "chunks": pace.chunks,
        "clips_per_second": round(pace.clips / max(pace.seconds, 1e-9), 3),
        "device_waited": round(pace.waited / max(pace.seconds, 1e-9), 4),
    }  # fmt: skip


def _on_cluster(args: argparse.Namespace, plan: Plan, units: list[int]) -> dict[str, Any]:
    from ..shards.cluster import Cluster, run_on

    if not units:
        return {}
    workers, batch = _sizes(args)
    options = ("command", "tokenizer", "device", "dtype", "attention", "memory", "dino")
    plain = argparse.Namespace(**{name: getattr(args, name) for name in options})
    if Path(args.tokenizer).exists():
        plain.tokenizer = str(Path(args.tokenizer).resolve())
    cluster = Cluster(args.ray, args.actors, workers, batch)
    total = sum(len(plan.clips_of(unit)) for unit in units)
    failed, began = 0, time.monotonic()
    with tqdm(total=total, unit="clip", smoothing=0.05) as bar:
        load = partial(load_tokenizer_for, plain)
        for row in run_on(cluster, args.source, plan, load, args.out, units):
            failed += row["failed"]
            bar.set_postfix_str(f"{failed} failed", refresh=False)
            bar.update(len(plan.clips_of(row["unit"])))
    return {"seconds": round(time.monotonic() - began, 2), "clips": total}


def _sizes(args: argparse.Namespace) -> tuple[int, int]:
    """Decoders beside each model, chunks at once."""
    import torch

    cpu = args.device == "cpu" or (args.device == "auto" and not torch.cuda.is_available())
    workers = args.workers or (1 if args.ray else max(1, (os.cpu_count() or 2) - 1))
    batch = args.batch or (4 if cpu else 32)
    if min(workers, batch, args.actors or 1) < 1:
        raise VftError(f"--workers {workers}, --batch {batch}: give 1 or more")
    return workers, batch


def add_pack_parser(steps: Any) -> None:
    """Add `pack` to the steps of `vft train`."""
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
