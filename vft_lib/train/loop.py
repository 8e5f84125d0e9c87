"""One training loop for every model: schedule, EMA, log, checkpoints, resume, torchrun.

Everything random in a step is drawn from the step number (see :func:`step_generator`), so a run
that was killed and started again takes the very steps it would have taken. Checkpoints are
safetensors: nothing here pickles.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ..errors import CheckpointError, VftError
from ..files.atomic import check_place, replacing, write_bytes
from ..files.tensor_files import Cast, write_safetensors


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: `lr` is the peak for AdamW, `matrix_lr` for Muon (0: AdamW alone)."""

    steps: int
    batch: int
    lr: float
    matrix_lr: float = 0.0
    warmup: int = 100
    weight_decay: float = 0.01
    ema: float = 0.999
    grad_clip: float = 1.0
    seed: int = 0

    def scale(self, step: int) -> float:
        """Learning rate at `step` as a share of the peak: linear warm-up, then cosine to 1 %."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Task(nn.Module):
    """What is trained: `forward(step, generator)` returns the losses of one step, "loss" first.
    `data`: a mark of what it is trained on; a run goes on only with the same."""

    data: str = ""

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The weights that Muon trains: matrices and kernels between hidden layers."""
        return []

    def samples(self, out: Path, step: int) -> None:
        """Draw a strip of pictures that shows how far training has come."""


def step_generator(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """The randomness of one step on one process: the same after any number of restarts."""
    return torch.Generator().manual_seed(((seed * 1_000_003 + step) * 4_099 + rank) % (1 << 62))


class EMA:
    """Exponential moving average of the weights, warmed up so that short runs are not stuck at
    their initial values. Kept in float32 under the names of the state dict."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {k: v.detach().float().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        d = min(self.decay, (1 + step) / (10 + step))
        for k, v in module.state_dict().items():
            self.weights[k].lerp_(v.float(), 1 - d)


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
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=schedule.lr, betas=(0.9, 0.95))
    ]
    if hidden:
        found.append(MatrixMuon(hidden, schedule.matrix_lr, schedule.weight_decay))
    return found


def autocast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where `device` multiplies matrices in it faster than in float32, else float32. A
    processor without the instructions for it (AVX512-BF16 or AMX) takes ten times as long."""
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if native else torch.float32
    if device.type != "cpu" or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.float32
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # not in every torch
    fast = any(getattr(torch.cpu, name, bool)() for name in names)
    return torch.bfloat16 if fast else torch.float32


def train(
    task: Task, schedule: Schedule, out: Path, *, device: torch.device, every: float = 120.0,
    stop_after: int | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Run `schedule` to its end and return the EMA weights.

    `out` receives `log.jsonl` (one line every ten steps), `checkpoint.safetensors` (at least
    every `every` seconds) and sample strips. If a checkpoint is there, training goes on from it.
    Under torchrun each process takes its own share of the randomness and gradients are averaged.
    `dtype` is autocast's (float32: none; None: :func:`autocast_dtype`). `stop_after` ends the call
    early, as a kill would, after that many steps of this call.
    """
    rank, world = join_group(device)
    dtype = dtype or autocast_dtype(device)
    recipe = repr((getattr(task, "recipe", None), schedule)) + task.data
    out.mkdir(parents=True, exist_ok=True)
    module = task.to(device).train()
    opts = optimizers(task, schedule)
    ema = EMA(module, schedule.ema)
    spent, first = 0.0, 0
    checkpoint = out / "checkpoint.safetensors"
    if rank == 0:  # weights, their average, two moments; twice, as the old one stays meanwhile
        size = 4 * sum(v.nbytes for v in module.state_dict().values())
        check_place(checkpoint, size if checkpoint.exists() else 2 * size)
    if checkpoint.exists():
        first, spent = _load(checkpoint, module, ema, opts, recipe)
    forward: Callable[..., dict[str, Tensor]] = module
    if world > 1:
        forward = DistributedDataParallel(module, find_unused_parameters=True)
    log = _open_log(out / "log.jsonl", first) if rank == 0 else None
    began = saved = sampled = time.monotonic()
    bar = tqdm(
        range(first, schedule.steps),
        initial=first,
        total=schedule.steps,
        mininterval=1,
        disable=rank > 0,
    )
    smooth: dict[str, float] = {}
    for step in bar:
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = group.setdefault("peak", group["lr"]) * schedule.scale(step)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            losses = forward(step=step, generator=step_generator(schedule.seed, step, rank))
        losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), schedule.grad_clip)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        ema.update(module, step)
        now, last = time.monotonic(), step + 1 == schedule.steps
        if log and (step % 10 == 0 or last):
            row = {k: float(v.detach()) for k, v in losses.items()} | {"grad": float(norm)}
            smooth = {k: 0.9 * smooth.get(k, v) + 0.1 * v for k, v in row.items()}
            seconds = round(spent + now - began, 1)
            log.write(json.dumps({"step": step, "seconds": seconds, **row}) + "\n")
            log.flush()
            bar.set_postfix({k: f"{v:.4f}" for k, v in smooth.items()}, refresh=False)
        stopping = stop_after is not None and step + 1 - first >= stop_after
        # Before the checkpoint: a run killed between the two would never draw its last strip.
        if rank == 0 and (last or now - sampled > max(60.0, 5 * every)):
            task.samples(out, step + 1)
            module.train()
            sampled = time.monotonic()
        if rank == 0 and (last or stopping or now - saved > every):
            _save(checkpoint, module, ema, opts, recipe, step + 1, spent + now - began)
            saved = now
        if stopping:
            break
    if log:
        log.close()
    return ema.weights


def join_group(device: torch.device) -> tuple[int, int]:
    """(rank, world size); under torchrun, joins the process group on the first call."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return rank, world


def _open_log(path: Path, first: int) -> IO[str]:
    """The log, open to append, without rows that the killed run wrote after its checkpoint."""
    if path.exists():
        rows = [row for row in path.read_text(encoding="utf-8").splitlines() if row.endswith("}")]
        kept = [row for row in rows if json.loads(row)["step"] < first]
        write_bytes(path, "".join(f"{row}\n" for row in kept).encode())
    return path.open("a", encoding="utf-8")


def _save(
    path: Path, module: nn.Module, ema: EMA, opts: list[torch.optim.Optimizer],
    recipe: str, step: int, seconds: float,
) -> None:  # fmt: skip
    tensors = {f"model.{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.weights.items()}
    for i, opt in enumerate(opts):
        for p, state in opt.state_dict()["state"].items():
            tensors |= {f"opt.{i}.{p}.{k}": v for k, v in state.items() if isinstance(v, Tensor)}
    meta = {"step": step, "seconds": seconds, "recipe": recipe}
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    with replacing(path) as tmp:
        write_safetensors(tmp, Cast(tensors, None), {"train": json.dumps(meta)})


def _load(
    path: Path, module: nn.Module, ema: EMA, opts: list[torch.optim.Optimizer], recipe: str
) -> tuple[int, float]:
    try:
        with safe_open(path, "pt") as f:
            meta = json.loads(f.metadata()["train"])
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118  (no mapping)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as e:
        raise CheckpointError(
            f"{path} is not a training checkpoint ({e}); delete it to start again"
        ) from None
    if meta.get("recipe") != recipe:
        raise CheckpointError(
            f"{path} belongs to another recipe ({meta.get('recipe')}); choose another --out or "
            "delete it to start again"
        )
    module.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    for k, v in ema.weights.items():
        v.copy_(tensors[f"ema.{k}"])
    for i, opt in enumerate(opts):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"opt.{i}."):
                _, _, p, name = key.split(".", 3)
                state.setdefault(int(p), {})[name] = value
        opt.load_state_dict({"state": state, "param_groups": opt.state_dict()["param_groups"]})
    return meta["step"], meta["seconds"]
