"""What the commands share: options, loading what they name, progress, and their answers."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ..errors import VftError, one_line

if TYPE_CHECKING:
    import torch

    from ..tokenizer.sampling import Sampling
    from ..tokenizer.tokenizer import Tokenizer
    from ..tokens import Tokens

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}  # that files are written in
MAX_LINE = 100_000  # characters of an answer

# torch is imported by the functions, not here: `vft --help` and a typing error answer at once.


def device_of(args: argparse.Namespace) -> torch.device | None:
    """What --device asks for; None: automatic."""
    import torch

    if args.device == "auto":
        return None
    known: dict[str, Callable[[], bool]] = {
        "cpu": lambda: True, "cuda": torch.cuda.is_available, "xpu": torch.xpu.is_available,
        "mps": torch.backends.mps.is_available,
    }  # fmt: skip
    try:
        device = torch.device(args.device)
        there = known[device.type]()
    except (RuntimeError, KeyError):
        raise VftError(
            f"--device {args.device} is unknown; give cpu, cuda, mps, xpu or auto"
        ) from None
    if not there:
        kind = device.type.upper()
        raise VftError(f"this machine has no {kind} device that torch can use; give --device cpu")
    return current(device)


def current(device: torch.device) -> torch.device:
    """`device`, made torch's current one: CUDA graphs, events and pinned memory belong to that.
    VftError if there are not so many."""
    import torch

    if device.type == "cuda" and device.index is not None:
        count = torch.cuda.device_count()
        if device.index >= count:
            raise VftError(f"there is no device {device}; this machine has {count} of them")
        torch.cuda.set_device(device)
    return device


def run_device(args: argparse.Namespace) -> torch.device:
    """What --device asks for; automatic: this process's own GPU, if there is one."""
    import torch

    local = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return device_of(args) or current(torch.device(local if torch.cuda.is_available() else "cpu"))


def run_dtype(args: argparse.Namespace) -> torch.dtype | None:
    """Autocast's, as --dtype asks for it; None: automatic."""
    import torch

    return None if args.dtype == "auto" else getattr(torch, args.dtype)


def device_and_dtype(args: argparse.Namespace) -> tuple[torch.device | None, torch.dtype | None]:
    """What --device and --dtype ask for; None: automatic."""
    import torch

    return device_of(args), None if args.dtype == "auto" else getattr(torch, args.dtype)


def stored_dtype(args: argparse.Namespace) -> torch.dtype | None:
    """The storage dtype that --dtype, one of DTYPES, asks for; None: as it is."""
    import torch

    return getattr(torch, DTYPES[args.dtype]) if args.dtype else None


def add_resource_options(parser: argparse.ArgumentParser, decoding: bool = True) -> None:
    """What a tokenizer may take: see :func:`load_tokenizer_for`."""
    group = parser.add_argument_group("speed and memory")
    group.add_argument("--attention", default="auto", help="auto (default), sdpa, xformers or flex")
    group.add_argument(
        "--memory", type=number, metavar="GB", default=0.5,
        help="about what the autoencoder may take beside its weights (0.5); the same result",
    )  # fmt: skip
    if not decoding:
        return
    group.add_argument(
        "--weights", metavar="int8|fp8",
        help="the flow decoder's in eight bits: less memory, not quite the same pictures",
    )  # fmt: skip
    group.add_argument("--compile", action="store_true", help="pays for many chunks or clips")


def add_dino_option(parser: argparse.ArgumentParser) -> None:
    """The image network of tokenizers that encode from its features."""
    parser.add_argument(
        "--dino", metavar="NAME|PATH",
        help="the DINOv2 network of SemanTok's tokenizers (dinov2-large)",
    )  # fmt: skip


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """How a decoder samples: see :func:`sampling_of`."""
    group = parser.add_argument_group("sampling")
    add_quality_option(group)
    group.add_argument("--steps", type=int, metavar="N", help="sampling steps")
    group.add_argument("--guidance", type=number, metavar="G", help="1: none")
    group.add_argument("--seed", type=seed_number, default=0, metavar="S")
    group.add_argument("--method", help="euler, or midpoint, heun: two velocities a step")
    group.add_argument("--shift", type=number, metavar="S", help="above 1: more steps in the noise")
    group.add_argument(
        "--interval", type=number, nargs=2, metavar=("LOW", "HIGH"),
        help="guidance only at these times, of 0 (clean) to 1 (noise)",
    )  # fmt: skip
    group.add_argument(
        "--reuse", type=number, metavar="T",
        help="leave out steps while the velocity changes by less than this share (0.1); 0: none",
    )  # fmt: skip


def add_quality_option(parser: Any) -> None:
    """What stands in for sampling options that are not given."""
    parser.add_argument(
        "--quality", default="normal", metavar="draft|normal|best",
        help="what the other sampling options are unless given: as measured for the model; a draft "
        "goes through the model's preview decoder, if it has one",
    )  # fmt: skip


def sampling_of(args: argparse.Namespace) -> Sampling:
    """What the options of :func:`add_sampling_options` ask for."""
    from ..tokenizer.sampling import Sampling

    return Sampling(
        args.steps, args.guidance, method=args.method, shift=args.shift, seed=args.seed,
        interval=None if args.interval is None else tuple(args.interval), reuse=args.reuse,
        quality=args.quality,
    )  # fmt: skip


def load_tokenizer_for(args: argparse.Namespace) -> Tokenizer:
    """The tokenizer of --tokenizer, where --device and --dtype say, with the options of
    :func:`add_resource_options`."""
    from ..models.loading import load_tokenizer
    from ..tokenizer.eight_bit import store_in_eight_bits

    if not 0 < args.memory <= 1e6:
        raise VftError(f"--memory {args.memory:g}: give gigabytes, more than 0")
    device, dtype = device_and_dtype(args)
    tokenizer = load_tokenizer(args.tokenizer, device=device, dtype=dtype)
    dino, encoding = getattr(args, "dino", None), args.command in ("demo", "encode", "eval")
    if dino or (encoding and tokenizer.config.encoder.reads_images):
        from ..image_features import PUBLISHED
        from ..models.loading import load_image_encoder

        network = load_image_encoder(dino or PUBLISHED, device=tokenizer.device)
        tokenizer.use_image_encoder(network)
    tokenizer.use_attention(args.attention)
    tokenizer.limit_memory(int(args.memory * 1e9))
    if getattr(args, "weights", None) is not None:
        store_in_eight_bits(tokenizer, args.weights)
    if getattr(args, "compile", False):
        tokenizer.compile_decoder()
    return tokenizer


def save_tokens(args: argparse.Namespace, tokens: Tokens, out: Path) -> None:
    """Write a token file and say what is in it."""
    tokens.save(out)
    facts = token_facts(out, tokens.facts, tokens.ids.shape[1:])
    least, most = min(tokens.rows), tokens.budget
    each = f"{most}" if least == most else f"{least} to {most}"
    text = (
        f"{out}: {len(tokens.rows)} x {each} = {tokens.count} tokens, {tokens.id_bytes} bytes "
        f"({facts['file_bytes']} with header), {tokens.frames} frames at {tokens.fps:g} fps, "
        f"{facts['bits_per_second']:.0f} bit/s"
    )
    answer(args, text, facts)


def token_facts(file: Path, facts: dict[str, Any], grid: Sequence[int]) -> dict[str, Any]:
    """What there is to say of a token file: `facts` as in `Tokens.facts`, grid (t, k). `budgets`
    only where latent frames differ."""
    t, k = grid
    facts = {name: value for name, value in facts.items() if name != "budgets" or value}
    count, seconds = sum(facts.get("budgets", (k,) * t)), facts["frames"] / facts["fps"]
    return {"file": file, "kind": "tokens"} | facts | {
        "grid": [t, k], "budget": k, "ids": count, "id_bytes": 2 * count,
        "file_bytes": file.stat().st_size, "seconds": round(seconds, 3),
        "bits_per_second": round(16 * count / seconds, 1),
    }  # fmt: skip


def answer(args: argparse.Namespace, text: str, facts: dict[str, Any]) -> None:
    """A command's result: a text, or under --json one object. Its lines may hold names from files
    of strangers."""
    args.bars.close()
    lines = (one_line(line, MAX_LINE) for line in text.split("\n"))
    print(json.dumps(facts, default=str) if args.json else "\n".join(lines))


def note(message: str) -> None:
    """A remark on stderr, beside a progress bar."""
    tqdm.write(f"vft: note: {one_line(message)}", file=sys.stderr)


def number(text: str) -> float:
    """A finite number."""
    if not math.isfinite(float(text)):
        raise ValueError
    return float(text)


def share(text: str) -> float:
    """A number from 0 to 1."""
    if not 0 <= float(text) <= 1:
        raise ValueError
    return float(text)


def shard_of(text: str | None) -> tuple[int, int]:
    """(I, N) of --shard I/N: of N processes, this is I, from 0; all the work without it."""
    try:
        index, count = (int(n) for n in (text or "0/1").split("/"))
        if 0 <= index < count:
            return index, count
    except ValueError:
        pass
    raise VftError(f"--shard {text}: give I/N, as in 0/4 to 3/4")


def seed_number(text: str) -> int:
    """A seed that torch's generators take."""
    if not 0 <= int(text) < 1 << 63:
        raise ValueError
    return int(text)


class Bars:
    """Makes a progress callback for each long step; one bar on stderr at a time."""

    def __init__(self) -> None:
        self._label, self._bar = "", tqdm(disable=True)

    def __call__(self, label: str, unit: str = "it") -> Callable[[int, int | None], None]:
        def update(done: int, total: int | None) -> None:
            if label != self._label:
                self.close()
                self._label = label
                self._bar = tqdm(
                    desc=label, total=total, file=sys.stderr, unit=unit, unit_scale=unit == "B"
                )
            self._bar.total = total
            self._bar.update(done - self._bar.n)

        return update

    def close(self) -> None:
        self._bar.close()
