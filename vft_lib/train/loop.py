"""One training loop for every model: schedule, EMA, log, checkpoints, resume, torchrun, windows.

A run lasts a number of steps, or a window of time (`minutes`): then the learning rate follows the
clock, and the run ends by itself with weights that load. Everything random in a step is drawn from
the step number (see :func:`step_generator`), so a run of a number of steps that was killed and
started again takes the very steps it would have taken. Checkpoints are safetensors: nothing here
pickles. On a GPU no step waits for the device: losses are read back every `LOG_EVERY` steps.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import VftError
from ..files.atomic import check_place, write_bytes
from ..transformer.fused import fusing
from .state import EMA, State, before, last_good, load, optimizers, save

LOG_EVERY = 10  # steps
PATIENCE = timedelta(days=30)  # for what one process does while the others wait


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

    def progress(self, step: int) -> float:
        """How much of a run of `steps` lies behind `step`, 0 to 1."""
        return min(1.0, step / max(1, self.steps))

    def scale(self, step: int, progress: float | None = None) -> float:
        """Learning rate at `step` as a share of the peak: linear warm-up, then cosine to 1 % after
        `steps` steps. Given a `progress`, which may begin late, the cosine is that of it, and the
        warm-up rises to it."""
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        if progress is None:
            if step < self.warmup:
                return warm
            progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


class Task(nn.Module):
    """What is trained: `forward(step, generator, progress)` returns the losses of one step, "loss"
    first. `generator` is on the task's device, `progress` (0 to 1) is how much of the run lies
    behind. `data`: a mark of what it is trained on; a run goes on only with the same."""

    data: str = ""
    exact: tuple[str, ...] = ()
    """Parts of the names of weights that stay float32 in the forward pass."""

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The weights that Muon trains: matrices and kernels between hidden layers."""
        return []

    def samples(self, out: Path, step: int) -> None:
        """Draw a strip of pictures that shows how far training has come."""


def step_generator(
    seed: int, step: int, rank: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """The randomness of one step on one process: the same after any number of restarts."""
    number = ((seed * 1_000_003 + step) * 4_099 + rank) % (1 << 62)
    return torch.Generator(device).manual_seed(number)


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


@dataclass(frozen=True)
class Window:
    """A run that lasts for a time: `minutes` from `began` (of time.monotonic) on. `start`: the
    progress it begins with, above 0 where it goes on from weights that are trained already."""

    minutes: float
    began: float = field(default_factory=time.monotonic)
    start: float = 0.0

    def left(self) -> float:
        """Seconds."""
        return self.began + 60 * self.minutes - time.monotonic()


def train(
    task: Task, schedule: Schedule, out: Path, *, device: torch.device, every: float = 120.0,
    stop_after: int | None = None, dtype: torch.dtype | None = None,
    window: Window | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Run `schedule` to its end, or as much of it as fits into `window`, and return the EMA
    weights.

    `out` receives `log.jsonl` (a line every ten steps and at each checkpoint),
    `checkpoint.safetensors` (weights and their average) and `optimizer-STEP.safetensors` (both at
    least every `every` seconds; the one before the last stays, see `state.before`), and strips.
    If a checkpoint is there, training goes on from it; a window that follows a finished run begins
    in the middle of the schedule. Under torchrun each process takes its own share of the
    randomness, gradients and the loss are averaged, and the first process's clock counts. Weights
    are cast to `dtype` for the forward and backward pass and kept in float32 (None:
    :func:`autocast_dtype`). `stop_after` ends the call early, as a kill would, after that many
    steps of this call. VftError, in all processes alike, where the loss or a gradient is no number:
    it names the step and the last good checkpoint.
    """
    rank, world = join_group(device)
    dtype = dtype or autocast_dtype(device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    recipe = repr((getattr(task, "recipe", None), schedule)) + task.data
    out.mkdir(parents=True, exist_ok=True)
    module = task.to(device).train()
    opts = optimizers(task, schedule)
    ema = EMA(module, schedule.ema)
    checkpoint = out / "checkpoint.safetensors"
    if rank == 0:  # weights, their average, two moments; thrice, as the old ones stay meanwhile
        size = 4 * sum(v.nbytes for v in module.state_dict().values())
        check_place(checkpoint, size * (3 - checkpoint.exists() - before(checkpoint).exists()))
    state, warm = State(0, 0.0, 0.0), 0  # warm: the step at which the learning rate begins to rise
    if checkpoint.exists():
        state = load(checkpoint, module, ema, opts, recipe if window is None else None)
        if window is not None and state.progress >= 1:
            state, warm = State(state.step, state.seconds, 0.5), state.step
    first, spent = state.step, state.seconds
    start = max(state.progress, 0.0 if window is None else window.start)
    log = out / "log.jsonl"
    if rank == 0:
        _cut_log(log, first)
    began = clock = saved = sampled = time.monotonic()
    limit = None if window is None else max(1.0, window.left())
    bar = tqdm(
        itertools.count(first) if window else range(first, schedule.steps),
        initial=first, total=None if window else schedule.steps, mininterval=1, disable=rank > 0,
    )  # fmt: skip
    smooth: dict[str, float] = {}
    timed: tuple[int, float] | None = None  # a step, and when it was over
    for step in bar:
        progress = schedule.progress(step)
        if limit is not None:
            gone = (time.monotonic() - clock) / max(1.0, limit - (clock - began))
            progress = _of_first(min(1.0, start + (1 - start) * gone), device)
        for opt in opts:
            for group in opt.param_groups:
                peak = group.setdefault("peak", group["lr"])
                group["lr"] = peak * schedule.scale(
                    step - warm, None if limit is None else progress
                )
        losses = _forward(module, dtype, step=step, progress=progress,
                          generator=step_generator(schedule.seed, step, rank, device))  # fmt: skip
        losses["loss"].backward()
        if world > 1:
            losses["loss"] = _averaged(module, losses["loss"], world)
        norm = nn.utils.clip_grad_norm_(module.parameters(), schedule.grad_clip)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        ema.update(module, step)
        now = time.monotonic()
        if step == first + 1:  # the first steps compile and choose kernels
            clock = now
        last = step + 1 == schedule.steps
        if limit is not None:
            last = _of_first(now - began >= limit, device) > 0
        stopping = stop_after is not None and step + 1 - first >= stop_after
        due = now - saved > every and (world == 1 or step % LOG_EVERY == 0)
        saving = last or stopping or due
        if step % LOG_EVERY == 0 or saving:
            row = {k: float(v.detach()) for k, v in losses.items()} | {"grad": float(norm)}
            now = time.monotonic()
            if not math.isfinite(row["loss"] + row["grad"]):
                raise VftError(
                    f"the loss is {row['loss']}, its gradient {row['grad']} at step {step}; "
                    f"{last_good(checkpoint)}: choose a lower learning rate or --dtype float32"
                )
            if limit is not None and step >= first + 2 * LOG_EVERY:
                if timed is None:
                    timed = step, now
                elif step >= timed[0] + 2 * LOG_EVERY and timed[1] > 0 and rank == 0:
                    each = (now - timed[1]) / (step - timed[0])
                    total = step - first + int((limit - (now - began)) / each)
                    bar.write(f"{each:.3f} s a step: {total:,} steps in {limit / 60:.1f} minutes")
                    timed = step, 0.0  # said once
            smooth = {k: 0.9 * smooth.get(k, v) + 0.1 * v for k, v in row.items()}
            if rank == 0:
                seconds = round(spent + now - began, 1)
                row = {k: round(v, 6) for k, v in row.items()} | _busy(device)
                with log.open("a", encoding="utf-8") as f:
                    f.write(json.dumps({"step": step, "seconds": seconds, **row}) + "\n")
            bar.set_postfix({k: f"{v:.4f}" for k, v in smooth.items()}, refresh=False)
        # Before the checkpoint: a run killed between the two would never draw its last strip.
        if rank == 0 and (last or now - sampled > max(60.0, 5 * every)):
            task.samples(out, step + 1)
            module.train()
            sampled = time.monotonic()
        if rank == 0 and saving:
            done = State(step + 1, spent + now - began, 1.0 if last else progress)
            save(checkpoint, module, ema, opts, recipe, done)
            saved = now
        if stopping or last:
            break
    with first_alone(device):  # the others go on when the last checkpoint is written
        return ema.weights


def _forward(module: Task, dtype: torch.dtype, **inputs: Any) -> dict[str, Tensor]:
    """One forward pass with the weights cast to `dtype`; gradients reach the float32 ones."""
    cast = {
        k: p.to(dtype) for k, p in module.named_parameters()
        if dtype != torch.float32 and not any(part in k for part in module.exact)
    }  # fmt: skip
    with fusing(next(module.parameters()).is_cuda):
        return torch.func.functional_call(module, cast, kwargs=inputs)


def _averaged(module: nn.Module, loss: Tensor, world: int) -> Tensor:
    """The mean of all processes' gradients, a weight without one counting as zero; returns the mean
    of their losses. What is no number in one of them is none in all."""
    grads = []
    for p in module.parameters():
        if p.requires_grad:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            grads.append(p.grad)
    loss = loss.detach()[None]
    flat = torch.cat([*(g.flatten() for g in grads), loss.to(grads[0])])
    torch.distributed.all_reduce(flat)
    *parts, mean = (flat / world).split([*(g.numel() for g in grads), 1])
    for g, part in zip(grads, parts):
        g.copy_(part.view_as(g))
    return mean[0]


def _of_first(value: float, device: torch.device) -> float:
    """The first process's value, in all of them: a clock of its own would part their weights."""
    if not torch.distributed.is_initialized():
        return value
    shared = torch.tensor(float(value), device=device)
    torch.distributed.broadcast(shared, 0)
    return float(shared)


def _busy(device: torch.device) -> dict[str, float]:
    """How busy the card was in the last moment, where that can be asked: {"busy": percent}."""
    if device.type != "cuda":
        return {}
    try:
        return {"busy": float(torch.cuda.utilization(device))}
    except Exception:  # pynvml is not installed, may not ask, or has an error of its own
        return {}


_waiting: list[Any] = []  # the group in which processes wait for the first


def join_group(device: torch.device) -> tuple[int, int]:
    """(rank, world size); under torchrun, joins the process group on the first call."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if world > 1 and not _waiting:
        _waiting.append(torch.distributed.new_group(backend="gloo", timeout=PATIENCE))
    return rank, world


def leave_group() -> None:
    """The end of what :func:`join_group` began, in all processes."""
    if _waiting:
        _waiting.clear()
        torch.distributed.destroy_process_group()


@contextmanager
def first_alone(device: torch.device) -> Iterator[bool]:
    """Under torchrun, the first process runs the block and then the others do, which wait for it
    for as long as it takes. Yields whether this is the first. VftError in the others if it fails
    there."""
    rank, world = join_group(device)
    done = torch.ones(())
    if rank > 0:
        torch.distributed.broadcast(done, 0, _waiting[0])
        if not done:
            raise VftError("the first process ended with an error, which it names")
    try:
        yield rank == 0
    except BaseException:
        done.zero_()
        raise
    finally:
        if rank == 0 and world > 1:
            torch.distributed.broadcast(done, 0, _waiting[0])


def _cut_log(path: Path, first: int) -> None:
    """Drop the rows that a killed run wrote after its checkpoint."""
    if path.exists():
        rows = [row for row in path.read_text(encoding="utf-8").splitlines() if row.endswith("}")]
        kept = [row for row in rows if json.loads(row)["step"] < first]
        write_bytes(path, "".join(f"{row}\n" for row in kept).encode())
