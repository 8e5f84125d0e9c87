"""What comes into a prior, checked before any work: VftError says what was expected."""

from __future__ import annotations

from torch import Tensor

from ..config.prior import PriorConfig
from ..errors import VftError
from ..tokens import Tokens
from .order import windows
from .text import split_words


def check_bound(c: PriorConfig) -> None:
    """VftError unless the tokenizer is known by its fingerprint."""
    if not c.tokenizer_fingerprint:
        raise VftError(
            f"prior {c.name!r} knows its tokenizer by name only ({c.tokenizer!r}): in ComfyUI, "
            "connect that tokenizer to Load VFT Prior; in Python, call prior.bind(tokenizer)"
        )


def check_tokens(c: PriorConfig, tokens: Tokens) -> None:
    """VftError unless these are ids that this prior knows, in a number it can take."""
    check_bound(c)
    if tokens.fingerprint != c.tokenizer_fingerprint:
        raise VftError(
            f"these tokens were made by tokenizer {tokens.tokenizer!r} ({tokens.fingerprint}), "
            f"prior {c.name!r} writes those of {c.tokenizer!r} ({c.tokenizer_fingerprint})"
        )
    windows(c, tokens)
    check_budget(c, tokens.budget)
    ids = tokens.ids[:, tokens.there]
    if int(ids.max()) >= c.vocab or int(ids.min()) < 0:
        raise VftError(f"ids go up to {int(ids.max())}; expected less than {c.vocab}")


def check_even(tokens: Tokens) -> None:
    """VftError where latent frames hold different budgets: of the ids before another one, in a
    prior's order, some are not there."""
    if tokens.budgets is not None:
        raise VftError(
            f"these tokens hold {held(tokens)} per latent frame, so what each tells is not known "
            "any more: give the tokens that they were cut from"
        )


def held(tokens: Tokens) -> str:
    """How many ids a latent frame holds, in words."""
    least, most = min(tokens.rows), max(tokens.rows)
    return str(most) if least == most else f"{least} to {most}"


def check_budget(c: PriorConfig, budget: int) -> int:
    """`budget`, or VftError if it is not 1 .. K."""
    if not 1 <= budget <= c.registers:
        raise VftError(
            f"budget {budget} is out of range: prior {c.name!r} writes up to "
            f"{c.registers} tokens per latent frame; choose 1 to {c.registers}"
        )
    return budget


def class_number(c: PriorConfig, name: str) -> int:
    """The number of a class; VftError names some classes if there is none of that name."""
    classes = c.classes
    if name in classes:
        return classes.index(name)
    if not classes:
        raise VftError(f"prior {c.name!r} takes captions, not classes")
    near = [k for k in classes if name.lower() in k.lower()] or list(classes)
    more = ", …" if len(near) > 8 else ""
    raise VftError(f"no class {name!r}; there are {', '.join(near[:8])}{more}")


def check_frames(c: PriorConfig, frames: int | None) -> int:
    """`frames`, or the longest clip's; VftError if they are more than that."""
    frames = c.frames if frames is None else frames
    if not 1 <= frames <= c.frames:
        raise VftError(
            f"{frames} frames: prior {c.name!r} was trained on {c.latent_frames} latent frames "
            f"and writes 1 to {c.frames} frames; longer clips need a prior trained on more"
        )
    return frames


def count_clips(
    c: PriorConfig, encodes: bool, captions: list[str] | None, classes: list[str] | None,
    states: Tensor | None, count: int | None,
) -> int:  # fmt: skip
    """How many clips these conditions make; VftError if they contradict each other or the prior.
    `encodes`: it has a text encoder inside."""
    if captions is not None and states is not None:
        raise VftError("got a caption and text states; give one of them")
    if (captions is not None or states is not None) and not c.takes_text:
        raise VftError(
            f"prior {c.name!r} takes a class, not text: give one of those that "
            "`vft generate --list-classes` shows (in ComfyUI: Class-to-Token Prior, or class_name "
            "of Refine Tokens)"
        )
    if captions is not None and not encodes:
        raise VftError(
            f"prior {c.name!r} has no text encoder inside: give umT5 states (states=, mask=), "
            "or --umt5 on the command line"
        )
    for text in captions or []:
        if not split_words(text):
            raise VftError(f"the caption {text[:40]!r} holds no word; leave it out for none")
    if states is not None:
        width = states.shape[-1]
        if states.ndim not in (2, 3) or 0 in states.shape:
            raise VftError(f"text states are {list(states.shape)}; expected [B,S,{c.ctx_dim}]")
        if width != c.ctx_dim:
            raise VftError(
                f"text states have width {width}, prior {c.name!r} takes {c.ctx_dim}: "
                "they are from another text encoder"
            )
    given = [len(x) for x in (captions, classes) if x is not None]
    given += [] if states is None else [1 if states.ndim == 2 else len(states)]
    sizes = {n for n in [*given, count or 1] if n != 1}
    if len(sizes) > 1 or any(n < 1 for n in given) or (count is not None and count < 1):
        raise VftError(f"got {given} conditions for {count or max(given, default=1)} clips")
    return sizes.pop() if sizes else 1
