"""What moves the weights: AdamW, Muon for hidden matrices, and their running average."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import VftError

if TYPE_CHECKING:
    from .loop import Schedule, Task


class EMA:
    """Exponential moving average of the weights, warmed up so that short runs are not stuck at
    their initial values. Kept in float32 under the names of the state dict."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {k: v.detach().float().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        d = min(self.decay, (1 + step) / (10 + step))
        new = [v.float() for v in module.state_dict().values()]
        torch._foreach_lerp_(list(self.weights.values()), new, 1 - d)


_Muon: Any = getattr(torch.optim, "Muon", torch.optim.Optimizer)  # came with torch 2.9


class MatrixMuon(_Muon):
    """Muon (Keller Jordan 2024) over weights seen as matrices `[out, rest]`, so that convolution
    kernels take part: on the small autoencoder it learns about twice as much a step as AdamW."""

    def __init__(self, weights: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        if _Muon is torch.optim.Optimizer:
            raise VftError(
                f"this recipe trains with torch.optim.Muon: torch {torch.__version__} "
                "has none; update to 2.9 or newer"
            )
        self.weights = weights
        self.views = [nn.Parameter(w.detach().flatten(1)) for w in weights]  # same memory
        super().__init__(
            self.views, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for view, weight in zip(self.views, self.weights):
            view.grad = None if weight.grad is None else weight.grad.flatten(1)
        super().step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for tensor in (*self.views, *self.weights):
            tensor.grad = None


def optimizers(task: Task, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Muon for the task's hidden matrices where `matrix_lr` asks for it, AdamW for everything
    else; vectors are not decayed."""
    hidden = task.hidden_matrices() if schedule.matrix_lr else []
    taken = {id(p) for p in hidden}
    rest = [p for p in task.parameters() if p.requires_grad and id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": schedule.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = any(p.is_cuda for p in rest)
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=schedule.lr, betas=(0.9, 0.95), fused=fused)
    ]
    if hidden:
        found.append(MatrixMuon(hidden, schedule.matrix_lr, schedule.weight_decay))
    return found
