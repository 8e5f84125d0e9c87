"""Quantization: 64,000 codes, two bytes an id, always float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vft_lib.tokenizer.fsq import FSQ

LEVELS = (8, 8, 8, 5, 5, 5)


@pytest.fixture(scope="module")
def fsq() -> FSQ:
    return FSQ(LEVELS)


def before_quantization(codes: Tensor) -> Tensor:
    """Numbers that the bound squashes onto exactly these codes (the inverse of spec §6)."""
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    half = (levels - 1) * (1 + 1e-3) / 2
    offset = torch.tensor([0.5, 0.5, 0.5, 0, 0, 0], dtype=torch.float64)
    digits = codes.double() * (levels // 2)
    return (torch.atanh((digits + offset) / half) - torch.atanh(offset / half)).float()


def test_every_id_survives_codes_and_back(fsq: FSQ) -> None:
    ids = torch.arange(64_000)
    codes = fsq.codes(ids)
    assert codes.shape == (64_000, 6)
    assert codes.dtype == torch.float32
    assert codes.min() == -1
    assert codes.max() == 1
    assert len(codes.unique(dim=0)) == 64_000
    z = before_quantization(codes)
    assert torch.equal(fsq.ids(z), ids)
    assert torch.allclose(fsq.quantize(z), codes, atol=1e-6)


def test_ids_follow_the_published_formula(fsq: FSQ) -> None:
    z = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) * 2
    expected = []
    for row in z.double().numpy():
        total, basis = 0, 1
        for value, level in zip(row, LEVELS):
            half = (level - 1) * (1 + 1e-3) / 2
            offset = 0.5 if level % 2 == 0 else 0.0
            bounded = np.tanh(value + np.arctanh(offset / half)) * half - offset
            total += int(np.round(bounded) + level // 2) * basis
            basis *= level
        expected.append(total)
    assert fsq.ids(z).tolist() == expected
    assert fsq.basis.tolist() == [1, 8, 64, 512, 2560, 12800]


def test_each_channel_takes_exactly_its_levels(fsq: FSQ) -> None:
    ramp = torch.linspace(-50, 50, 20_001)[:, None].expand(-1, 6)
    codes = fsq.quantize(ramp)
    for channel, level in enumerate(LEVELS):
        half = level // 2
        digits = {round(v * half) for v in codes[:, channel].tolist()}
        assert digits == set(range(-half, level - half))
    assert int(fsq.ids(ramp).min()) == 0
    assert int(fsq.ids(ramp).max()) == 63_999


def test_gradient_goes_straight_through_the_rounding(fsq: FSQ) -> None:
    z = torch.randn(32, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
    (through,) = torch.autograd.grad(fsq.quantize(z).sum(), z)
    smooth = fsq.bound(z) / torch.tensor([4, 4, 4, 2, 2, 2])
    (expected,) = torch.autograd.grad(smooth.sum(), z)
    assert torch.allclose(through, expected, atol=1e-6)
    assert through.abs().min() > 0


def test_bfloat16_input_is_quantized_in_float32(fsq: FSQ) -> None:
    z = (torch.randn(2000, 6, generator=torch.Generator().manual_seed(2)) * 2).bfloat16()
    assert torch.equal(fsq.ids(z), fsq.ids(z.float()))
    assert fsq.quantize(z).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fsq.ids(z), fsq.ids(z.float()))
        assert torch.equal(fsq.quantize(z), fsq.quantize(z.float()))


def test_levels_survive_building_on_the_meta_device() -> None:
    with torch.device("meta"):
        built = FSQ(LEVELS)
    assert torch.equal(
        built.codes(torch.tensor([12_345])), FSQ(LEVELS).codes(torch.tensor([12_345]))
    )
