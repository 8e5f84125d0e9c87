"""The preview decoder of a tokenizer: how large it is."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError

MAX_WIDTH = 1024  # channels; the default has 104
MAX_BLOCKS = 32


@dataclass(frozen=True)
class PreviewConfig:
    """`width` channels and `blocks` residual blocks at the latents' size; `middle` channels at
    twice and `fine` at four times that size."""

    width: int = 104
    blocks: int = 3
    middle: int = 56
    fine: int = 32

    def __post_init__(self) -> None:
        widths = self.width, self.middle, self.fine
        if not 0 < min(widths) <= max(widths) <= MAX_WIDTH or not 1 <= self.blocks <= MAX_BLOCKS:
            raise ConfigError(
                f"{self}: expected widths of 1 to {MAX_WIDTH}, and 1 to {MAX_BLOCKS} blocks"
            )
