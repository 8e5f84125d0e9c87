"""Budgets that follow the clip: of the tokens that the whole clip may cost, most go where most
happens, by the prior's surprise."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import VftError
from ..prior.prior import Prior, bits_budget
from ..tokens import Tokens

LOOKED_BACK = 8  # latent frames in which a repetition is looked for: two chunks of 17 frames
REPEATED = 1.0  # bits at most of an id that is one


def truncate_adaptive(
    prior: Prior, tokens: Tokens, *, count: int | None = None, id_bytes: int | None = None,
    keep_bits: float | None = None,
) -> Tokens:  # fmt: skip
    """The first ids of every latent frame, as many as it is worth: in all exactly `count` a clip,
    or as many as fit `id_bytes`, or the fewest that keep the share `keep_bits` of the clip's bits.
    Clips of a batch share their budgets.

    Raises VftError unless one of the three is given, for tokens that another prior reads, and for
    those that hold different budgets already: what is cut away is not known any more.
    """
    if (count is not None) + (id_bytes is not None) + (keep_bits is not None) != 1:
        raise VftError("give a number of ids, of bytes, or a share of bits to keep, one of them")
    limit = None if keep_bits is not None else tokens.within(count=count, id_bytes=id_bytes)
    bits, worth = judged(prior.surprise(tokens), tokens.ids)
    return tokens.truncate(rows_for(bits, worth, limit, 1.0 if keep_bits is None else keep_bits))


def judged(bits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """A prior's bits `[B,t,k]` of ids -> in bits, of all clips together, what ids tell `[t,k]` and
    what each latent frame is worth `[t]`.

    A still picture repeats the ids of the chunk before, of which a prior may see as little as one
    latent frame. So an id that the same register held within the last latent frames tells one bit
    at most, and the one that it repeats is worth its bits again: its picture is still shown.
    """
    t = ids.shape[1]
    here = torch.arange(t)[None, :, None].expand_as(ids)
    first = here.clone()  # where the id was shown first
    for back in range(min(LOOKED_BACK, t - 1), 0, -1):
        same = ids[:, back:] == ids[:, :-back]
        first[:, back:] = torch.where(same, here[:, :-back], first[:, back:])
    for i in range(t):
        first[:, i] = first.gather(1, first[:, i : i + 1])[:, 0]
    shown = torch.zeros_like(ids).scatter_add(1, first, torch.ones_like(ids))
    told = torch.where(first == here, bits, bits.clamp_max(REPEATED))
    worth = (told * shown.clamp_min(1)).sum((0, 2))
    # Chunks that share a frame keep its ids once: what repeats the very first is never seen.
    worth[0] = worth[:2].max()
    return told.sum(0), worth


def rows_for(
    bits: Tensor, worth: Tensor, count: int | None = None, share: float = 1.0
) -> list[int]:
    """How many ids each latent frame keeps, at least 1: `count` in all, or the fewest that keep
    `share` of the bits `[t,k]`. `worth` `[t]`: of each latent frame.

    What is missing of a frame falls about as its worth over its budget. The sum of these is least
    if each next id, from k to k + 1, goes where worth / k - worth / (k + 1) is largest.
    """
    t, k = bits.shape
    held = torch.arange(k)[:, None]
    gain = worth.double().clamp_min(1e-6) / (held * (held + 1))  # (k, t), the first ones infinite
    order = gain.flatten().argsort(descending=True, stable=True)  # equal ones in the order of time
    if count is None:
        count = bits_budget(bits.T.flatten()[order].double()[None], share)
    return torch.bincount(order[: max(t, count)] % t, minlength=t).tolist()
