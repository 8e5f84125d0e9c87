"""Weights in eight bits: how far off they are, and what they save."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vft_lib.errors import VftError
from vft_lib.measure.metrics import psnr
from vft_lib.models.loading import load_tokenizer
from vft_lib.tokenizer.eight_bit import EightBitLinear, Storage, store_in_eight_bits
from vft_lib.tokenizer.sampling import Sampling
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.tokens import Tokens

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"


@pytest.mark.parametrize(("storage", "error"), [("int8", 0.5 / 127), ("fp8", 1 / 16)])
def test_a_row_is_as_near_as_eight_bits_allow(storage: Storage, error: float) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 16)
    linear.weight.data[3] *= 100  # a large row does not coarsen the others
    linear.weight.data[5] = 0
    small = EightBitLinear(linear, storage)
    weight = small.weight.float() * small.scale[:, None]
    off = (weight - linear.weight).abs().amax(1) / linear.weight.abs().amax(1).clamp(min=1e-9)
    assert (off <= error * 1.01).all()
    assert small.weight.itemsize == 1
    x = torch.randn(3, 64)
    assert torch.allclose(small(x), x @ weight.T + linear.bias, atol=1e-3, rtol=1e-4)


def test_a_cast_leaves_the_eight_bits_alone(tiny_tokenizer: Tokenizer) -> None:
    tok = copy.deepcopy(tiny_tokenizer)
    store_in_eight_bits(tok, "int8")
    tok = tok.to(torch.bfloat16)
    assert tok.decoder.trunk.blocks[0].attention.wq.weight.dtype == torch.int8  # type: ignore[union-attr]
    ids = torch.zeros(1, 5, 2, dtype=torch.int64)
    noise = torch.zeros(1, *tok.config.latent_shape)
    latents = tok.sample_latents(ids, noise, Sampling(1, 1.0))
    assert latents.isfinite().all()


@pytest.mark.parametrize("storage", ["int8", "fp8"])
def test_the_default_model_in_eight_bits(storage: Storage) -> None:
    """A quarter of the trunk's float32 bytes, and a picture that is nearly the same."""
    tok = load_tokenizer("default", device="cpu")
    ids = Tokens.load(WEIGHTS / "example.vft").ids[:, :5]
    noise = torch.randn(1, *tok.config.latent_shape, generator=torch.Generator().manual_seed(0))

    def picture() -> Tensor:
        with torch.inference_mode():
            return tok.vae.decode(tok.sample_latents(ids, noise, Sampling(2, 1.0))[:, :, :1])

    plain = picture()
    before = sum(v.nbytes for v in tok.decoder.trunk.state_dict().values())
    saved = store_in_eight_bits(tok, storage)
    assert 0.7 * before < saved < 0.75 * before
    small = picture()
    assert not torch.equal(small, plain)
    assert psnr(small[0], plain[0]) > (35 if storage == "int8" else 25)


def test_another_storage_is_refused(tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(VftError, match="weights in 'int4'; choose int8, fp8"):
        store_in_eight_bits(tiny_tokenizer, "int4")  # type: ignore[arg-type]


def test_tokens_do_not_change(tiny_checkpoint: Path) -> None:
    """The encoder and the autoencoder keep their weights."""
    tok = load_tokenizer(tiny_checkpoint, device="cpu")
    video = torch.rand(1, 3, 17, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    before = tok.encode(video).ids
    store_in_eight_bits(tok, "int8")
    assert torch.equal(tok.encode(video).ids, before)
