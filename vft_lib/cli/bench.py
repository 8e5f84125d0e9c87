"""The commands `vft bench` and `vft gpu-check`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from .common import answer, device_of, number


def add_bench_parser(commands: Any) -> None:
    """Adds `bench` and `gpu-check` to the subparsers `commands`."""
    check = commands.add_parser("gpu-check", help="all that only a GPU proves, in a few minutes")
    check.set_defaults(func=_gpu_check)
    check.add_argument("parts", nargs="*", metavar="PART", help="some of its parts; default: all")
    check.add_argument("--minutes", type=number, default=4, help="in all (4)")
    check.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder of the report")
    check.add_argument("--device", default="auto", help="cpu (tiny sizes), cuda or auto (default)")
    check.add_argument("--cases", type=Path, help="folder of parity cases; default: the checkout's")
    check.add_argument("--json", action="store_true", help="print one JSON object")
    bench = commands.add_parser("bench", help="what each stage costs on this machine")
    bench.set_defaults(func=_bench)
    bench.add_argument(
        "sizes", nargs="*", metavar="SIZE",
        help="default, k600, d28, prior-d16 (the last three on made-up weights)",
    )  # fmt: skip
    bench.add_argument("--device", default="auto", help="cpu, cuda, mps, xpu or auto (default)")
    bench.add_argument(
        "--dtype", default="auto", choices=("float32", "bfloat16", "float16", "auto"),
        help="auto: bfloat16 (float16 on cards without it) on a GPU, else float32",
    )  # fmt: skip
    bench.add_argument("--attention", default="auto", help="auto (default), sdpa, xformers or flex")
    bench.add_argument(
        "--count", type=int, metavar="K",
        help="count the passes and operations of sampler options at budget K (k600, d28) instead",
    )  # fmt: skip
    bench.add_argument("--repeat", type=int, default=3, metavar="N", help="the best of N runs")
    bench.add_argument("--json", action="store_true", help="print one JSON object")


def _gpu_check(args: argparse.Namespace) -> int:
    from ..gpu_check.check import run_gpu_check

    found = run_gpu_check(
        args.out, minutes=args.minutes, device=device_of(args), cases=args.cases, only=args.parts
    )
    lines = [f"{args.out / 'gpu-check.md'}: {found['device']}, {found['seconds']} s"]
    lines += [f"missed: {what}" for what in found["failed"]]
    lines += [f"not proven: {what}" for what in found["unproven"]]
    answer(args, "\n".join(lines), found)
    return 1 if found["failed"] or found["errors"] else 0


def _bench(args: argparse.Namespace) -> None:
    import torch

    from ..measure.bench import count_options, run_bench
    from ..models.loading import usual_dtype

    if args.count is not None:
        found = [row for size in args.sizes or ["d28"] for row in count_options(size, args.count)]
        lines = [
            f"operations of a chunk at k = {args.count}",
            f"{'size':8}{'option':34}{'passes':>8}{'sampler TFLOP':>15}{'autoencoder TFLOP':>19}",
        ]
        lines += [
            f"{r.size:8}{r.option:34}{r.passes:8}{r.sampler_tflop:15.1f}{r.autoencoder_tflop:19.1f}"
            for r in found
        ]
        answer(args, "\n".join(lines), {"rows": [dataclasses.asdict(r) for r in found]})
        return
    device = device_of(args) or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = usual_dtype(device) if args.dtype == "auto" else getattr(torch, args.dtype)
    rows, facts = run_bench(
        args.sizes or ["default"], device, dtype, repeat=max(1, args.repeat),
        attention=args.attention, progress=args.bars("bench"),
    )  # fmt: skip
    lines = [
        f"{facts['device']}, {facts['threads']} threads, {facts['dtype']}: matrix products reach "
        f"{facts['matmul_gflops']:,} GFLOP/s; peak memory {facts['peak_memory_gb']} GB",
        f"{'size':10}{'stage':46}{'seconds':>10}{'GFLOP':>11}{'of matmul rate':>16}",
    ]
    lines += [
        f"{r.size:10}{r.stage:46}{r.seconds:10.4f}{r.gflop:11.1f}{r.share:16.0%}" for r in rows
    ]
    answer(args, "\n".join(lines), facts | {"rows": [dataclasses.asdict(r) for r in rows]})
