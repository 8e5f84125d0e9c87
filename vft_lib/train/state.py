"""What a run holds beside the network: AdamW, Muon for hidden matrices, the running average; and
the files that keep all of it."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import CheckpointError, VftError
from ..files.atomic import replacing
from ..files.tensor_files import Cast, write_safetensors

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


@dataclass(frozen=True)
class State:
    """How far a run has come: steps, seconds of training, and the progress (0 to 1) of its
    schedule."""

    step: int
    seconds: float
    progress: float


def save(
    path: Path, module: nn.Module, ema: EMA, opts: list[torch.optim.Optimizer], recipe: str,
    state: State,
) -> None:  # fmt: skip
    """Write `path` and the optimizers' moments. Those lie apart, in a file named after the step: a
    run that is killed between the two files finds the moments of the checkpoint that is there. The
    checkpoint that was there becomes :func:`before`'s, with its moments: a run may go wrong some
    time before its loss shows it."""
    meta = {"step": state.step, "seconds": state.seconds, "progress": state.progress,
            "recipe": recipe}  # fmt: skip
    moments = {
        f"opt.{i}.{p}.{k}": v
        for i, opt in enumerate(opts)
        for p, row in opt.state_dict()["state"].items()
        for k, v in row.items() if isinstance(v, Tensor)
    }  # fmt: skip
    tensors = {f"model.{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.weights.items()}
    _write(_moments_of(path, state.step), moments, meta)
    if path.exists() and step_of(path) != state.step:
        _keep(path, before(path))
    _write(path, tensors, meta)
    held = [p for p in (path, before(path)) if p.exists()]
    kept = {_moments_of(path, step_of(p)) for p in held}
    for old in path.parent.glob("optimizer-*.safetensors"):
        if old not in kept:
            old.unlink()


def _write(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    with replacing(path) as tmp:
        write_safetensors(tmp, Cast(tensors, None), {"train": json.dumps(meta)})


def before(checkpoint: Path) -> Path:
    """Where the checkpoint before the last is kept."""
    return checkpoint.with_stem(f"{checkpoint.stem}-before")


def step_of(checkpoint: Path) -> int:
    """How many steps the run had made when it was written. CheckpointError if it is none."""
    return int(_head(checkpoint)["step"])


def finished(checkpoint: Path) -> bool:
    """Whether the run that wrote it was at its end, or at that of its window."""
    return bool(_head(checkpoint).get("progress") == 1)


def last_good(checkpoint: Path) -> str:
    """What a run that failed can go on from, in words."""
    if not checkpoint.exists():
        return "there is no checkpoint yet"
    said = f"{checkpoint} (step {step_of(checkpoint)}) is the last good checkpoint"
    older = before(checkpoint)
    if older.exists():
        said += f", {older.name} (step {step_of(older)}) the one before"
    return said


def _keep(path: Path, place: Path) -> None:
    """`place` becomes a second name of the file, or a copy where there are no such names."""
    with replacing(place) as tmp:
        tmp.unlink()
        try:
            os.link(path, tmp)
        except OSError:
            shutil.copyfile(path, tmp)


def _moments_of(checkpoint: Path, step: int) -> Path:
    return checkpoint.with_name(f"optimizer-{step:07d}.safetensors")


def _head(path: Path) -> dict[str, Any]:
    return _read(path, weights=False)[0]


def _read(path: Path, weights: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as f:
            meta, keys = json.loads(f.metadata()["train"]), f.keys() if weights else ()
            return meta, {k: f.get_tensor(k) for k in keys}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as e:
        raise CheckpointError(
            f"{path} is not a training checkpoint ({e}); delete it to start again"
        ) from None


def load(
    path: Path, module: nn.Module, ema: EMA, opts: list[torch.optim.Optimizer],
    recipe: str | None,
) -> State:  # fmt: skip
    """Put what `path` holds into the network, its average and the optimizers. `recipe`: that it
    must have been written with (None: any). CheckpointError if it is another, or no checkpoint."""
    meta, tensors = _read(path)
    if recipe is not None and meta.get("recipe") != recipe:
        raise CheckpointError(
            f"{path} belongs to another recipe ({meta.get('recipe')}); choose another --out or "
            "delete it to start again"
        )
    module.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    for k, v in ema.weights.items():
        v.copy_(tensors[f"ema.{k}"])
    beside = _moments_of(path, meta["step"])  # may be left out of what is carried elsewhere
    moments = _read(beside)[1] if beside.exists() else {}
    for i, opt in enumerate(opts):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in moments.items():
            if key.startswith(f"opt.{i}."):
                _, _, p, name = key.split(".", 3)
                state.setdefault(int(p), {})[name] = value
        opt.load_state_dict({"state": state, "param_groups": opt.state_dict()["param_groups"]})
    return State(meta["step"], meta["seconds"], meta.get("progress", 0.0))
