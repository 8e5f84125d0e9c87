"""A tiny tokenizer of SemanTok's kind, and a tiny DINOv2: random weights, 128 px."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from conftest import TINY
from published import GOLDEN
from torch import Tensor

from vft_lib.checkpoints.checkpoint import save_tokenizer
from vft_lib.checkpoints.dino import RENAMED, DinoConfig, read_dino_config
from vft_lib.checkpoints.parity import make_weights
from vft_lib.config.tokenizer import PosembConfig, TokenizerConfig
from vft_lib.tokenizer.tokenizer import Tokenizer

CASE = GOLDEN / "semantok-features"
WIDTH = 32  # of the features of its network


def semantok_config(
    width: int = WIDTH, chunk: int = 5, name: str = "tiny", registers: int = 8
) -> TokenizerConfig:
    """At 128 px, with features `width` wide in both ways, chunks of so many frames."""
    table = PosembConfig((5, 8, 8))
    encoder = dataclasses.replace(
        TINY.encoder, patch_posemb=table, feature_channels=width, global_feature=width,
        feature_aggregate="first",
    )  # fmt: skip
    decoder = dataclasses.replace(
        TINY.decoder, patch_posemb=table, register_posemb=PosembConfig((5, registers))
    )
    return dataclasses.replace(
        TINY, name=name, size=128, chunk_frames=chunk, registers=registers, encoder=encoder,
        decoder=decoder,
    )  # fmt: skip


def save_semantok(path: Path, config: TokenizerConfig) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        weights = Tokenizer(config).state_dict()
    weights = {k: v if v.any() else torch.randn_like(v) * 0.1 for k, v in weights.items()}
    save_tokenizer(path, config, weights, torch.float32)
    return path


def dino_config() -> DinoConfig:
    return read_dino_config(json.loads((CASE / "config.json").read_text())["dinov2"], "tiny")


def dino_weights() -> dict[str, Tensor]:
    """Those of the parity case, under the names of the published file."""
    state = json.loads((CASE / "state.json").read_text())
    return {published_name(key): make_weights(state, key) for key in state}


def published_name(key: str) -> str:
    for old, new in RENAMED:
        key = key.replace(new, old)
    return key
