"""How a flow decoder is sampled: a recipe, and those that a checkpoint was measured best at."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from ..errors import ConfigError

Method = Literal["euler", "heun", "midpoint"]
Quality = Literal["draft", "normal", "best"]

MAX_STEPS = 10_000
DRAFT_PASSES = 4  # at most, where a checkpoint brings no draft of its own


@dataclass(frozen=True)
class Recipe:
    """`steps`, `method` and `shift` as in `flow.Schedule`; `guidance` (1: none), projected with
    `apg`, as in `flow.Guidance`. Outside of the `interval` of times, 0 (clean) to 1 (noise), there
    is no unconditional pass. `reuse` as in `flow.Reuse` (0: every pass runs). ConfigError for what
    cannot be sampled."""

    steps: int = 25
    guidance: float = 1.0
    apg: bool = True
    method: Method = "euler"
    shift: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    reuse: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MAX_STEPS:
            raise ConfigError(
                f"steps is {self.steps}; choose 1 or more, at most {MAX_STEPS} (25 is usual)"
            )
        if self.method not in get_args(Method):
            raise ConfigError(f"method is {self.method!r}; choose {', '.join(get_args(Method))}")
        if not 0 < self.shift <= 100:
            raise ConfigError(f"shift is {self.shift}; choose more than 0, at most 100 (1: none)")
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise ConfigError(
                f"interval is {low:g} to {high:g}; choose times from 0 (clean) to 1 (noise)"
            )
        if not 0 <= self.reuse <= 10:
            raise ConfigError(f"reuse is {self.reuse}; choose 0 (none) to 10, 0.1 is usual")
        if self.reuse and self.method != "euler":
            raise ConfigError(f"reuse leaves out passes of euler only, method is {self.method}")

    @property
    def words(self) -> str:
        """All of it, for the protocol of a number: "Euler, 30 steps, guidance 3 projected"."""
        low, high = self.interval
        guidance = f"guidance {self.guidance:g}"
        if self.guidance != 1:
            guidance += " projected" * self.apg
            guidance += f" from {low:g} to {high:g}" * (self.interval != (0, 1))
        parts = [self.method.capitalize(), f"{self.steps} steps", guidance]
        parts += [f"shift {self.shift:g}"] * (self.shift != 1)
        parts += [f"reuse {self.reuse:g}"] * (self.reuse != 0)
        return ", ".join(parts)


@dataclass(frozen=True)
class SamplingDefaults(Recipe):
    """What `Sampling` leaves open, measured on the checkpoint (see its card): the "normal" recipe,
    and those for a `draft` and for the `best` quality, None where they were not measured."""

    draft: Recipe | None = None
    best: Recipe | None = None

    def of(self, quality: Quality) -> Recipe:
        """The recipe of a quality. What was not measured: a draft is the normal recipe in at most
        four passes, the best the normal one."""
        normal = Recipe(**{f.name: getattr(self, f.name) for f in fields(Recipe)})
        if quality == "draft" and self.draft is None:
            most = DRAFT_PASSES // (1 if self.guidance == 1 else 2)
            return Recipe(min(self.steps, most), self.guidance, self.apg)
        measured = {"draft": self.draft, "best": self.best}.get(quality)
        return measured or normal


UNMEASURED = SamplingDefaults()
"""Of a checkpoint that says nothing."""
