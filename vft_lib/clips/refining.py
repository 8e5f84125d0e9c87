"""Detail for tokens of any budgets: `Prior.refine`, level by level where latent frames differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from ..errors import VftError
from ..prior.prior import Prior
from ..tokenizer.parts import Progress, part_of
from ..tokens import Tokens

STAGE = 1 << 32  # between the seeds of levels


def refine_tokens(
    prior: Prior, tokens: Tokens, budget: int | None = None, *, seed: int | Sequence[int] = 0,
    guidance: float | None = None, progress: Progress | None = None,
    partial: Callable[[Tokens], None] | None = None, **words: Any,
) -> Tokens:  # fmt: skip
    """`prior.refine(tokens, budget, ...)`, which see, also of tokens whose latent frames hold
    different budgets: every frame ends with `budget` ids, and what is there stays.

    All frames are brought to the second smallest budget that one holds; frames that hold so many
    take their own ids again; from there to the third, and so on. So what is written knows every
    coarser id that is there, if not those of its own level.
    """
    if tokens.budgets is None:
        return prior.refine(
            tokens, budget, seed=seed, guidance=guidance, progress=progress, partial=partial,
            **words,
        )  # fmt: skip
    c = prior.config
    budget = prior.check_budget(c.registers if budget is None else budget)
    if budget < tokens.budget:
        raise VftError(
            f"these tokens hold up to {tokens.budget} per latent frame already; choose a budget of "
            f"{tokens.budget} to {c.registers}, or truncate them"
        )
    guidance = c.guidance_for(budget) if guidance is None else guidance
    levels = sorted({*tokens.budgets, budget})
    seeds = [seed] if isinstance(seed, int) else list(seed)
    done = tokens.truncate(levels[0])
    for i, k in enumerate(levels[1:]):
        own = [(s + i * STAGE) % (1 << 64) for s in seeds]
        done = prior.refine(
            done, k, seed=own[0] if isinstance(seed, int) else own, guidance=guidance,
            progress=part_of(progress, i, len(levels) - 1), partial=partial, **words,
        )  # fmt: skip
        known = tokens.ids[:, :, :k]
        known = F.pad(known, (0, k - known.shape[2]), value=-1)
        ids = torch.where(known >= 0, known, done.ids)
        done = done.with_ids(ids, [k] * len(tokens.rows))
    return done


def check_even(tokens: Tokens, what: str) -> None:
    """VftError where latent frames hold different budgets: of a prior's order, ids are missing
    between those that are there, and `what` cannot be had."""
    if tokens.budgets is not None:
        raise VftError(
            f"these tokens hold {min(tokens.budgets)} to {tokens.budget} per latent frame already, "
            f"so {what}: give the tokens that they were cut from"
        )
