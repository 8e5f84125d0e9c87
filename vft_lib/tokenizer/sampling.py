"""How to sample: one value, from the caller down to the flow sampler."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from ..config.sampling import Method, Quality, Recipe, SamplingDefaults
from ..errors import VftError
from .flow import Guidance, Reuse, Schedule

NAMES = tuple(f.name for f in dataclasses.fields(Recipe))


def whole_seeds(seed: Any) -> int | list[int]:
    """One seed, or one a clip, as Python's numbers; NumPy's are taken too. VftError for others."""
    try:
        return index(seed) if isinstance(seed, int | np.integer) else [index(s) for s in seed]
    except TypeError:
        raise VftError(f"seed is {seed!r}; give a whole number, or one a clip") from None


@dataclass(frozen=True)
class Sampling:
    """How to sample; the first five, `interval` and `reuse` as in `config.sampling.Recipe`. None:
    what the checkpoint was measured best at for `quality`: "draft" (four passes or fewer),
    "normal" or "best". The pixels of a draft are the preview decoder's, where there is one.

    Every clip draws its noise from its own `seed`, one for all or one each, so that a batch gives
    each clip what it would get alone; a `generator` instead draws in the published order. Raises
    VftError for what cannot be sampled.
    """

    steps: int | None = None
    guidance: float | None = None
    apg: bool | None = None
    method: Method | None = None
    shift: float | None = None
    seed: int | Sequence[int] = 0
    generator: torch.Generator | None = None
    interval: tuple[float, float] | None = None
    reuse: float | None = None
    quality: Quality = "normal"

    def __post_init__(self) -> None:
        Recipe(**{n: v for n in NAMES if (v := getattr(self, n)) is not None})  # which checks them
        if self.quality not in get_args(Quality):
            known = ", ".join(get_args(Quality))
            raise VftError(f"quality is {self.quality!r}; choose {known}")
        seeds = whole_seeds(self.seed)
        object.__setattr__(self, "seed", seeds)
        for seed in [seeds] if isinstance(seeds, int) else seeds:
            if not -(1 << 63) <= seed < 1 << 64:
                raise VftError(f"seed {seed} is out of range; choose 0 to {(1 << 64) - 1}")

    @staticmethod
    def of(sampling: Sampling | None, fields: dict[str, Any]) -> Sampling:
        """`sampling`, with `fields` in place of its own."""
        return dataclasses.replace(sampling or Sampling(), **fields)

    def settled(self, best: SamplingDefaults) -> Sampling:
        """With nothing left open."""
        recipe = best.of(self.quality)
        open_ = {n: getattr(recipe, n) for n in NAMES if getattr(self, n) is None}
        if self.method not in (None, "euler"):
            open_ |= {"reuse": self.reuse or 0.0}  # the checkpoint's is of euler
        return dataclasses.replace(self, **open_)

    @property
    def recipe(self) -> Recipe:
        """Of a settled one."""
        return Recipe(**{name: getattr(self, name) for name in NAMES})

    def schedule(self) -> Schedule:
        """Of a settled one."""
        recipe = self.recipe
        return Schedule(recipe.steps, recipe.method, recipe.shift)

    def guide(self) -> Guidance:
        """Of a settled one; anew, as it keeps its momentum from step to step."""
        return Guidance(self.recipe.guidance, self.recipe.apg)

    def guided_at(self, time: float) -> bool:
        """Of a settled one: whether there is an unconditional pass at a time, 0 to 1."""
        low, high = self.recipe.interval
        return self.guidance != 1 and low <= time <= high

    def reuser(self) -> Reuse | None:
        """Of a settled one; anew, for each chunk. The first two passes and the last always run, and
        the first one with or without guidance."""
        if not self.reuse:
            return None
        guided = [self.guided_at(t) for t in self.schedule().asked()]
        turns = {i for i in range(1, len(guided)) if guided[i] != guided[i - 1]}
        return Reuse(self.reuse, {0, 1, len(guided) - 1, *turns})

    def noise(self, batch: int) -> Callable[[tuple[int, ...]], Tensor]:
        """Draws `[B, *shape]` normal noise in float32 on the CPU, clip by clip; the generators run
        on from chunk to chunk. VftError for another number of seeds than clips."""
        seeds = [self.seed] * batch if isinstance(self.seed, int) else list(self.seed)
        if len(seeds) != batch:
            raise VftError(f"got {len(seeds)} seeds for {batch} clips; give one, or one each")
        generators = [self.generator or torch.Generator().manual_seed(s) for s in seeds]
        return lambda shape: torch.cat([torch.randn((1, *shape), generator=g) for g in generators])
