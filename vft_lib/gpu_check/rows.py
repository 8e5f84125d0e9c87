"""What a part of the check measures, and where it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Row:
    """One measurement. `ok`: whether it reached `target`; None where there is none to reach."""

    what: str
    value: float | None = None
    unit: str = ""
    target: str = ""
    ok: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class Place:
    """Where the check runs. `tiny`: at sizes that a CPU can take, which proves no speed."""

    device: torch.device
    cases: Path
    tiny: bool

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"


Measure = Callable[[], list[Row]]
Part = Callable[[Place], Iterator[tuple[str, Measure]]]
