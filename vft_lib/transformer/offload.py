"""Weights that stay in the host's memory: those of layers that run once a schedule, not every step.

A device then holds one of them at a time, for one product. The numbers are the same: the same
product runs there, of the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class OffloadedLinear(nn.Module):
    """A linear layer, `nn.Linear` or one in eight bits, whose weights are no parameters: neither
    `.to(device)` nor a host's memory manager moves or counts them. Casts and state dicts reach them
    as those of any layer. They take no gradients."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.hold(layer)

    def hold(self, layer: nn.Module) -> None:
        """Compute with this layer from now on."""
        if isinstance(layer, nn.Linear):  # another class of them may bring weights over by itself
            plain = nn.Linear(
                layer.in_features, layer.out_features, layer.bias is not None, device="meta"
            )
            plain.load_state_dict(layer.state_dict(), assign=True)
            layer = plain
        self._held = (layer.requires_grad_(False),)  # in a tuple: not a submodule
        self._go_home()

    @property
    def layer(self) -> nn.Module:
        """The layer that computes, on the CPU (or not filled yet, on `meta`)."""
        return self._held[0]

    def forward(self, x: Tensor) -> Tensor:
        here = {k: p.to(x.device) for k, p in self.layer.named_parameters()}
        return functional_call(self.layer, here, (x,))

    @property
    def nbytes(self) -> int:
        """Bytes that stay off the device."""
        return sum(p.nbytes for p in self.layer.parameters())

    def state(self) -> tuple[tuple[int, int], ...]:
        """Changes when a weight does."""
        return tuple(
            (p.data_ptr(), 0 if p.is_inference() else p._version) for p in self.layer.parameters()
        )

    def _go_home(self) -> None:
        if not any(p.is_meta for p in self.layer.parameters()):
            self.layer.to("cpu")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Casts, and does not move."""
        self.layer._apply(lambda t: t.to(fn(torch.empty(0, dtype=t.dtype)).dtype))
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        self.layer._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], *args: Any) -> None:
        self.layer._load_from_state_dict(state_dict, *args)
        self._go_home()


def offloaded(model: nn.Module) -> dict[str, OffloadedLinear]:
    """The layers of a model whose weights stay in the host's memory, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, OffloadedLinear)}


def device_bytes(model: nn.Module) -> int:
    """Bytes of the weights that lie where a model computes, or are moved there."""
    return sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
