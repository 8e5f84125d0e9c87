"""Who sees whom: boolean attention masks over the packed sequence. Pure functions.

A clip is packed frame by frame: the `p` patches of latent frame 0, its `r` registers, the patches
of frame 1, … In the published configs patches are called "prefix" and registers "nonprefix".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..config.tokenizer import MaskConfig

Result = TypeVar("Result")


def remembered(function: Callable[..., Result]) -> Callable[..., Result]:
    """`lru_cache` that torch.compile can trace: while it does, the function is called as it is, and
    what it makes becomes a part of the graph."""

    @lru_cache(maxsize=64)
    def cached(*args: Any) -> Result:
        with torch.inference_mode(False):  # who asks next may be training
            return function(*args)

    @wraps(function)
    def call(*args: Any) -> Result:
        if torch.compiler.is_compiling():
            return function(*args)
        result, held = cached(*args), _held.get()
        if held is not None:
            held.append(result)
        return result

    return call


_held: ContextVar[list[Any] | None] = ContextVar("held", default=None)


@contextmanager
def holding(results: list[Any]) -> Iterator[None]:
    """Append what functions that are :func:`remembered` return to `results` meanwhile: a captured
    step goes on reading it after it has been forgotten here."""
    token = _held.set(results)
    try:
        yield
    finally:
        _held.reset(token)


def sees(config: MaskConfig, p: int | Tensor, each: int | Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Whether the positions `q` see the positions `k` (integers that broadcast): `each` tokens a
    frame, the first `p` of them patches. Elementwise, so that it serves masks of any part and
    flex attention, which asks for one pair at a time."""
    if config.mode == "full":
        return (q >= 0) & (k >= 0)
    if config.mode == "causal":
        return k <= q
    q_frame, q_slot, k_frame, k_slot = q // each, q % each, k // each, k % each
    if config.mode == "time_block_causal":
        return k_frame <= q_frame
    q_register, k_register = q_slot >= p, k_slot >= p
    # Inside a frame: everyone sees all patches; a register also sees registers up to itself.
    own = (k_frame == q_frame) & (~k_register | (q_register & (k_slot <= q_slot)))
    earlier = k_frame < q_frame
    if config.mode == "time_block_causal_last":
        return own | earlier
    switches = {
        (False, False): config.prefix2prefix,
        (False, True): config.prefix2nonprefix,
        (True, False): config.nonprefix2prefix,
        (True, True): config.nonprefix2nonprefix,
    }
    seen = own
    for (from_register, to_register), switch in switches.items():
        pair = (q_register == from_register) & (k_register == to_register) & earlier
        if switch == "full":
            seen = seen | pair
        elif switch == "causal":
            seen = seen | (pair & (k_slot <= q_slot))
    return seen


def attention_mask(
    config: MaskConfig, t: int, p: int, r: int, device: torch.device
) -> Tensor | None:
    """`[t·(p+r), t·(p+r)]` bool, True where row (query) sees column (key); None: all see all."""
    if config.mode == "full":
        return None
    place = torch.arange(t * (p + r), device=device)
    return sees(config, p, p + r, place[:, None], place[None])


@remembered
def frame_mask(
    config: MaskConfig, frame: int, p: int, r: int, device: torch.device
) -> Tensor | None:
    """The rows of one frame, up to its last column: `[p+r, (frame+1)·(p+r)]`. No mode looks into
    later frames but "full". None: all of it is seen."""
    if config.mode in ("full", "time_block_causal"):
        return None
    end = (frame + 1) * (p + r)
    place = torch.arange(end, device=device)
    return sees(config, p, p + r, place[-(p + r) :, None], place[None])
