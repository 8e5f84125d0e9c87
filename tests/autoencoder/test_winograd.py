"""Winograd's convolutions equal the direct ones, and are taken where they are faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vft_lib.autoencoder import winograd
from vft_lib.autoencoder.convolutions import side_by_side
from vft_lib.autoencoder.vae import VideoAutoencoder
from vft_lib.config.tokenizer import VAEConfig


def error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(
    "shape", [(1, 4, 4, 3), (3, 12, 20, 8), (5, 8, 8, 16), (2, 40, 64, 4), (1, 4, 600, 2)]
)
def test_a_3x3_kernel(shape: tuple[int, ...]) -> None:
    """One tile; blocks of several frames, of some rows, of one row wider than a block."""
    x, weight, bias = numbers(*shape), numbers(6, shape[3], 3, 3), numbers(6)
    y = winograd.conv2d(x, winograd.kernel2d(weight), bias)
    double = x.permute(0, 3, 1, 2).double()
    expected = F.conv2d(double, weight.double(), bias.double(), padding=1).permute(0, 2, 3, 1)
    assert y.shape == expected.shape
    assert error(y, expected) < 5e-6


@pytest.mark.parametrize("frames", [1, 4, 7, 10])
@pytest.mark.parametrize("pixels", [9, 600])
def test_a_kernel_over_three_frames(frames: int, pixels: int) -> None:
    x, weight, bias = numbers(2, 2 + frames, pixels, 8), numbers(6, 8, 3), numbers(6)
    y = winograd.conv1d(x, winograd.kernel1d(weight), bias)
    double = x.permute(0, 3, 1, 2).double()
    expected = F.conv2d(double, weight[..., None].double(), bias.double()).permute(0, 2, 3, 1)
    assert y.shape == expected.shape
    assert error(y, expected) < 5e-6


@pytest.mark.parametrize("stride", [1, 2])
def test_a_kernel_over_three_pictures(stride: int) -> None:
    x, weight, bias = numbers(2, 7, 8, 8, 4), numbers(6, 4, 3, 3, 3), numbers(6)
    y = winograd.conv3d(side_by_side(x, 3, stride), weight, bias)
    expected = F.conv3d(
        x.permute(0, 4, 1, 2, 3).double(), weight.double(), bias.double(),
        stride=(stride, 1, 1), padding=(0, 1, 1),
    ).permute(0, 2, 3, 4, 1)  # fmt: skip
    assert y.shape == expected.shape
    assert error(y, expected) < 5e-6


@pytest.fixture(scope="module")
def vae() -> VideoAutoencoder:
    torch.manual_seed(0)
    model = VideoAutoencoder(VAEConfig(winograd.CHANNELS, (1, 1, 1, 1), 1, 1, latent_channels=4))
    return model.eval().requires_grad_(False)


def on_a_processor_with(instructions: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of Winograd's convolutions ran."""
    ran: list[str] = []

    def noted(name: str) -> Callable[..., Tensor]:
        function = getattr(winograd, name)

        def run(*args: Any) -> Tensor:
            ran.append(name)
            return function(*args)

        return run

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    for name in ("conv2d", "conv1d", "conv3d"):
        monkeypatch.setattr(winograd, name, noted(name))
    return ran


@torch.no_grad()
def test_the_autoencoder_is_the_same_with_and_without_avx512(
    vae: VideoAutoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    video, latents = numbers(1, 3, 9, 48, 48).clamp(-1, 1), numbers(1, 4, 3, 4, 4)
    with monkeypatch.context() as patch:
        ran = on_a_processor_with("AVX512", patch)
        encoded, decoded = vae.encode(video), vae.decode(latents)
        assert ran == []
    with monkeypatch.context() as patch:
        ran = on_a_processor_with("AVX2", patch)
        assert error(vae.encode(video), encoded) < 1e-5
        assert set(ran) == {"conv2d", "conv1d", "conv3d"}
        ran.clear()
        assert error(vae.decode(latents), decoded) < 1e-5
        assert ran.count("conv2d") == 11  # of three blocks, and of one TimeUp with five frames
        assert error(vae.decode(latents, at_once=1), decoded) < 1e-5


def test_where_gradients_or_other_number_formats_are_asked_for_it_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    c = winograd.CHANNELS
    x, weight = torch.zeros(2, 32, 32, c), torch.zeros(c, c, 3, 3)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not winograd.pays(x, weight)
    with torch.no_grad():
        assert winograd.pays(x, weight)
        assert not winograd.pays(x.bfloat16(), weight)
        assert not winograd.pays(x, weight[:-1])
        assert not winograd.pays(x[:, :30], weight)
        assert not winograd.pays(x[:1], weight)
        with torch.autocast("cpu", torch.bfloat16):
            assert not winograd.pays(x, weight)
