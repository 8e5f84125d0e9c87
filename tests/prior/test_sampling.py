"""Temperature, top-k, top-p, and randomness that belongs to one clip."""

from __future__ import annotations

import math

import pytest
import torch

from vft_lib.errors import VftError
from vft_lib.prior.sampling import Sampler, above_threshold, guide, keep_top_k, keep_top_p


def kept(logits: torch.Tensor) -> list[list[int]]:
    return [row.isfinite().nonzero().flatten().tolist() for row in logits]


def test_guidance_is_u_plus_g_times_the_difference() -> None:
    logits = torch.tensor([[1.0, 2.0], [0.5, 4.0]])
    assert guide(logits, 3.0).tolist() == [[0.5 + 3 * 0.5, 4.0 - 3 * 2.0]]
    assert guide(logits, 0.0).tolist() == [[0.5, 4.0]]


def test_top_k_keeps_ties_at_the_kth_value() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0, 0.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    assert kept(keep_top_k(logits, 2)) == [[0, 2, 3], [0, 1]]
    assert kept(keep_top_k(logits, 99)) == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize("first", [1, 2, 1024])
def test_top_p_keeps_the_first_id_that_crosses_p(first: int) -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]]).log()
    for p, count in ((0.1, 1), (0.49, 1), (0.6, 2), (0.79, 2), (0.9, 3), (0.96, 4), (1.0, 4)):
        rows = kept(keep_top_p(logits, p, first=first))
        assert rows == [list(range(count)), list(range(4 - count, 4))], p


def test_top_p_that_looks_at_few_is_top_p_that_sorts_all() -> None:
    logits = torch.randn(4, 5000, generator=torch.Generator().manual_seed(0)) * 2
    for p in (0.2, 0.7, 0.99):
        assert torch.equal(keep_top_p(logits, p, first=16), keep_top_p(logits, p, first=5000))


@pytest.mark.parametrize("spread", [0.5, 2.0, 8.0])
def test_the_threshold_of_a_gpu_is_that_of_a_sort(spread: float) -> None:
    logits = torch.randn(4, 5000, generator=torch.Generator().manual_seed(0)) * spread
    for p in (0.01, 0.2, 0.7, 0.9, 0.999):
        assert kept(above_threshold(logits, p)) == kept(keep_top_p(logits, p)), p


def test_the_threshold_after_top_k_counts_what_is_left() -> None:
    logits = keep_top_k(torch.tensor([[0.5, 0.3, 0.1, 0.1]]).log(), 2)
    assert kept(above_threshold(logits, 0.6)) == [[0]]
    assert kept(above_threshold(logits, 0.65)) == [[0, 1]]
    certain = torch.tensor([[0.0, -1e4, -1e4]])
    assert kept(above_threshold(certain, 0.5)) == [[0]]


def test_top_p_after_top_k_counts_what_is_left() -> None:
    logits = keep_top_k(torch.tensor([[0.5, 0.3, 0.1, 0.1]]).log(), 2)
    assert kept(keep_top_p(logits, 0.6)) == [[0]]
    assert kept(keep_top_p(logits, 0.65)) == [[0, 1]]


def test_temperature_zero_is_argmax() -> None:
    logits = torch.randn(3, 100)
    assert torch.equal(Sampler([0, 1, 2], temperature=0)(logits), logits.argmax(-1))


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    sampler = Sampler([7])
    drawn = torch.cat([sampler(logits) for _ in range(20_000)])
    share = drawn.bincount(minlength=4) / len(drawn)
    assert torch.allclose(share, logits.exp()[0], atol=4 * math.sqrt(0.25 / len(drawn)))
    hot = Sampler([7], temperature=0.5)
    drawn = torch.cat([hot(logits) for _ in range(20_000)])
    squared = logits.exp().square() / logits.exp().square().sum()
    assert torch.allclose(drawn.bincount(minlength=4) / len(drawn), squared[0], atol=0.015)


def test_a_clip_draws_the_same_in_any_row() -> None:
    logits = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0)) * 0.1
    alone = int(Sampler([5])(logits))
    batch = Sampler([3, 5, 9])(logits.expand(3, -1))
    assert int(batch[1]) == alone
    assert len(set(batch.tolist())) == 3, "and each seed something else"


def test_draws_survive_the_rounding_of_another_batch_size() -> None:
    """An inverse of the cumulative sum would slip to a neighbour far more often."""
    generator = torch.Generator().manual_seed(1)
    changed = 0
    for seed in range(300):
        logits = torch.randn(1, 4000, generator=generator)
        other = logits + 1e-5 * torch.randn(1, 4000, generator=generator)
        changed += int(Sampler([seed])(logits)) != int(Sampler([seed])(other))
    assert changed <= 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"temperature": -1.0}, "temperature"), ({"temperature": math.nan}, "temperature"),
     ({"top_k": 0}, "top_k"), ({"top_p": 0.0}, "top_p"), ({"top_p": 1.1}, "top_p")],
)  # fmt: skip
def test_settings_out_of_range(settings: dict[str, float], message: str) -> None:
    with pytest.raises(VftError, match=message):
        Sampler([0], **settings)  # type: ignore[arg-type]
    with pytest.raises(VftError, match="seed"):
        Sampler([1 << 64])
