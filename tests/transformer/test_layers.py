"""The shared layers against explicit computations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vft_lib.config.tokenizer import MaskConfig, PosembConfig, TransformerConfig
from vft_lib.errors import VftError
from vft_lib.transformer.attention import Layout
from vft_lib.transformer.fused import norm
from vft_lib.transformer.layers import (
    Attention,
    Block,
    GatedMLP,
    PositionEmbedding,
    TimestepEmbedding,
    Transformer,
    patchify,
    sincos_grid,
    unpatchify,
)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------- patches


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 2, 2), (1, 4, 2), (3, 2, 1)])
def test_unpatchify_inverts_patchify(size: tuple[int, int, int]) -> None:
    x = normal(0, 2, 5, 3, 4, 8)
    patches = patchify(x, size)
    assert patches.shape == (2, 3 // size[0], 4 // size[1], 8 // size[2], 5 * math.prod(size))
    assert torch.equal(unpatchify(patches, size), x)


def test_a_patch_is_ordered_time_height_width_channel() -> None:
    x = normal(0, 1, 3, 2, 4, 6)
    patch = patchify(x, (1, 2, 3))[0, 1, 1, 0]
    expected = [x[0, c, 1, 2 + y, z] for y in range(2) for z in range(3) for c in range(3)]
    assert torch.equal(patch, torch.stack(expected))


# ---------------------------------------------------------------------- blocks


def test_norm_is_computed_in_float32() -> None:
    x = (normal(0, 4, 64) + 30).bfloat16()
    exact = F.layer_norm(x.double(), (64,), eps=1e-5)
    assert norm(x).dtype == torch.bfloat16
    assert (norm(x).double() - exact).abs().max() < 0.02  # one rounding at the end


@pytest.mark.parametrize("head_dim", [4, 16])
def test_attention_by_hand(head_dim: int) -> None:
    torch.manual_seed(0)
    layer = Attention(TransformerConfig(32, 1, head_dim)).double()
    x = normal(1, 2, 5, 32).double()
    mask = torch.ones(5, 5).tril().bool()
    heads = []
    for start in range(0, 32, head_dim):
        part = slice(start, start + head_dim)
        q, k, v = (w(x)[..., part] for w in (layer.wq, layer.wk, layer.wv))
        q, k = (F.layer_norm(y, (head_dim,), eps=1e-5) for y in (q, k))
        scores = (q @ k.transpose(1, 2)) * 8 / head_dim
        heads.append(scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v)
    expected = torch.cat(heads, -1) @ layer.proj.weight.T
    assert torch.allclose(layer(x, Layout(MaskConfig("causal"), 1, 3, 2)), expected, atol=1e-5)


def test_gated_mlp_by_hand() -> None:
    torch.manual_seed(0)
    c = TransformerConfig(12, 1, 4, mlp_ratio=3.0)
    layer, x = GatedMLP(c), normal(1, 3, 12)
    gate = x @ layer.fc1.weight.T
    expected = (gate * gate.sigmoid() * (x @ layer.fc3.weight.T)) @ layer.fc2.weight.T
    assert layer.fc1.weight.shape == (24, 12)
    assert torch.allclose(layer(x), expected, atol=1e-6)


@pytest.mark.parametrize("kinds", [1, 2])
def test_modulation_of_each_kind_by_hand(kinds: int) -> None:
    torch.manual_seed(0)
    dim, frames, patches, registers = 16, 2, 3, 2
    block = Block(TransformerConfig(dim, 1, 8, modulation_kinds=kinds))
    x, time = normal(1, 2, frames, patches + registers, dim), normal(2, 2, dim)
    vectors = block.modulation(F.silu(time))  # (B, kinds·6·dim), kind-major

    def of(kind: int, place: int) -> Tensor:
        """Chunk `place` of a kind: gate_attn, gate_mlp, shift_attn, scale_attn, shift_mlp, …"""
        start = (kind * 6 + place) * dim
        return vectors[:, start : start + dim]

    def each(place: int, y: Tensor, what: str) -> Tensor:
        """Apply chunk `place` (and `place + 1` for "modulate") token by token."""
        y = y.clone()
        for token in range(patches + registers):
            kind = 0 if token < patches or kinds == 1 else 1
            for frame in range(frames):
                v = y[:, frame, token]
                if what == "gate":
                    y[:, frame, token] = v * of(kind, place)
                else:
                    y[:, frame, token] = v * (1 + of(kind, place + 1)) + of(kind, place)
        return y

    layout = Layout(MaskConfig("full"), frames, patches, registers)
    h = each(2, norm(x), "modulate").flatten(1, 2)
    expected = x + each(0, block.attention(h, layout).view_as(x), "gate")
    expected = expected + each(1, block.mlp(each(4, norm(expected), "modulate")), "gate")
    assert torch.allclose(block(x, layout, block.modulate(time)), expected, atol=1e-5)


def test_without_modulation_time_does_not_matter() -> None:
    torch.manual_seed(0)
    block = Block(TransformerConfig(16, 1, 8))
    x = normal(1, 2, 2, 5, 16)
    layout = Layout(MaskConfig("full"), 2, 3, 2)
    expected = x + block.attention(norm(x).flatten(1, 2), layout).view_as(x)
    expected = expected + block.mlp(norm(expected))
    assert torch.allclose(block(x, layout, None), expected, atol=1e-6)
    trunk = Transformer(TransformerConfig(16, 1, 8), MaskConfig("full"))
    patches, registers = x.split([3, 2], dim=2)
    out = trunk(patches, registers, trunk.modulate(normal(2, 2, 16)))
    assert torch.equal(out[0], trunk(patches, registers)[0])


def test_inputs_are_not_changed() -> None:
    torch.manual_seed(0)
    trunk = Transformer(TransformerConfig(16, 2, 8, modulation_kinds=2), MaskConfig())
    patches, registers, time = normal(0, 1, 2, 3, 16), normal(1, 1, 2, 2, 16), normal(2, 1, 16)
    modulation = trunk.modulate(time)
    before = [v.clone() for v in (patches, registers, time, *modulation)]
    out = trunk(patches, registers, modulation)
    assert [o.shape for o in out] == [patches.shape, registers.shape]
    for old, new in zip(before, (patches, registers, time, *modulation)):
        assert torch.equal(old, new)


def test_later_frames_do_not_reach_earlier_ones() -> None:
    torch.manual_seed(0)
    trunk = Transformer(TransformerConfig(16, 2, 8), MaskConfig("time_block_causal_last"))
    patches, registers = normal(0, 1, 3, 4, 16), normal(1, 1, 3, 2, 16)
    changed = patches.clone()
    changed[:, 2] = normal(2, 4, 16)
    (p, r), (q, s) = trunk(patches, registers), trunk(changed, registers)
    assert torch.allclose(p[:, :2], q[:, :2], atol=1e-6)
    assert torch.allclose(r[:, :2], s[:, :2], atol=1e-6)
    assert not torch.allclose(r[:, 2], s[:, 2], atol=1e-3)


# ---------------------------------------------------------------------- positions


@pytest.mark.parametrize("kind", ["learnable_sum", "learnable_prod"])
def test_learned_positions_combine_the_axes(kind: str) -> None:
    torch.manual_seed(0)
    layer = PositionEmbedding(PosembConfig((3, 5, 4), kind), 6)  # type: ignore[arg-type]
    assert layer.table.shape == (3, 1, 6, 5)
    x = normal(1, 2, 2, 5, 3, 6)  # smaller than the table on the first and last axes
    got = layer(x) - x
    for t, h, w in [(0, 0, 0), (1, 4, 2), (0, 3, 1)]:
        a, b, c = layer.table[0, 0, :, t], layer.table[1, 0, :, h], layer.table[2, 0, :, w]
        expected = a + b + c if kind == "learnable_sum" else a * b * c
        assert torch.allclose(got[0, t, h, w], expected, atol=1e-5)
        assert torch.allclose(got[1, t, h, w], expected, atol=1e-5)


def test_a_grid_larger_than_its_table_is_refused() -> None:
    layer = PositionEmbedding(PosembConfig((2, 4)), 6)
    with pytest.raises(VftError, match="5 positions on an axis whose table holds 4"):
        layer(torch.zeros(1, 2, 5, 6))
    fixed = PositionEmbedding(PosembConfig((4, 4), "sincos"), 8)
    with pytest.raises(VftError, match="5 positions on an axis whose table holds 4"):
        fixed(torch.zeros(1, 1, 4, 5, 8))


def test_interpolated_positions_keep_the_corners() -> None:
    torch.manual_seed(0)
    layer = PositionEmbedding(PosembConfig((4,), interpolate=True), 6)
    got = layer(torch.zeros(1, 7, 6))[0]
    assert torch.allclose(got[0], layer.table[0, 0, :, 0])
    assert torch.allclose(got[6], layer.table[0, 0, :, 3])
    assert torch.allclose(got[3], layer.table[0, 0, :, 1:3].mean(-1), atol=1e-6)


def test_sincos_positions_are_fixed_and_distinct() -> None:
    layer = PositionEmbedding(PosembConfig((3, 4), "sincos"), 16)
    assert not layer.table.requires_grad
    got = layer(torch.zeros(1, 2, 3, 4, 16))
    assert torch.equal(got[0, 0], got[0, 1])  # the same for every frame
    assert len(got[0, 0].flatten(0, 1).unique(dim=0)) == 12
    assert torch.equal(got[0, 0].permute(2, 0, 1), sincos_grid(16, 3, 4))


def test_timestep_embedding_has_period_256() -> None:
    torch.manual_seed(0)
    layer = TimestepEmbedding(8, max_timestep=2.0)
    seen = []
    layer.mlp[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    assert layer(torch.tensor([0.3, 1.0]), torch.float32).shape == (2, 8)
    frequencies = [1000 / 2.0 * math.exp(-math.log(256) * i / 128) for i in range(128)]
    for row, t in zip(seen[0], (0.3, 1.0)):
        cosines = torch.tensor([math.cos(t * f) for f in frequencies])
        sines = torch.tensor([math.sin(t * f) for f in frequencies])
        assert torch.allclose(row, torch.cat([cosines, sines]), atol=1e-3)
