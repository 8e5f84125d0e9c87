"""Fused functions are the plain ones, and switch on and off."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vft_lib.autoencoder.convolutions import Conv3d, TemporalConv, TimeDown, TimeUp
from vft_lib.transformer import fused
from vft_lib.transformer.fused import fusing

WIDTH = 12
compiles = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
# of torch's own compiler
old = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"
)
CASES: list[tuple[Callable[..., Tensor], int]] = [
    (fused.unit, 1), (fused.modulated, 3), (fused.gated, 3), (fused.swiglu, 2),
]  # fmt: skip


def tensors(count: int, length: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, length, WIDTH, generator=generator, requires_grad=True)
        for _ in range(count)
    ]  # fmt: skip


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == fused.__name__]


def test_fusing_is_on_inside_and_off_outside() -> None:
    assert not fused.active()
    with fusing():
        assert fused.active()
        with fusing(False):
            assert not fused.active()
        assert fused.active()
    assert not fused.active()
    with pytest.raises(ZeroDivisionError), fusing():
        raise ZeroDivisionError
    assert not fused.active()


@pytest.mark.slow
def test_what_cannot_be_compiled_runs_as_written(caplog: pytest.LogCaptureFixture) -> None:
    def doubled(width: int, x: Tensor) -> Tensor:
        return 2 * x

    @fused.fused
    def failing(width: int, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            raise RuntimeError("no compiler")
        return doubled(width, x)

    (x,) = tensors(1)
    with fusing():
        for _ in range(2):
            assert torch.equal(failing(WIDTH, x), 2 * x)
    (line,) = said(caplog)
    assert line.startswith("failing runs as written: ")


@pytest.mark.slow
@compiles
@old
@pytest.mark.parametrize(("function", "count"), CASES, ids=lambda c: getattr(c, "__name__", ""))
def test_fused_functions_equal_the_plain_ones(
    function: Callable[..., Tensor], count: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Forward and backward, for two lengths with one compilation."""
    for length in (5, 7):
        plain, compiled = tensors(count, length), tensors(count, length)
        weight = torch.linspace(-1, 1, WIDTH)
        expected = function(WIDTH, *plain)
        (expected * weight).sum().backward()
        with fusing():
            found = function(WIDTH, *compiled)
            (found * weight).sum().backward()
        assert torch.allclose(found, expected, atol=1e-5)
        for a, b in zip(compiled, plain):
            assert a.grad is not None and b.grad is not None
            assert torch.allclose(a.grad, b.grad, atol=1e-5)
    assert not said(caplog)


@pytest.mark.slow
@compiles
@old
def test_the_fused_norm_of_channels_is_the_layer_and_its_activation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    layer = torch.nn.LayerNorm(WIDTH, eps=1e-6)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    (x,) = tensors(1)
    expected = torch.nn.functional.silu(layer(x))
    with fusing():
        found = fused.channel_silu(WIDTH, x, layer.weight, layer.bias)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not said(caplog)


@pytest.mark.parametrize("make", [
    lambda: TemporalConv(6), lambda: Conv3d(6, 4), lambda: TimeDown(6), lambda: TimeUp(6),
], ids=["TemporalConv", "Conv3d", "TimeDown", "TimeUp"])  # fmt: skip
def test_convolutions_over_time_as_matrix_products(make: Callable[[], torch.nn.Module]) -> None:
    torch.manual_seed(0)
    layer = make()
    one, other = (
        torch.randn(
            2, 8, 4, 5, 6, generator=torch.Generator().manual_seed(1)
        ).requires_grad_() for _ in "ab"
    )  # fmt: skip
    expected = layer(one)
    expected.square().sum().backward()
    grads = {k: p.grad.clone() for k, p in layer.named_parameters() if p.grad is not None}
    layer.zero_grad()
    with fusing():
        found = layer(other)
        found.square().sum().backward()
    assert torch.allclose(found, expected, atol=1e-5)
    assert one.grad is not None and other.grad is not None
    assert torch.allclose(one.grad, other.grad, atol=1e-4)
    assert grads
    for key, p in layer.named_parameters():
        assert p.grad is not None
        assert torch.allclose(p.grad, grads[key], atol=1e-3)
