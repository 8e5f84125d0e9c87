"""Attention without masks in memory, and equal registers merged into one: the same results."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from conftest import TINY
from torch import Tensor
from torch.nn import functional as F

from transformer.test_masks import MODES
from vft_lib.config.tokenizer import DecoderStep, MaskConfig, PosembConfig
from vft_lib.tokenizer.decoder import Decoder
from vft_lib.tokenizer.sampling import Sampling
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.transformer import backends as attention_backends
from vft_lib.transformer.attention import Layout, attend, merges_registers
from vft_lib.transformer.masks import attention_mask

ALL_MODES = [MaskConfig("full"), *MODES]
POSEMB: DecoderStep = "posemb"
NESTED: DecoderStep = "nested_dropout"
PREFIX: DecoderStep = "prefix_masking"
NULL: DecoderStep = "null_condition"


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def name(mask: MaskConfig) -> str:
    return "-".join(str(v) for v in dataclasses.astuple(mask)) if "flex" in mask.mode else mask.mode


@pytest.mark.parametrize("mask", ALL_MODES, ids=name)
def test_attention_is_that_of_the_mask(mask: MaskConfig) -> None:
    layout = Layout(mask, 3, 4, 5)
    q, k, v = (normal(i, 2, 2, 27, 8) for i in range(3))
    seen = attention_mask(mask, 3, 4, 5, q.device)
    scores = (q @ k.transpose(2, 3)) * 0.3
    scores = scores if seen is None else scores.masked_fill(~seen, -torch.inf)
    assert torch.allclose(attend(q, k, v, layout, 0.3), scores.softmax(-1) @ v, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_short_sequences_in_bfloat16_train_on_the_gradients_of_float32(causal: bool) -> None:
    """Rounded once at the end; bfloat16's own backward pass on a CPU is slower and less exact."""
    q, k, v = (normal(i, 2, 3, 40, 16).bfloat16().requires_grad_() for i in range(3))
    y = attention_backends.dot_product(q, k, v, causal=causal)
    assert y.dtype == torch.bfloat16
    exact = [x.detach().float().requires_grad_() for x in (q, k, v)]
    a, b, c = exact
    z = F.scaled_dot_product_attention(a, b, c, is_causal=causal)
    assert torch.equal(y, z.bfloat16())
    mine = torch.autograd.grad(y.float().square().sum(), (q, k, v))
    theirs = torch.autograd.grad(z.bfloat16().float().square().sum(), exact)
    assert all(torch.equal(x, y.bfloat16()) for x, y in zip(mine, theirs))


def test_time_blocks_never_make_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """2560 x 2560 booleans, for the published models, in every block of every step."""
    monkeypatch.setattr(attention_backends, "sees", None)
    sizes = []
    plain = F.scaled_dot_product_attention

    def watched(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        sizes.append((q.shape[2], k.shape[2], options["attn_mask"]))
        return plain(q, k, v, **options)

    monkeypatch.setattr(attention_backends.F, "scaled_dot_product_attention", watched)
    q = normal(0, 1, 1, 27, 8)
    attend(q, q, q, Layout(MaskConfig("time_block_causal"), 3, 4, 5), 1.0)
    assert sizes == [(9, 9, None), (9, 18, None), (9, 27, None)]  # nothing of the upper triangle


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("mask", [m for m in ALL_MODES if merges_registers(m)], ids=name)
def test_a_weighted_key_counts_as_often_as_it_says(
    mask: MaskConfig, dtype: torch.dtype, folded: bool
) -> None:
    merged = [normal(i, 1, 2, 3, 4, 8).to(dtype) for i in range(3)]  # 3 frames: 2 patches, 2 more
    spread = [torch.cat([x, x[..., 3:, :].expand(-1, -1, -1, 247, -1)], 3) for x in merged]
    layout, (q, k, v) = Layout(mask, 3, 2, 2, 248), [x.flatten(2, 3) for x in merged]
    if folded:
        q, k, v = attention_backends.fold_weights(q, k, v, layout, 0.3)
        layout = dataclasses.replace(layout, weight=1)
    small = attend(q, k, v, layout, 0.3)[..., :8]
    a, b, c = (x.double().flatten(2, 3) for x in spread)
    large = attend(a, b, c, Layout(mask, 3, 2, 249), 0.3)
    large = large.unflatten(2, (3, -1))[..., :4, :].flatten(2, 3)
    exact = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float64: 1e-5}
    assert torch.allclose(small.double(), large, atol=exact[dtype])


def test_folded_weights_are_finer_than_sixteen_bits() -> None:
    """In one bfloat16 number ln 248 / scale is off by up to 0.4 %: a weight wrong by 1 %."""
    q, k, v = (torch.zeros(1, 1, 4, 8, dtype=torch.bfloat16) for _ in range(3))
    layout = Layout(MaskConfig("full"), 1, 2, 2, 248)
    q, k, v = attention_backends.fold_weights(q, k, v, layout, 0.125)
    logits = 0.125 * (q.double() @ k.double().transpose(2, 3))[0, 0, 0]
    assert logits.exp().tolist() == pytest.approx([1, 1, 1, 248], rel=1e-4)


def decoder_of(mask: MaskConfig, steps: tuple[DecoderStep, ...], **more: Any) -> Decoder:
    """With no weight zero: every register changes the picture."""
    torch.manual_seed(0)
    config = dataclasses.replace(
        TINY, decoder=dataclasses.replace(TINY.decoder, mask=mask, steps=steps, **more)
    )
    decoder = Decoder(config)
    for p in decoder.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return decoder.double()


def both_ways(decoder: Decoder, keep: int, prefix: int = 0) -> tuple[float, int]:
    """How far merged registers are from all of them, relative; and how many there were."""
    codes, noisy = normal(1, 2, 5, 8, 6).double(), normal(2, 2, 4, 5, 4, 4).double()
    budget = torch.full((2,), keep or 8)
    null = torch.full((2,), keep == 0)
    with torch.no_grad():
        every = decoder.prepare(codes, budget, torch.full((2,), prefix), null)
        some, weight = decoder.merge(every, keep)
        m = decoder.modulate(torch.tensor([0.4]), torch.float64)
        a, b = decoder(noisy, m, every), decoder(noisy, m, some, weight)
    return float((a - b).norm() / a.norm()), some.shape[2]


ORDERS = [o for n in (3, 4) for o in itertools.permutations([POSEMB, NESTED, NULL, PREFIX][:n])]


@pytest.mark.parametrize(
    ("mask", "steps"),
    [(m, o) for m in ALL_MODES for o in (ORDERS if merges_registers(m) else ORDERS[::10])],
)
def test_merging_never_changes_the_velocity(
    mask: MaskConfig, steps: tuple[DecoderStep, ...]
) -> None:
    decoder = decoder_of(mask, steps)
    for keep, prefix in itertools.product((0, 1, 3, 6, 7, 8), (0, 2)):
        error, _ = both_ways(decoder, keep, prefix)
        assert error < 1e-6, (keep, prefix)


@pytest.mark.parametrize("mode", ["full", "time_block_causal"])
def test_merging_leaves_one_register_more_than_the_budget(mode: Any) -> None:
    decoder = decoder_of(MaskConfig(mode), (POSEMB, NESTED, PREFIX, NULL))
    assert [both_ways(decoder, k)[1] for k in (0, 1, 3, 6, 7, 8)] == [1, 2, 4, 7, 8, 8]


@pytest.mark.parametrize(
    ("mask", "steps", "equal"),
    [
        (MaskConfig("full"), (POSEMB, NESTED, NULL), True),
        (MaskConfig("time_block_causal"), (POSEMB, NESTED, NULL), True),
        (MaskConfig("time_block_causal_last"), (POSEMB, NESTED, NULL), False),
        (MaskConfig("causal"), (POSEMB, NESTED, NULL), False),
        (MaskConfig("full"), (NESTED, NULL, POSEMB), False),
    ],
)
def test_registers_are_merged_where_they_stay_equal_and_only_there(
    mask: MaskConfig, steps: tuple[DecoderStep, ...], equal: bool
) -> None:
    decoder = decoder_of(mask, steps)
    two, zero = torch.full((2,), 2), torch.zeros(2, dtype=torch.long)
    with torch.no_grad():
        every = decoder.prepare(normal(1, 2, 5, 8, 6).double(), two, zero, zero.bool())
        m = decoder.modulate(torch.tensor([0.4]), torch.float64)
        _, registers = decoder.trunk(normal(2, 2, 5, 4, 32).double(), every, m.blocks)
    masked = registers[:, :, 2:]
    apart = float((masked - masked[:, :, :1]).abs().max())
    assert (apart < 1e-4) == equal
    assert (decoder.merge(every, 2)[1] == 6) == equal


def test_interpolated_positions_are_those_of_all_registers() -> None:
    """A table that is stretched over the registers is stretched over all, not over the kept."""
    stretched = PosembConfig((5, 8), interpolate=True)
    decoder = decoder_of(
        MaskConfig("full"), (POSEMB, NESTED, NULL), register_posemb=stretched
    )  # fmt: skip
    assert both_ways(decoder, 3) == (pytest.approx(0, abs=1e-6), 4)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("keep", [[1, 1], [2, 8], [8, 8]])
def test_a_whole_sampling_run_is_that_of_all_registers(
    tiny_tokenizer: Tokenizer, guidance: float, keep: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.randint(64_000, (2, 5, 8), generator=torch.Generator().manual_seed(0))
    noise = normal(3, 2, *tiny_tokenizer.config.latent_shape)
    runs = []
    for merging in (True, False):
        if not merging:
            monkeypatch.setattr(Decoder, "merge", lambda self, registers, keep: (registers, 1))
        with torch.inference_mode():
            runs.append(tiny_tokenizer.sample_latents(
                ids, noise, Sampling(3, guidance), keep=torch.tensor(keep)
            ))  # fmt: skip
    assert torch.allclose(runs[0], runs[1], atol=1e-4)


def test_a_guided_step_takes_work_in_proportion_to_the_budget(
    tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operations, not seconds: tokens that go through the trunk in one guided step."""
    tokens: dict[int, int] = {}
    plain = Decoder.forward

    def counted(self: Decoder, noisy: Tensor, m: Any, registers: Tensor, weight: int = 1) -> Tensor:
        b, t, r = registers.shape[:3]
        tokens[k] += b * t * (r + 4)  # 4 patches a frame
        return plain(self, noisy, m, registers, weight)

    monkeypatch.setattr(Decoder, "forward", counted)
    for k in (1, 4, 8):
        tokens[k] = 0
        ids = torch.zeros(1, 5, k, dtype=torch.int64)
        noise = normal(3, 1, *tiny_tokenizer.config.latent_shape)
        with torch.inference_mode():
            tiny_tokenizer.sample_latents(ids, noise, Sampling(1, 3.0))
    assert tokens == {1: 5 * (6 + 5), 4: 5 * (9 + 5), 8: 5 * (12 + 5)}
