"""A tiny tokenizer with a preview decoder, which several tests share."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vft_lib.autoencoder.preview import PreviewDecoder
from vft_lib.config.preview import PreviewConfig
from vft_lib.models.loading import add_preview

SMALL = PreviewConfig(width=16, blocks=2, middle=8, fine=8)


def weights(seed: int = 0, config: PreviewConfig = SMALL, channels: int = 4) -> dict[str, Tensor]:
    """Random ones."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PreviewDecoder(config, channels).state_dict()


def with_preview(tokenizer: str | Path, path: Path, seed: int = 0, channels: int = 4) -> Path:
    """That tokenizer with a preview decoder of random weights, as a file."""
    add_preview(tokenizer, path, SMALL, weights(seed, channels=channels))
    return path
