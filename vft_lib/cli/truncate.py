"""`vft truncate`: fewer tokens, by a budget, by what they may cost, or by what they say."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import VftError
from ..files.atomic import check_place
from .common import note, number, save_tokens

if TYPE_CHECKING:
    from ..tokens import Tokens

KEPT = 0.9  # share of the bits, unless --keep-bits says another


def add_truncate_parser(command: Callable[..., Any]) -> None:
    """Add the command; `command(name, func, about)` as in `vft.build_parser`."""
    sub = command("truncate", _truncate, "token file -> the same clip with fewer tokens")
    sub.add_argument("tokens", type=Path, metavar="T.vft")
    sub.add_argument("-o", "--out", type=Path, required=True, metavar="U.vft")
    sub.add_argument("-k", "--budget", type=int, metavar="K", help="tokens per latent frame")
    sub.add_argument("--tokens", type=int, dest="count", metavar="N", help="in all, at most")
    sub.add_argument("--bytes", type=int, metavar="N", help="of all tokens, at most")
    sub.add_argument("--auto", action="store_true", help="the smallest K that says enough")
    sub.add_argument(
        "--adaptive", action="store_true",
        help="a budget for each latent frame, larger where more happens; -k is then the mean",
    )  # fmt: skip
    sub.add_argument(
        "--keep-bits", type=number, metavar="SHARE",
        help=f"how much of the clip's information to keep, with --auto or --adaptive ({KEPT})",
    )  # fmt: skip
    sub.add_argument("--prior", default="default", metavar="NAME|PATH", help="which one judges")


def _truncate(args: argparse.Namespace) -> None:
    from ..tokens import Tokens

    sizes = [args.budget, args.count, args.bytes]
    given = sum(size is not None for size in sizes)
    judged = args.auto or args.adaptive
    if args.auto and args.adaptive:
        raise VftError("--auto is one budget, --adaptive one for each latent frame; choose one")
    if given > 1 or (args.auto and given) or (given and args.keep_bits is not None):
        raise VftError("give one of -k K, --tokens N, --bytes N and --keep-bits SHARE")
    if not given and not judged:
        raise VftError(
            "give a budget with -k K, --tokens N or --bytes N, or --auto or --adaptive to have it "
            "chosen"
        )
    check_place(args.out)
    tokens = Tokens.load(args.tokens)
    save_tokens(args, _adaptive(args, tokens) if args.adaptive else _even(args, tokens), args.out)


def _even(args: argparse.Namespace, tokens: Tokens) -> Tokens:
    if args.auto:
        return tokens.truncate(_auto_budget(args, tokens))
    if args.budget is not None:
        return tokens.truncate(args.budget)
    return tokens.truncate(tokens.budget_within(count=args.count, id_bytes=args.bytes))


def _auto_budget(args: argparse.Namespace, tokens: Tokens) -> int:
    from ..prior.prior import bits_budget
    from .prior import load_prior_for

    share = _share(args)
    budget = bits_budget(load_prior_for(args).surprise(tokens)[0], share)
    note(f"{budget} of {tokens.budget} registers keep {share:.0%} of the bits")
    return budget


def _adaptive(args: argparse.Namespace, tokens: Tokens) -> Tokens:
    from ..clips.adaptive import truncate_adaptive
    from .prior import load_prior_for

    count, share = args.count, None
    if args.budget is not None:
        tokens.truncate(args.budget)  # a mean beyond what there is, is refused in its words
        count = args.budget * len(tokens.rows)
    if count is None and args.bytes is None:
        share = _share(args)
    return truncate_adaptive(
        load_prior_for(args), tokens, count=count, id_bytes=args.bytes, keep_bits=share
    )


def _share(args: argparse.Namespace) -> float:
    share = KEPT if args.keep_bits is None else args.keep_bits
    if not 0 < share <= 1:
        raise VftError(f"--keep-bits {share:g}: choose more than 0, at most 1")
    return share
