"""The commands of the prior: `vft generate | refine | surprise`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import VftError
from ..files.atomic import check_place
from .common import (
    add_quality_option,
    add_resource_options,
    answer,
    device_and_dtype,
    load_tokenizer_for,
    note,
    number,
    save_tokens,
    seed_number,
    token_facts,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..prior.prior import Prior

WIDEST = 9  # latent frames: two chunks

# torch is imported by the commands, not here: `vft --help` and a typing error answer at once.

PLOTS = (".png", ".svg", ".pdf", ".jpg")


def add_prior_commands(command: Callable[..., Any]) -> None:
    """Add the prior's commands; `command(name, func, about)` makes a parser with the options that
    all commands share."""
    generate = command("generate", _generate, "a caption or a class -> clip, tokens or both")
    generate.add_argument("caption", nargs="?", metavar="CAPTION")
    generate.add_argument("-o", "--out", type=Path, metavar="CLIP.mp4")
    generate.add_argument("--tokens-out", type=Path, metavar="T.vft")
    length = generate.add_mutually_exclusive_group()
    length.add_argument("--frames", type=int, metavar="N", help="default: the longest clip")
    length.add_argument("--seconds", type=number, metavar="S", help="the same in seconds")
    generate.add_argument("--list-classes", action="store_true", help="print the classes and stop")
    generate.add_argument("--steps", type=int, metavar="N", help="sampling steps of the decoder")
    add_quality_option(generate)
    refine = command("refine", _refine, "coarse tokens -> the same clip with plausible detail")
    refine.add_argument("tokens", type=Path, metavar="T.vft")
    refine.add_argument("-o", "--out", type=Path, required=True, metavar="U.vft")
    refine.add_argument("--caption", metavar="TEXT", help="what the clip shows")
    add_resource_options(generate)
    refine.add_argument("--compile", action="store_true", help="compile the network first")
    for sub in (generate, refine):
        sub.add_argument("-k", "--budget", type=int, metavar="K", help="tokens per latent frame")
        sub.add_argument("--seed", type=seed_number, default=0, metavar="S")
        sub.add_argument("--guidance", type=number, metavar="G", help="of the prior; 1: none")
        sub.add_argument("--temperature", type=number, metavar="T", help="0: likeliest")
        sub.add_argument("--top-k", type=int, metavar="N", help="of the N likeliest ids only")
        sub.add_argument("--top-p", type=number, metavar="P", help="of the likeliest share P only")
    surprise = command("surprise", _surprise, "bits that each token of a clip carries")
    surprise.add_argument("tokens", type=Path, metavar="T.vft")
    surprise.add_argument("--plot", type=Path, metavar="P.png")
    surprise.add_argument("--caption", metavar="TEXT", help="bits beyond what this says")
    for sub in (generate, refine, surprise):
        sub.add_argument("--class", dest="class_name", metavar="NAME")
        sub.add_argument("--prior", default="default", metavar="NAME|PATH")
        sub.add_argument("--umt5", metavar="MODEL", help="read captions with this umT5")


def _generate(args: argparse.Namespace) -> None:
    from ..clips.stream import decode_file

    if not args.list_classes and args.out is None and args.tokens_out is None:
        raise VftError("name a clip to write with -o CLIP.mp4, or tokens with --tokens-out T.vft")
    for path in (args.out, args.tokens_out):
        if path is not None:
            check_place(path)
    prior = load_prior_for(args)
    if args.list_classes:
        names = list(prior.config.classes)
        if not names:
            raise VftError(f"prior {prior.config.name!r} has no classes: it takes captions")
        answer(args, "\n".join(names), {"prior": prior.config.name, "classes": names})
        return
    tokenizer = load_tokenizer_for(args)
    prior.bind(tokenizer)
    frames = args.frames
    if args.seconds is not None:
        frames = max(1, round(args.seconds * prior.config.fps))
    tokens = prior.generate(
        **_words(args, args.caption), budget=args.budget, frames=frames, seed=args.seed,
        guidance=args.guidance, temperature=args.temperature, top_k=args.top_k, top_p=args.top_p,
        progress=args.bars("write"),
    )  # fmt: skip
    if args.tokens_out is not None:
        if args.out is None:
            save_tokens(args, tokens, args.tokens_out)
            return
        tokens.save(args.tokens_out)
    frames = decode_file(
        tokenizer, tokens, args.out, steps=args.steps, seed=args.seed, quality=args.quality,
        progress=args.bars("decode"),
    )  # fmt: skip
    facts = {"file": args.out, "frames": frames, "fps": tokens.fps, "budget": tokens.budget}
    text = f"{args.out}: {frames} frames at {tokens.fps:g} fps from {tokens.count} written tokens"
    text += f", {tokenizer.passes}"
    if args.tokens_out is not None:
        facts["tokens"] = token_facts(args.tokens_out, tokens.facts, tokens.ids.shape[1:])
        text += f", kept in {args.tokens_out}"
    facts |= {"passes": dataclasses.asdict(tokenizer.passes)}
    answer(args, text, facts | {"prior": prior.config.name, "seed": args.seed})


def _refine(args: argparse.Namespace) -> None:
    from ..tokens import Tokens

    check_place(args.out)
    tokens = Tokens.load(args.tokens)
    prior = load_prior_for(args)
    refined = prior.refine(
        tokens, args.budget, **_words(args, args.caption), seed=args.seed,
        guidance=args.guidance, temperature=args.temperature, top_k=args.top_k, top_p=args.top_p,
        progress=args.bars("write"),
    )  # fmt: skip
    save_tokens(args, refined, args.out)


def _surprise(args: argparse.Namespace) -> None:
    from ..tokens import Tokens

    if args.plot is not None:
        check_place(args.plot)
        if args.plot.suffix.lower() not in PLOTS:
            raise VftError(f"--plot {args.plot}: give a name that ends in {', '.join(PLOTS)}")
    tokens = Tokens.load(args.tokens)
    prior = load_prior_for(args)
    words = _words(args, args.caption)
    if tokens.budgets is None and tokens.budget > prior.config.registers:
        tokens = tokens.truncate(prior.config.registers)
        note(f"the prior knows the first {tokens.budget} tokens of every latent frame")
    bits = prior.surprise(tokens, **words)[0]
    total, each = float(bits.sum()), bits.sum(0)
    kept = each.cumsum(0) / total
    t, k = bits.shape
    shown = t if t <= WIDEST else 0  # latent frames of a long clip do not fit beside each other
    frames = "".join(f"{f'frame {i}':>9}" for i in range(shown))
    lines = [f"{'register':>9}{frames}{'together':>10}{'kept':>7}"]
    for j in range(k):
        row = "".join(f"{float(b):9.1f}" for b in bits[:shown, j])
        lines.append(f"{j + 1:9}{row}{float(each[j]):10.1f}{float(kept[j]):7.0%}")
    lines.append(f"{total:.0f} bits in {t * k} tokens, {total / (t * k):.1f} each (16 as stored)")
    if args.plot is not None:
        _plot(bits, args.plot)
        lines.append(f"see {args.plot}")
    facts = {
        "file": args.tokens, "prior": prior.config.name, "bits": _rounded(bits),
        "by_register": _rounded(each), "kept": _rounded(kept), "total": round(total, 2),
    }  # fmt: skip
    answer(args, "\n".join(lines), facts)


def load_prior_for(args: argparse.Namespace) -> Prior:
    """The prior of --prior, where --device and --dtype say."""
    from ..models.loading import load_prior

    device, dtype = device_and_dtype(args)
    prior = load_prior(args.prior, device=device, dtype=dtype)
    return prior.compile_step() if getattr(args, "compile", False) else prior


def _words(args: argparse.Namespace, caption: str | None) -> dict[str, Any]:
    """The condition that was asked for, as arguments of generate, refine and surprise."""
    words: dict[str, Any] = {"class_name": args.class_name}
    if caption is None or args.umt5 is None:
        return words | {"caption": caption}
    from ..prior.umt5 import UMT5

    states, mask = UMT5(args.umt5)([caption])
    return words | {"states": states, "mask": mask}


def _plot(bits: Tensor, path: Path) -> None:
    """Bits by register as a heat map over the latent frames, and their running share."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from ..files.atomic import replacing

    each = bits.sum(0)
    k = len(each)
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    image = left.imshow(bits.numpy(), aspect="auto", cmap="magma", vmin=0)
    left.set(xlabel="register", ylabel="latent frame", title="bits per token")
    left.set_xticks(range(0, k, max(1, k // 8)), [str(i + 1) for i in range(0, k, max(1, k // 8))])
    fig.colorbar(image, ax=left)
    right.plot(range(1, k + 1), (100 * each.cumsum(0) / each.sum()).numpy(), "o-", ms=3)
    right.set(xlabel="budget", ylabel="bits kept (%)", ylim=(0, 102))
    right.grid(alpha=0.3)
    with replacing(path) as tmp:
        fig.savefig(tmp, dpi=110, format=path.suffix[1:].lower())
    plt.close(fig)


def _rounded(x: Tensor) -> Any:
    return [_rounded(v) for v in x] if x.ndim else round(float(x), 3)
