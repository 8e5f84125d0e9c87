"""What a network does between its matrix products, as one kernel each where that pays.

On a GPU a norm, its modulation, a gate or an activation each read and write all of a layer's
numbers; one after another they take longer than the matrix products between them. Inside
:func:`fusing` (training uses it) torch.compile makes one kernel of each group below, forward and
backward; everywhere else the same functions run as written. The results are the same but for
rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .graphs import refused

log = logging.getLogger(__name__)
_state = {"on": False}


@contextmanager
def fusing(on: bool = True) -> Iterator[None]:
    """Fuse what runs meanwhile."""
    before, _state["on"] = _state["on"], on
    try:
        yield
    finally:
        _state["on"] = before


def active() -> bool:
    return _state["on"]


def norm(x: Tensor) -> Tensor:
    """LayerNorm over the last axis, no affine parameters, eps 1e-5, in float32."""
    if x.is_cuda:  # its kernel computes in float32 whatever comes in
        return F.layer_norm(x, x.shape[-1:], eps=1e-5).to(x.dtype)
    return F.layer_norm(x.float(), x.shape[-1:], eps=1e-5).to(x.dtype)


def fused(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of tensors and, as its first argument, the width of their last axis: compiled for
    each width and number of axes, for any other sizes. Where that fails, it runs as written."""
    compiled: dict[Any, Callable[..., Tensor] | None] = {}

    @wraps(function)
    def call(width: int, *tensors: Tensor) -> Tensor:
        if not _state["on"]:
            return function(width, *tensors)
        key = width, tuple((x.ndim, x.dtype, x.requires_grad) for x in tensors)
        if key not in compiled:
            compiled[key] = torch.compile(_fixed(function, width), dynamic=True, fullgraph=True)
        run = compiled[key]
        if run is None:
            return function(width, *tensors)
        try:
            return run(*tensors)
        except Exception as e:  # whatever a compiler may raise
            log.warning("%s runs as written: %s", function.__name__, refused(e))
            compiled[key] = None
            return function(width, *tensors)

    return call


def _fixed(function: Callable[..., Tensor], width: int) -> Callable[..., Tensor]:
    """With the last axis known to the compiler: it makes better reductions. Code of its own, since
    torch.compile counts its versions by code object, and stops at eight."""

    def run(*tensors: Tensor) -> Tensor:
        return function(width, *(x.reshape(*x.shape[:-1], width) for x in tensors))

    name = f"{function.__name__}_{width}"
    return FunctionType(
        run.__code__.replace(co_name=name), run.__globals__, name, None, run.__closure__
    )


@fused
def unit(width: int, x: Tensor) -> Tensor:
    """:func:`norm`."""
    return norm(x)


@fused
def modulated(width: int, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(x) * (1 + scale) + shift."""
    return torch.addcmul(shift, norm(x), 1 + scale)


@fused
def gated(width: int, x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """x + gate * y."""
    return torch.addcmul(x, gate, y)


@fused
def swiglu(width: int, x: Tensor, y: Tensor) -> Tensor:
    """silu(x) * y (Shazeer 2020, arXiv 2002.05202)."""
    return F.silu(x) * y


@fused
def channel_silu(width: int, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """SiLU of the LayerNorm over the last axis, eps 1e-6."""
    return F.silu(F.layer_norm(x, (width,), weight, bias, 1e-6))
