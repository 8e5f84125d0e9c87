"""Both EPFL architectures at their real size, on made-up weights.

On `meta` always (seconds); on the CPU or a GPU with `pytest -m full` (minutes, 7 GB of memory).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from published import D18_D18, D18_D28

from vft_lib.checkpoints import convert
from vft_lib.tokenizer.tokenizer import Tokenizer

SIZES = [
    # name, config, parameters in millions: encoder, decoder, video autoencoder
    ("d18-d28", D18_D28, 289, 2170, 158),
    ("d18-d18", D18_D18, 289, 579, 158),
]


def build(config: dict[str, Any], name: str, device: str) -> Tokenizer:
    with torch.device(device):
        return Tokenizer(convert.architecture(config, {}, name)[0], "made-up")


def millions(module: torch.nn.Module) -> int:
    return round(sum(p.numel() for p in module.parameters()) / 1e6)


@pytest.mark.parametrize(("name", "config", "encoder", "decoder", "vae"), SIZES)
def test_parameter_counts(
    name: str, config: dict[str, Any], encoder: int, decoder: int, vae: int
) -> None:
    tok = build(config, name, "meta")
    counts = [millions(m) for m in (tok.encoder, tok.decoder, tok.vae)]
    assert counts == [encoder, decoder, vae]


@pytest.mark.full
@pytest.mark.parametrize(("name", "config", "encoder", "decoder", "vae"), SIZES)
def test_encode_and_decode(
    name: str, config: dict[str, Any], encoder: int, decoder: int, vae: int
) -> None:
    """One chunk through the whole path in bfloat16: shapes, ranges, no NaN, seeds hold."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tok = build(config, name, "meta").to(torch.bfloat16).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for weight in tok.parameters():
            std = weight.shape[-1] ** -0.5 if weight.ndim > 1 else 0.02
            weight.normal_(0, std, generator=generator)
    tok.eval().requires_grad_(False)
    side = tok.config.size
    video = torch.rand(1, 3, 17, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    tokens = tok.encode(video)
    assert tokens.ids.shape == (1, 5, 256)
    assert len(tokens.ids.unique()) > 100
    decoded = tok.decode(tokens.truncate(4), steps=1, guidance=1.0)
    assert decoded.shape == (1, 3, 17, side, side)
    assert decoded.isfinite().all()
