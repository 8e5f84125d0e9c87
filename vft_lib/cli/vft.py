"""The command line: `vft demo | encode | truncate | decode | info | generate | refine | surprise |
tokenize | convert | parity | bench | gpu-check | download | train | eval`.

Results go to stdout (one JSON object under `--json`), progress and notes to stderr. A problem the
user can fix is one line on stderr and exit code 2; Ctrl-C is 130.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import VftError, one_line
from ..files.atomic import alone, check_other, check_place
from .common import (
    DTYPES,
    MAX_LINE,
    Bars,
    add_dino_option,
    add_resource_options,
    add_sampling_options,
    answer,
    device_and_dtype,
    load_tokenizer_for,
    note,
    number,
    sampling_of,
    save_tokens,
    stored_dtype,
    token_facts,
)

if TYPE_CHECKING:
    from ..prior.prior import Prior
    from ..tokenizer.tokenizer import Tokenizer


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code. argparse itself exits with 2 for bad usage."""
    bars = Bars()
    try:
        args = build_parser().parse_args(argv)
        args.bars = bars
        return args.func(args) or 0
    except KeyboardInterrupt:
        code, line = 130, "interrupted"
    except VftError as e:
        code, line = 2, f"error: {e}"
    except (MemoryError, RuntimeError) as e:
        from ..tokenizer.parts import out_of_memory  # imports torch

        if not out_of_memory(e):
            raise
        code = 2
        line = "error: out of memory: close other programs, or choose a smaller model or --dtype"
    except OSError as e:
        what = f"{e.filename}: {e.strerror}" if e.filename else str(e)
        code, line = 2, f"error: {what}; check the path, its permissions and the free space"
    finally:
        bars.close()
    print("vft:", " ".join(line.split()), file=sys.stderr)
    return code


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `func`."""
    from .bench import add_bench_parser
    from .decode import add_decode_command
    from .download import add_download_parser
    from .eval import add_eval_parser
    from .prior import add_prior_commands
    from .tokenize import add_tokenize_parser
    from .train import add_train_parser
    from .truncate import add_truncate_parser

    parser = argparse.ArgumentParser(
        "vft", description="Video as coarse-to-fine tokens: fewer tokens, a coarser clip."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    model = argparse.ArgumentParser(add_help=False)
    group = model.add_argument_group("tokenizer")
    group.add_argument("--tokenizer", default="default", metavar="NAME|PATH")
    group.add_argument("--device", default="auto", help="cpu, cuda, mps, xpu or auto (default)")
    group.add_argument(
        "--dtype", default="auto", choices=("float32", "bfloat16", "float16", "auto"),
        help="auto: bfloat16 (float16 on cards without it) on a GPU, else float32",
    )  # fmt: skip
    model.add_argument("--json", action="store_true", help="print one JSON object")

    def command(name: str, func: Callable[[argparse.Namespace], int | None], about: str) -> Any:
        sub = commands.add_parser(name, help=about, description=about, parents=[model])
        sub.set_defaults(func=func)
        return sub

    demo = command("demo", _demo, "a clip (or the example) at several budgets, side by side")
    demo.add_argument("clip", nargs="?", type=Path, metavar="CLIP")
    demo.add_argument("--budgets", nargs="+", metavar="K", help="default: powers of two")
    demo.add_argument("--out", type=Path, default=Path("vft-demo"), metavar="DIR")
    encode = command("encode", _encode, "clip -> token file")
    encode.add_argument("clip", type=Path, metavar="CLIP")
    encode.add_argument("-o", "--out", type=Path, required=True, metavar="T.vft")
    encode.add_argument("--budget", type=int, metavar="K", help="tokens per latent frame")
    add_truncate_parser(command)
    add_decode_command(command)
    info = command("info", _info, "facts about a token file, a tokenizer or a clip")
    info.add_argument("file", nargs="?", type=Path, metavar="FILE", help="default: --tokenizer")
    for sub in (demo, encode):
        sub.add_argument("--fps", type=number, metavar="F", help="default: the tokenizer's")
        sub.add_argument("--fit", choices=("crop", "pad", "stretch"), default="crop")
        add_dino_option(sub)
    add_resource_options(encode, decoding=False)
    add_resource_options(demo)
    add_sampling_options(demo)
    demo.add_argument("--no-audio", action="store_true")
    add_prior_commands(command)
    add_tokenize_parser(command)
    convert = commands.add_parser(
        "convert", help="published tokenizer or prior -> one file of ours"
    )
    convert.set_defaults(func=_convert)
    convert.add_argument("src", type=Path, metavar="SRC", help="published folder or single file")
    convert.add_argument("dst", type=Path, metavar="DST.safetensors")
    convert.add_argument("--dtype", choices=tuple(DTYPES), help="default: as it is")
    convert.add_argument("--vae", type=Path, help="take the video autoencoder from this one")
    convert.add_argument("--name", help="how tokens will name it; default: SRC's own name")
    convert.add_argument("--json", action="store_true", help="print one JSON object")
    parity = commands.add_parser("parity", help="our numbers against recorded published ones")
    parity.set_defaults(func=_parity)
    parity.add_argument("cases", type=Path, nargs="+", metavar="DIR")
    parity.add_argument("--json", action="store_true", help="print one JSON object")
    add_bench_parser(commands)
    add_download_parser(commands)
    add_train_parser(commands)
    add_eval_parser(commands)
    return parser


# ------------------------------------------------------------------ the commands


def _demo(args: argparse.Namespace) -> None:
    from ..measure.demo import run_demo

    try:
        budgets = [int(k) for part in args.budgets or [] for k in part.split(",") if k]
    except ValueError:
        raise VftError(f"--budgets {' '.join(args.budgets)}: give numbers, as in 1 4 16") from None
    with alone(args.out, lambda: note(f"another demo is writing to {args.out}; waiting for it")):
        tokenizer = load_tokenizer_for(args)
        rows = run_demo(
            tokenizer, args.clip, budgets, args.out, sampling_of(args),
            fps=args.fps, fit=args.fit,
            audio=not args.no_audio, progress=args.bars, on_problem=note,
        )  # fmt: skip
    lines = [f"{'budget':>7}{'tokens':>9}{'bytes':>9}{'PSNR dB':>9}{'SSIM':>8}{'seconds':>9}"]
    for r in rows:
        lines.append(
            f"{r['budget']:7}{r['tokens']:9}{r['bytes']:9}{r['psnr']:9.2f}{r['ssim']:8.3f}"
            f"{r['seconds']:9.1f}"
        )
    args.bars.close()
    previewed = ", by the preview decoder" * (tokenizer.passes.previewed > 0)
    table = "\n".join([*lines, f"see {args.out / 'side_by_side.mp4'}{previewed}"])
    print(table, file=sys.stderr if args.json else sys.stdout)
    if args.json:
        facts = json.loads((args.out / "table.json").read_text())
        answer(args, "", {"out": args.out} | facts)


def _encode(args: argparse.Namespace) -> None:
    from ..clips.stream import encode_file

    check_place(args.out)
    check_other(args.out, args.clip, "the clip itself")
    tokens = encode_file(
        load_tokenizer_for(args), args.clip, budget=args.budget, fps=args.fps, fit=args.fit,
        progress=args.bars("encode"), on_problem=note,
    )  # fmt: skip
    save_tokens(args, tokens, args.out)


def _info(args: argparse.Namespace) -> None:
    file, kind = args.file, "" if args.file is None else args.file.suffix.lower()
    if file is None or str(file) == "default" or kind == ".safetensors" or file.is_dir():
        facts = _model_facts(args, args.tokenizer if file is None else str(file))
    elif kind == ".vft":
        from ..token_file import read_token_file  # does without torch

        facts, ids = read_token_file(file)
        budgets = facts["budgets"]
        grid = ids.shape if budgets is None else (len(budgets), max(budgets))
        facts = token_facts(file, facts, grid)
    else:
        from ..video.video_in import probe

        facts = {"file": file, "kind": "clip"} | dataclasses.asdict(probe(file))
    shown = facts
    if "budgets" in facts:
        shown = facts | {"budgets": " ".join(map(str, facts["budgets"]))}
    lines = [f"{k.replace('_', ' '):18}{one_line(_plain(v), MAX_LINE)}" for k, v in shown.items()]
    answer(args, "\n".join(lines), facts)


def _convert(args: argparse.Namespace) -> None:
    from ..models.loading import convert

    if args.dst.suffix != ".safetensors":
        raise VftError(f"{args.dst}: the file that is written ends in .safetensors")
    mark = convert(args.src, args.dst, dtype=stored_dtype(args), vae=args.vae, name=args.name)
    size = args.dst.stat().st_size
    facts = {"file": args.dst, "fingerprint": mark, "file_bytes": size}
    answer(args, f"{args.dst}: {mark}, {size / 1e6:.1f} MB", facts)


def _parity(args: argparse.Namespace) -> int:
    from ..checkpoints.parity import run_case

    results = []
    for case in args.cases:
        for r in run_case(case):
            results.append(r)
            if not args.json:
                state = "ok" if r.ok else "FAILED"
                print(f"{r.case:20}{r.op:19}{r.expect:20}{r.error:10.2e} <= {r.tol:.0e}  {state}")
    failed = sum(not r.ok for r in results)
    rows = [dataclasses.asdict(r) | {"ok": r.ok} for r in results]
    text = f"{len(results) - failed} of {len(results)} checks passed"
    answer(args, text, {"checks": rows, "failed": failed})
    return 1 if failed else 0


# ------------------------------------------------------------------ what they say


def _model_facts(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """What there is to say of a tokenizer or a prior."""
    from ..files.tensor_files import Source
    from ..models.loading import kind_of, load_prior, load_tokenizer, resolve

    source = Source.open(resolve(name))
    device, dtype = device_and_dtype(args)
    facts: dict[str, Any] = {"file": source.path}
    model: Tokenizer | Prior
    if kind_of(source) == "prior":
        model = prior = load_prior(name, device=device, dtype=dtype)
        p = prior.config
        facts |= {
            "kind": "prior", "name": p.name, "fingerprint": prior.fingerprint,
            "tokenizer": f"{p.tokenizer} {p.tokenizer_fingerprint}".strip(), "takes": p.cond,
            "classes": len(p.classes), "registers": p.registers, "frames": p.frames,
            "depth": p.depth, "width": p.width, "guidance": dict(p.guidance),
            "temperature": p.temperature,
        }  # fmt: skip
    else:
        model = tokenizer = load_tokenizer(name, device=device, dtype=dtype)
        c = tokenizer.config
        facts |= {
            "kind": "tokenizer", "name": c.name, "fingerprint": tokenizer.fingerprint,
            "size": c.size, "registers": c.registers, "vocabulary": c.vocab, "fps": c.fps,
            "chunk_frames": c.chunk_frames, "overlap": c.overlap, "latent_shape": c.latent_shape,
            "sampling": dataclasses.asdict(c.sampling),
        }  # fmt: skip
        if c.distilled:
            facts["student"] = f"distilled to {c.distilled} passes without guidance"
        if c.preview is not None:
            facts["preview_decoder"] = dataclasses.asdict(c.preview)
    # Of state dicts: weights that stay in the host's memory are no parameters.
    parts = {n: sum(v.numel() for v in m.state_dict().values()) for n, m in model.named_children()}
    facts |= {
        "parameters": {n: count for n, count in parts.items() if count},
        "parameters_total": sum(parts.values()), "file_bytes": source.size,
    }  # fmt: skip
    licence = source.metadata.get("license")
    return facts | ({"license": licence} if licence else {})


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(v)}" for name, v in value.items())
    return " x ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
