"""The flow sampler: noise -> latents, and the guidance of its velocity.

Rectified flow (Liu et al. 2022, arXiv 2209.03003): x_t = (1-t)·clean + t·noise, so the velocity is
noise - clean and a step of 1/N is x <- x - v/N. State and guidance stay in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(latents, timestep `[B]`) -> conditional and, under guidance, unconditional velocity."""


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
        along = cond.double()
        along = along / torch.linalg.vector_norm(along, dim=axes, keepdim=True).clamp(min=1e-12)
        parallel = (diff.double() * along).sum(axes, keepdim=True) * along
        diff = diff.double() - parallel + self.eta * parallel
        return cond + (self.scale - 1) * diff.to(cond)


def sample(
    velocity: Velocity, noise: Tensor, steps: int, guidance: Guidance,
    pinned: Tensor | None = None, progress: Callable[[int, int], None] | None = None,
    estimate: Callable[[Tensor], None] | None = None,
) -> Tensor:  # fmt: skip
    """Euler steps from `noise` `[B,C,t,h,w]` (t=1) to clean latents (t=0).

    `pinned` `[B,C,p,h,w]` are given latents: they replace frames 0..p-1 before every step and
    after the last. `progress(done, steps)` is called after each step; raise in it to cancel.
    `estimate(latents)` gets the clean latents that the step points at, x_t - t·v.
    """
    x = noise.float()
    p = 0 if pinned is None else pinned.shape[2]
    for i in range(steps, 0, -1):
        if pinned is not None:
            x = torch.cat([pinned.to(x), x[:, :, p:]], dim=2)
        cond, uncond = velocity(x, x.new_full((len(x),), i / steps))
        v = cond if uncond is None else guidance(cond, uncond)
        if estimate is not None:
            estimate(x - v * (i / steps))
        x = x - v / steps
        if progress is not None:
            progress(steps - i + 1, steps)
    return x if pinned is None else torch.cat([pinned.to(x), x[:, :, p:]], dim=2)
