"""Ids as FSQ digits: the factorized vocabulary is an ordinary softmax, computed another way."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from vft_lib.prior.vocabulary import Digits, FactorizedEmbedding, FactorizedHead, TableHead
from vft_lib.tokenizer.fsq import FSQ

LEVELS = [(8, 8, 8, 5, 5, 5), (4, 3, 2, 5), (3, 2), (2, 3, 4)]


def head(levels: tuple[int, ...], scale: float = 1.0) -> FactorizedHead:
    torch.manual_seed(0)
    made = FactorizedHead(levels, 12, bias=True)
    for p in made.parameters():
        torch.nn.init.normal_(p, std=scale)
    return made


def test_features_are_what_the_design_says() -> None:
    digits = Digits((8, 8, 8, 5, 5, 5))
    assert digits.rows == 39 + 627 + 512 + 125
    assert digits(torch.arange(64000)).shape == (64000, 23)


def test_digits_are_the_quantizer_s() -> None:
    ids = torch.randint(64000, (500,))
    fsq = FSQ((8, 8, 8, 5, 5, 5))
    digits = (fsq.codes(ids) * fsq.half_width + fsq.half_width).round().long()
    assert torch.equal(Digits((8, 8, 8, 5, 5, 5)).digits(ids), digits)


@pytest.mark.parametrize("levels", LEVELS)
def test_every_id_has_features_of_its_own(levels: tuple[int, ...]) -> None:
    digits = Digits(levels)
    ids = torch.arange(math.prod(levels))
    rows = digits(ids)
    assert int(rows.min()) == 0
    assert int(rows.max()) == digits.rows - 1
    assert len(rows.unique(dim=0)) == len(ids)


@pytest.mark.parametrize("levels", LEVELS)
def test_logits_are_sums_over_an_id_s_features(levels: tuple[int, ...]) -> None:
    made, x = head(levels), torch.randn(3, 2, 12)
    features = made.features(x)  # (3, 2, rows)
    rows = made.digits(torch.arange(math.prod(levels)))
    expected = features[..., rows].sum(-1)
    assert torch.allclose(made(x), expected, atol=1e-4)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_nll_is_the_cross_entropy_of_the_logits(levels: tuple[int, ...], scale: float) -> None:
    made = head(levels, scale)
    x = torch.randn(150, 12, requires_grad=True)  # more than one part
    ids = torch.randint(math.prod(levels), (150,))
    ours = made.nll(x, ids)
    theirs = F.cross_entropy(made(x), ids, reduction="none")
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    weights = [x, *made.parameters()]
    for a, b in zip(torch.autograd.grad(ours.sum(), weights),
                    torch.autograd.grad(theirs.sum(), weights)):  # fmt: skip
        assert float((a - b).norm() / b.norm()) < 1e-4


def test_table_head_nll_is_the_cross_entropy() -> None:
    made, x, ids = TableHead(12, 50), torch.randn(300, 12), torch.randint(50, (300,))
    expected = F.cross_entropy(made(x), ids, reduction="none")
    assert torch.allclose(made.nll(x, ids), expected, atol=1e-5)


def test_embedding_is_the_sum_of_an_id_s_features() -> None:
    made = FactorizedEmbedding((8, 8, 8, 5, 5, 5), 6)
    ids = torch.randint(64000, (2, 7))
    assert torch.allclose(made(ids), made.weight[made.digits(ids)].sum(-2), atol=1e-5)
    assert made(ids[:, :0]).shape == (2, 0, 6)
