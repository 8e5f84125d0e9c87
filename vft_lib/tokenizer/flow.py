"""The flow sampler: noise -> latents, and the guidance of its velocity.

Rectified flow (Liu et al. 2022, arXiv 2209.03003): x_t = (1-t)·clean + t·noise, so the velocity is
noise - clean and a step of 1/N is x <- x - v/N. State and guidance stay in float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ..config.sampling import Method, Recipe
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
        Recipe(self.steps, method=self.method, shift=self.shift)  # which checks them

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


class Reuse:
    """Leaves out passes of one chunk's sampler while little changes: then the last velocity that
    was computed is used again.

    How much it will have changed is estimated as EasyCache does (Zhou et al. 2025, arXiv
    2507.02860): from step to step the latents change by |dx|, and the velocity by k |dx|, k as
    found at the last pass. The sum of k |dx| / |v| since that pass is held below `threshold`. What
    is used again is the velocity v, not v - x as there: along the straight paths of a rectified
    flow v is what stays the same. |.| sums over a clip's latents that are not pinned.

    Each clip decides for itself. A pass of a batch runs if any of its clips needs one; the others
    keep what they have, so that none depends on its neighbours. `always`: the numbers of the times
    (of `Schedule.asked`) at which a pass runs in any case; 0 and 1 must be among them.
    """

    def __init__(self, threshold: float, always: Container[int]) -> None:
        self.threshold, self.always = threshold, always
        self._asked = 0
        self._x = self._velocity = self._rate = self._sum = torch.empty(0)

    def __call__(self, x: Tensor, compute: Callable[[], Tensor], pinned: int) -> Tensor:
        """The velocity for latents x `[B,C,t,h,w]`, of which `pinned` frames are given; `compute`
        runs the pass."""
        number = self._asked
        self._asked += 1
        if number == 0:
            self._x, self._velocity = x, compute()
            self._rate = self._sum = x.new_zeros(len(x))
            return self._velocity

        def size(latents: Tensor) -> Tensor:
            return latents[:, :, pinned:].abs().sum((1, 2, 3, 4)).clamp_min(1e-12)

        change = size(x - self._x)
        self._x = x
        self._sum = self._sum + self._rate * change / size(self._velocity)
        due = self._sum >= self.threshold
        if number in self.always:
            due = torch.ones_like(due)
        if number in self.always or bool(due.any()):  # where the host waits for the device
            new = compute()
            self._rate = torch.where(due, size(new - self._velocity) / change, self._rate)
            self._sum = self._sum.masked_fill(due, 0)
            self._velocity = torch.where(due.view(-1, 1, 1, 1, 1), new, self._velocity)
        return self._velocity


def sample(
    velocity: Velocity, noise: Tensor, schedule: Schedule, guidance: Guidance,
    pinned: Tensor | None = None, progress: Callable[[int, int], None] | None = None,
    estimate: Callable[[Tensor], None] | None = None, reuse: Reuse | None = None,
) -> Tensor:  # fmt: skip
    """From `noise` `[B,C,t,h,w]` (t=1) to clean latents (t=0) along `schedule`.

    `pinned` `[B,C,p,h,w]` are given latents: they replace frames 0..p-1 before every step and
    after the last. `progress(done, steps)` is called after each step; raise in it to cancel.
    `estimate(latents)` gets the clean latents that the step points at, x_t - t·v. `reuse` may
    leave out passes.
    """

    def pin(x: Tensor) -> Tensor:
        return x if pinned is None else torch.cat([pinned.to(x), x[:, :, pinned.shape[2] :]], dim=2)

    def compute(x: Tensor, t: float) -> Tensor:
        cond, uncond = velocity(x, t)
        return cond if uncond is None else guidance(cond, uncond)

    def ask(x: Tensor, t: float) -> Tensor:
        if reuse is None:
            return compute(x, t)
        return reuse(x, partial(compute, x, t), 0 if pinned is None else pinned.shape[2])

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
