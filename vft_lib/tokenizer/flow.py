"""The flow sampler: noise -> latents, and the guidance of its velocity.

Rectified flow (Liu et al. 2022, arXiv 2209.03003): x_t = (1-t)·clean + t·noise, so the velocity is
noise - clean and a step of 1/N is x <- x - v/N. State and guidance stay in float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import VftError
from ..transformer.graphs import Pace

Velocity = Callable[[Tensor, float], tuple[Tensor, Tensor | None]]
"""(latents, time) -> conditional and, under guidance, unconditional velocity."""


@dataclass
class Guidance:
    """Pushes the conditional velocity away from the unconditional one, `scale` times as far.

    Plain (Ho & Salimans 2022, arXiv 2207.12598): u + g(c-u). Projected (`apg`, Sadat et al. 2024,
    arXiv 2410.02416): c + (g-1)·d, where the difference d = c-u is summed with `momentum`, clipped
    to `norm_threshold` (<= 0: not clipped) and stripped of all but `eta` of its part along c.
    Norms and projections run over (t,h,w), per clip and channel.
    """

    scale: float = 1.0
    apg: bool = True
    eta: float = 0.0
    momentum: float = 0.0
    norm_threshold: float = 0.6
    running: Tensor | None = field(default=None, init=False, repr=False)

    def __call__(self, cond: Tensor, uncond: Tensor) -> Tensor:
        """Velocities `[B,C,t,h,w]` -> guided velocity. Successive calls share the momentum."""
        if not self.apg:
            return uncond + self.scale * (cond - uncond)
        axes = (2, 3, 4)
        diff = cond - uncond
        if self.momentum:
            if self.running is not None:
                diff = diff + self.momentum * self.running
            self.running = diff  # before clipping
        if self.norm_threshold > 0:
            length = torch.linalg.vector_norm(diff, dim=axes, keepdim=True)
            # A zero difference stays zero: threshold / 0 is inf, and min(1, inf) is 1.
            diff = diff * (self.norm_threshold / length).clamp(max=1.0)
        # In float32, where the published code takes float64: Apple's GPUs have none.
        along = cond.float()
        along = along / torch.linalg.vector_norm(along, dim=axes, keepdim=True).clamp(min=1e-12)
        parallel = (diff.float() * along).sum(axes, keepdim=True) * along
        diff = diff.float() - parallel + self.eta * parallel
        return cond + (self.scale - 1) * diff.to(cond)


Method = Literal["euler", "heun", "midpoint"]


@dataclass(frozen=True)
class Schedule:
    """`steps` from t=1 (noise) to t=0 (clean).

    `method`: "euler" asks for one velocity a step; "midpoint" and "heun" for two, and err by the
    step's cube in place of its square. `shift` s moves the times t to st / (1 + (s-1)t) (Esser et
    al. 2024, arXiv 2403.03206): above 1, more of the steps are spent among the noise.
    """

    steps: int
    method: Method = "euler"
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise VftError(f"steps is {self.steps}; choose 1 or more (25 is usual)")
        if self.method not in get_args(Method):
            raise VftError(f"method is {self.method!r}; choose {', '.join(get_args(Method))}")
        if not 0 < self.shift <= 100:
            raise VftError(f"shift is {self.shift}; choose more than 0, at most 100 (1: none)")

    def times(self) -> list[float]:
        """`steps` + 1 numbers from 1 to 0."""
        even = [i / self.steps for i in range(self.steps, -1, -1)]
        return [self.shift * t / (1 + (self.shift - 1) * t) for t in even]

    def asked(self) -> list[float]:
        """The times at which :func:`sample` asks for a velocity, in its order."""
        found = []
        for t, after in itertools.pairwise(self.times()):
            found.append(t)
            if self.method == "midpoint":
                found.append((t + after) / 2)
            elif self.method == "heun" and after > 0:
                found.append(after)
        return found


def sample(
    velocity: Velocity, noise: Tensor, schedule: Schedule, guidance: Guidance,
    pinned: Tensor | None = None, progress: Callable[[int, int], None] | None = None,
    estimate: Callable[[Tensor], None] | None = None,
) -> Tensor:  # fmt: skip
    """From `noise` `[B,C,t,h,w]` (t=1) to clean latents (t=0) along `schedule`.

    `pinned` `[B,C,p,h,w]` are given latents: they replace frames 0..p-1 before every step and
    after the last. `progress(done, steps)` is called after each step; raise in it to cancel.
    `estimate(latents)` gets the clean latents that the step points at, x_t - t·v.
    """

    def pin(x: Tensor) -> Tensor:
        return x if pinned is None else torch.cat([pinned.to(x), x[:, :, pinned.shape[2] :]], dim=2)

    def ask(x: Tensor, t: float) -> Tensor:
        cond, uncond = velocity(x, t)
        return cond if uncond is None else guidance(cond, uncond)

    pace = Pace(noise.device)
    x = noise.float()
    for i, (t, after) in enumerate(itertools.pairwise(schedule.times())):
        x, step = pin(x), t - after
        v = ask(x, t)
        if estimate is not None:
            estimate(x - v * t)
        if schedule.method == "midpoint":
            v = ask(pin(x - v * (step / 2)), (t + after) / 2)
        elif schedule.method == "heun" and after > 0:
            v = (v + ask(pin(x - v * step), after)) / 2
        x = x - v * step
        if progress is not None:
            pace()
            progress(i + 1, schedule.steps)
    return pin(x)
