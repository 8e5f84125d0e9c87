"""Budgets that follow the clip: of the tokens that the whole clip may cost, most go where most
happens, by the prior's surprise."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import VftError
from ..prior.prior import Prior, bits_budget
from ..tokenizer.parts import Progress
from ..tokens import Tokens


def truncate_adaptive(
    prior: Prior, tokens: Tokens, *, count: int | None = None, id_bytes: int | None = None,
    keep_bits: float | None = None, progress: Progress | None = None,
) -> Tokens:  # fmt: skip
    """The first ids of every latent frame, as many as it is worth: in all exactly `count` a clip,
    or as many as fit `id_bytes`, or the fewest that keep the share `keep_bits` of the clip's bits.
    Clips of a batch share their budgets. `progress` as in `Prior.surprise`.

    Raises VftError unless one of the three is given, for tokens that another prior reads, and for
    those that hold different budgets already: what is cut away is not known any more.
    """
    if (count is not None) + (id_bytes is not None) + (keep_bits is not None) != 1:
        raise VftError("give a number of ids, of bytes, or a share of bits to keep, one of them")
    limit = None if keep_bits is not None else tokens.within(count=count, id_bytes=id_bytes)
    bits = prior.surprise(tokens, progress=progress).sum(0)
    return tokens.truncate(rows_for(bits, limit, 1.0 if keep_bits is None else keep_bits))


def rows_for(bits: Tensor, count: int | None = None, share: float = 1.0) -> list[int]:
    """How many ids each latent frame keeps, at least 1: `count` in all, or the fewest that keep
    `share` of a prior's bits `[t,k]`.

    What is missing of a frame falls about as its bits over its budget. The sum of these is least
    if each next id, from k to k + 1, goes where bits / k - bits / (k + 1) is largest.
    """
    t, k = bits.shape
    held = torch.arange(k)[:, None]
    worth = bits.double().sum(1).clamp_min(1e-6)
    gain = worth / (held * (held + 1))  # (k, t), the first ones infinite
    order = gain.flatten().argsort(descending=True, stable=True)  # equal ones in the order of time
    if count is None:
        count = bits_budget(bits.T.flatten()[order].double()[None], share)
    return torch.bincount(order[: max(t, count)] % t, minlength=t).tolist()
