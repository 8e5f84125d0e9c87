"""The flow decoder's weights in eight bits: half of bfloat16's memory, and not quite the same
pictures. Products are computed in the dtype of what comes in."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import VftError
from ..transformer.offload import OffloadedLinear
from .tokenizer import Tokenizer

Storage = Literal["int8", "fp8"]


class EightBitLinear(nn.Module):
    """A linear layer whose rows are whole numbers -127..127 ("int8"), or 8-bit floats with four
    bits of exponent ("fp8"), times one float32 scale a row: all of them parameters, so that what
    moves the others moves these too."""

    weight: nn.Parameter
    scale: nn.Parameter

    def __init__(self, linear: nn.Linear, storage: Storage) -> None:
        super().__init__()
        self.storage = storage
        weight = linear.weight.detach().float()
        largest = weight.abs().amax(1, keepdim=True).clamp(min=1e-12)
        if storage == "int8":
            scale = largest / 127
            rows = (weight / scale).round().to(torch.int8)
        else:
            scale = largest / torch.finfo(torch.float8_e4m3fn).max
            rows = (weight / scale).to(torch.float8_e4m3fn)
        self.weight, self.scale = _fixed(rows), _fixed(scale[:, 0])
        self.bias = linear.bias

    def _apply(self, fn: object, recurse: bool = True) -> nn.Module:
        """Moves between devices; a cast (`.to(dtype)`) leaves the eight bits as they are."""
        device = fn(torch.empty(0)).device  # type: ignore[operator]
        self.weight = _fixed(self.weight.to(device))
        self.scale = _fixed(self.scale.to(device))
        if self.bias is not None:
            self.bias = _fixed(fn(self.bias))  # type: ignore[operator]
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight, self.bias)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What it makes of x `[..,in]` -> `[..,out]`, its weight and bias being where x is."""
        y = F.linear(x, weight.to(x.dtype)) * self.scale.to(x)
        return y if bias is None else y + bias.to(x.dtype)


def _fixed(x: Tensor) -> nn.Parameter:
    return nn.Parameter(x, requires_grad=False)


@lru_cache(maxsize=8)
def refusal(storage: Storage, device: torch.device) -> str:
    """Why a device cannot compute from weights in such a storage; "" where it can."""
    if storage == "int8":
        return ""
    try:  # some have no such numbers at all
        torch.zeros(1, device=device).to(torch.float8_e4m3fn).float()
    except Exception as e:  # whatever its driver may raise
        return (str(e).strip() or type(e).__name__).splitlines()[0]
    return ""


def storage_of(tokenizer: Tokenizer) -> str:
    """How the decoder's weights are stored: "int8", "fp8", or "" for as they are."""
    kinds = {m.storage for m in tokenizer.decoder.modules() if isinstance(m, EightBitLinear)}
    return next(iter(kinds), "")


def store_in_eight_bits(
    tokenizer: Tokenizer, storage: Storage, layer: type[EightBitLinear] = EightBitLinear
) -> int:
    """Keep the weights of the decoder's trunk in eight bits from now on, in layers of the class
    `layer`. Returns how many bytes that saves. VftError for another storage than "int8" or "fp8".
    """
    if storage not in get_args(Storage):
        raise VftError(f"weights in {storage!r}; choose {', '.join(get_args(Storage))}")
    saved = 0
    for module in list(tokenizer.decoder.trunk.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                small = layer(child, storage)
                saved += child.weight.nbytes - small.weight.nbytes - small.scale.nbytes
                setattr(module, name, small)
            elif isinstance(child, OffloadedLinear) and isinstance(child.layer, nn.Linear):
                saved += child.nbytes
                child.hold(EightBitLinear(child.layer, storage))
                saved -= child.nbytes
    return saved
