"""How to sample: one value, from the caller down to the flow sampler."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config.tokenizer import SamplingDefaults
from ..errors import VftError
from .flow import Guidance, Method, Schedule


@dataclass(frozen=True)
class Sampling:
    """`steps`, `guidance` (1: none) and `apg` (projected guidance); None: what the checkpoint was
    measured best at. `method` and `shift` as in `flow.Schedule`.

    Every clip draws its noise from its own `seed`, one for all or one each, so that a batch gives
    each clip what it would get alone; a `generator` instead draws in the published order. Raises
    VftError for what cannot be sampled.
    """

    steps: int | None = None
    guidance: float | None = None
    apg: bool | None = None
    method: Method = "euler"
    shift: float = 1.0
    seed: int | Sequence[int] = 0
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        Schedule(1 if self.steps is None else self.steps, self.method, self.shift)
        for seed in [self.seed] if isinstance(self.seed, int) else self.seed:
            if not -(1 << 63) <= seed < 1 << 64:
                raise VftError(f"seed {seed} is out of range; choose 0 to {(1 << 64) - 1}")

    @staticmethod
    def of(sampling: Sampling | None, fields: dict[str, Any]) -> Sampling:
        """`sampling`, with `fields` in place of its own."""
        return dataclasses.replace(sampling or Sampling(), **fields)

    def settled(self, best: SamplingDefaults) -> Sampling:
        """With no None left among `steps`, `guidance` and `apg`."""
        kept = {k: v for k, v in dataclasses.asdict(best).items() if getattr(self, k) is None}
        return dataclasses.replace(self, **kept)

    @property
    def guided(self) -> bool:
        """Whether there is an unconditional pass."""
        return self.guidance != 1

    def schedule(self) -> Schedule:
        """Of a settled one."""
        assert self.steps is not None
        return Schedule(self.steps, self.method, self.shift)

    def guide(self) -> Guidance:
        """Of a settled one; anew, as it keeps its momentum from step to step."""
        assert self.guidance is not None
        assert self.apg is not None
        return Guidance(self.guidance, self.apg)

    def noise(self, batch: int) -> Callable[[tuple[int, ...]], Tensor]:
        """Draws `[B, *shape]` normal noise in float32 on the CPU, clip by clip; the generators run
        on from chunk to chunk. VftError for another number of seeds than clips."""
        seeds = [self.seed] * batch if isinstance(self.seed, int) else list(self.seed)
        if len(seeds) != batch:
            raise VftError(f"got {len(seeds)} seeds for {batch} clips; give one, or one each")
        generators = [self.generator or torch.Generator().manual_seed(s) for s in seeds]
        return lambda shape: torch.cat([torch.randn((1, *shape), generator=g) for g in generators])
