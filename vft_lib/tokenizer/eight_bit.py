"""The flow decoder's weights in eight bits: half of bfloat16's memory, and not quite the same
pictures. Products are computed in the dtype of what comes in."""

from __future__ import annotations

from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import VftError
from .tokenizer import Tokenizer

Storage = Literal["int8", "fp8"]


class EightBitLinear(nn.Module):
    """A linear layer whose rows are whole numbers -127..127 ("int8"), or 8-bit floats with four
    bits of exponent ("fp8"), times one float32 scale a row."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear, storage: Storage) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        largest = weight.abs().amax(1, keepdim=True).clamp(min=1e-12)
        if storage == "int8":
            scale = largest / 127
            rows = (weight / scale).round().to(torch.int8)
        else:
            scale = largest / torch.finfo(torch.float8_e4m3fn).max
            rows = (weight / scale).to(torch.float8_e4m3fn)
        self.register_buffer("weight", rows)
        self.register_buffer("scale", scale[:, 0])
        self.bias = linear.bias

    def _apply(self, fn: object, recurse: bool = True) -> nn.Module:
        """Moves between devices; a cast (`.to(dtype)`) leaves the eight bits as they are."""
        device = fn(torch.empty(0)).device  # type: ignore[operator]
        self.weight, self.scale = self.weight.to(device), self.scale.to(device)
        if self.bias is not None:
            self.bias = nn.Parameter(fn(self.bias), requires_grad=False)  # type: ignore[operator]
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)


def store_in_eight_bits(tokenizer: Tokenizer, storage: Storage) -> int:
    """Keep the weights of the decoder's trunk in eight bits from now on. Returns how many bytes
    that saves. VftError for another storage than "int8" or "fp8"."""
    if storage not in get_args(Storage):
        raise VftError(f"weights in {storage!r}; choose {', '.join(get_args(Storage))}")
    saved = 0
    for module in list(tokenizer.decoder.trunk.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                small = EightBitLinear(child, storage)
                saved += child.weight.nbytes - small.weight.nbytes - small.scale.nbytes
                setattr(module, name, cast("nn.Module", small))
    return saved
