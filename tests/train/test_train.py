"""The training loop: what it computes, and that a kill costs no more than the last steps."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from safetensors import safe_open
from torch import Tensor, nn
from train_tasks import CPU, SCHEDULE, STEPS, tokenizer_task, vae_task

from vft_lib.errors import VftError
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.train.loop import (
    EMA,
    Schedule,
    Task,
    Window,
    autocast_dtype,
    optimizers,
    step_generator,
    train,
)
from vft_lib.train.state import MatrixMuon, step_of
from vft_lib.train.tokenizer import draw_budgets
from vft_lib.transformer.graphs import Compiled

# ---------------------------------------------------------------------- parts


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="asks Linux for the instructions")
def test_bfloat16_where_the_processor_has_instructions_for_it() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    able = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # ONEDNN_MAX_CPU_ISA may say no
    fast = able and bool(flags & {"avx512_bf16", "amx_bf16"})
    assert autocast_dtype(CPU) == (torch.bfloat16 if fast else torch.float32)


def test_a_window_that_begins_late_never_reaches_the_highest_rate() -> None:
    s = Schedule(steps=100, batch=1, lr=1.0, warmup=10)
    late = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * 0.3))
    rates = [s.scale(i, 0.3 + 0.007 * i) for i in range(100)]
    assert rates[0] == pytest.approx(0.1 * late)
    assert max(rates) < late < 0.8
    assert rates[-1] < 0.02


def test_schedule_warms_up_then_follows_a_cosine_to_one_percent() -> None:
    s = Schedule(steps=100, batch=1, lr=1.0, warmup=10)
    assert [s.scale(i) for i in range(10)] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert s.scale(10) == 1.0
    assert s.scale(55) == pytest.approx(0.01 + 0.99 * 0.5)
    assert s.scale(100) == s.scale(1000) == pytest.approx(0.01)
    rates = [s.scale(i) for i in range(10, 101)]
    assert rates == sorted(rates, reverse=True)
    assert Schedule(steps=0, batch=1, lr=1.0, warmup=0).scale(0) == 1.0  # no division by zero


def test_each_step_and_process_has_its_own_randomness() -> None:
    def draw(seed: int, step: int, rank: int) -> float:
        generator = step_generator(seed, step, rank)
        return float(torch.rand((), generator=generator, dtype=torch.float64))

    places = [(seed, step, rank) for seed in range(3) for step in range(40) for rank in range(4)]
    assert len({draw(*place) for place in places}) == len(places)
    assert draw(1, 2, 3) == draw(1, 2, 3)


def test_ema_is_the_warmed_up_average() -> None:
    torch.manual_seed(0)
    module = nn.Linear(2, 2)
    ema = EMA(module, 0.7)
    expected = module.weight.detach().double().clone()
    for step in range(12):
        with torch.no_grad():
            module.weight += torch.randn(2, 2)
        ema.update(module, step)
        d = min(0.7, (1 + step) / (10 + step))
        expected = d * expected + (1 - d) * module.weight.detach().double()
    assert torch.allclose(ema.weights["weight"].double(), expected, atol=1e-5)
    assert not torch.equal(ema.weights["weight"], module.weight)


def test_ema_is_kept_in_float32() -> None:
    assert EMA(nn.Linear(2, 2).bfloat16(), 0.9).weights["weight"].dtype == torch.float32


def test_matrix_muon_is_muon_on_the_flattened_kernel() -> None:
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(6, 4, 3, 3, 3))
    matrix = nn.Parameter(kernel.detach().clone().flatten(1))
    ours = MatrixMuon([kernel], lr=0.02, weight_decay=0.1)
    theirs = torch.optim.Muon([matrix], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    before = kernel.detach().clone()
    for _ in range(3):
        gradient = torch.randn(6, 4, 3, 3, 3)
        kernel.grad, matrix.grad = gradient.clone(), gradient.flatten(1)
        ours.step()
        theirs.step()
        ours.zero_grad()
        assert kernel.grad is None
        assert torch.equal(kernel.flatten(1), matrix)
    assert not torch.equal(kernel, before)


@pytest.mark.parametrize("make", [vae_task, tokenizer_task])
def test_every_weight_is_trained_by_exactly_one_optimizer(make: Callable[[], Task]) -> None:
    task = make()
    opts = optimizers(task, SCHEDULE)
    assert len(opts) == 2
    hidden = {p.data_ptr() for p in task.hidden_matrices()}
    taken = [p.data_ptr() for o in opts for g in o.param_groups for p in g["params"]]
    assert len(taken) == len(set(taken))
    assert set(taken) == {p.data_ptr() for p in task.parameters()}
    assert hidden == {p.data_ptr() for g in opts[1].param_groups for p in g["params"]}
    assert len(optimizers(task, dataclasses.replace(SCHEDULE, matrix_lr=0.0))) == 1


def test_budgets_are_powers_of_two_up_to_all_registers() -> None:
    rng = np.random.default_rng(0)
    for registers, powers in ((32, [1, 2, 4, 8, 16, 32]), (24, [1, 2, 4, 8, 16])):
        drawn = np.array(draw_budgets(registers, 6000, rng))
        values, counts = np.unique(drawn, return_counts=True)
        assert values.tolist() == powers
        assert counts.min() > 200, "a budget that is hardly trained"


# ---------------------------------------------------------------------- one run


def test_a_frozen_encoder_stays_as_it_is_while_the_decoder_learns(tmp_path: Path) -> None:
    task = tokenizer_task(freeze_encoder=True)
    before = {k: v.clone() for k, v in task.state_dict().items()}
    train(task, SCHEDULE, tmp_path, device=CPU, dtype=torch.float32)
    moved = {k for k, v in task.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and not any(k.startswith("encoder.") for k in moved)
    assert any(k.startswith("decoder.") for k in moved)


def test_a_frozen_encoder_runs_once_over_all_clips(tmp_path: Path) -> None:
    """A step trains on the ids that the given tokenizer writes, and needs no encoder."""
    task = tokenizer_task(freeze_encoder=True)
    tokenizer = Tokenizer(TINY)
    tokenizer.load_state_dict(
        {k: v for k, v in task.state_dict().items() if not k.startswith("alignment.")}
        | {f"vae.{k}": v for k, v in task.frozen[0].state_dict().items()}
    )
    task.start_from(tokenizer, tmp_path / "ids.safetensors")
    assert task.ids is not None
    with torch.no_grad():
        assert torch.equal(
            task.ids, tokenizer.fsq.ids(tokenizer.encoder(task.given.latents.float()))
        )
    runs: list[int] = []
    task.encoder.register_forward_pre_hook(lambda *_: runs.append(1))
    assert torch.isfinite(task(step=0, generator=step_generator(0, 0), progress=0.0)["loss"])
    assert not runs


def test_the_loss_falls(tmp_path: Path) -> None:
    """A line through two points, trained by the loop itself."""

    class Line(Task):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(
            self, step: int, generator: torch.Generator, progress: float
        ) -> dict[str, Tensor]:  # fmt: skip
            x = torch.rand(32, 1, generator=generator)
            return {"loss": (self.layer(x).float() - 3 * x + 1).square().mean()}

    schedule = Schedule(steps=150, batch=1, lr=0.1, warmup=5, weight_decay=0.0, ema=0.9)
    torch.manual_seed(0)
    average = train(Line(), schedule, tmp_path, device=CPU, dtype=torch.float32)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [*range(0, 150, 10), 149]
    assert rows[-1]["loss"] < rows[0]["loss"] / 50
    assert float(average["layer.weight"]) == pytest.approx(3, abs=0.3)
    assert float(average["layer.bias"]) == pytest.approx(-1, abs=0.2)


@pytest.mark.parametrize("make", [vae_task, tokenizer_task])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, make: Callable[[], Task]) -> None:
    whole = train(make(), SCHEDULE, tmp_path / "whole", device=CPU)
    for more, done in ((2, 2), (3, 5)):  # stopped twice; each call begins as a new process would
        parts = train(make(), SCHEDULE, tmp_path / "parts", device=CPU, stop_after=more)
        with safe_open(tmp_path / "parts/checkpoint.safetensors", "pt") as f:
            assert json.loads(f.metadata()["train"])["step"] == done
    assert any(not torch.equal(parts[k], whole[k]) for k in whole), "nothing was left to do"
    parts = train(make(), SCHEDULE, tmp_path / "parts", device=CPU)
    for key, weight in whole.items():
        assert torch.equal(parts[key], weight), key
    for name in ("checkpoint", f"optimizer-{STEPS:07d}"):
        with (
            safe_open(tmp_path / f"whole/{name}.safetensors", "pt") as a,
            safe_open(tmp_path / f"parts/{name}.safetensors", "pt") as b,
        ):
            assert set(a.keys()) == set(b.keys())
            assert name == "checkpoint" or any(k.startswith("opt.1.") for k in a.keys())  # noqa: SIM118
            for key in a.keys():  # noqa: SIM118
                assert torch.equal(a.get_tensor(key), b.get_tensor(key)), key
    moments = {p.name for p in (tmp_path / "parts").glob("optimizer-*")}
    assert moments == {f"optimizer-{n:07d}.safetensors" for n in (5, 6)}, "of the last two"
    assert len(list((tmp_path / "whole").glob("samples-*.png"))) == 1


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = train(vae_task(), SCHEDULE, tmp_path, device=CPU)
    log = (tmp_path / "log.jsonl").read_text()
    again = train(vae_task(), SCHEDULE, tmp_path, device=CPU)
    assert all(torch.equal(again[k], first[k]) for k in first)
    assert (tmp_path / "log.jsonl").read_text() == log


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    train(tokenizer_task(), SCHEDULE, tmp_path, device=CPU, stop_after=1)
    other = dataclasses.replace(SCHEDULE, lr=2e-3)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(VftError, match="another recipe") as e:
        train(tokenizer_task(other), other, tmp_path, device=CPU)
    assert "\n" not in str(e.value)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_a_window_ends_in_time_and_the_next_goes_on_from_it(tmp_path: Path) -> None:
    began = time.monotonic()
    first = train(vae_task(), SCHEDULE, tmp_path, device=CPU, window=Window(0.02))
    assert time.monotonic() - began < 20
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] >= 1
    with safe_open(tmp_path / "checkpoint.safetensors", "pt") as f:
        assert json.loads(f.metadata()["train"])["progress"] == 1
    again = train(vae_task(), SCHEDULE, tmp_path, device=CPU, window=Window(0.015))
    assert any(not torch.equal(again[k], first[k]) for k in first)
    kernels = [k for k, v in first.items() if v.ndim > 2]
    near = [float((again[k] - first[k]).norm() / first[k].norm()) for k in kernels]
    assert max(near) < 1, "the second window began anew"
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps[: len(rows)] == [row["step"] for row in rows], "the first window's log is kept"
    assert steps[-1] > rows[-1]["step"]
    assert steps == sorted(set(steps)), "steps, and with them the batches, are new ones"


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    train(vae_task(), SCHEDULE, tmp_path, device=CPU, stop_after=2)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    task = vae_task()
    forward = task.forward
    task.forward = lambda **k: {  # type: ignore[method-assign]
        name: value * math.nan for name, value in forward(**k).items()
    }
    with pytest.raises(VftError, match=r"at step 5; .*checkpoint\.safetensors \(step 2\)") as e:
        train(task, SCHEDULE, tmp_path, device=CPU)
    assert "is the last good checkpoint" in str(e.value)
    assert "\n" not in str(e.value)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_no_checkpoint_is_written_of_a_loss_that_is_no_number(tmp_path: Path) -> None:
    """With a checkpoint after each step, the last one is of the step before."""
    task = vae_task()
    forward = task.forward
    task.forward = lambda step, **k: {  # type: ignore[method-assign]
        name: value * (math.nan if step == 3 else 1) for name, value in forward(step, **k).items()
    }
    with pytest.raises(VftError, match="the loss is nan"):
        train(task, SCHEDULE, tmp_path, device=CPU, every=0.0)
    with safe_open(tmp_path / "checkpoint.safetensors", "pt") as f:
        assert json.loads(f.metadata()["train"])["step"] == 3
        assert all(f.get_tensor(k).isfinite().all() for k in f.keys())  # noqa: SIM118


def test_the_checkpoint_before_the_last_is_kept_and_goes_on(tmp_path: Path) -> None:
    """A run may have gone wrong some time before its loss is no number."""
    last, older = tmp_path / "checkpoint.safetensors", tmp_path / "checkpoint-before.safetensors"
    task = vae_task()
    forward = task.forward
    task.forward = lambda step, **k: {  # type: ignore[method-assign]
        name: value * (math.nan if step == 4 else 1) for name, value in forward(step, **k).items()
    }
    with pytest.raises(VftError, match=r"checkpoint-before\.safetensors \(step 3\) the one before"):
        train(task, SCHEDULE, tmp_path, device=CPU, every=0.0)
    assert [step_of(p) for p in (last, older)] == [4, 3]
    older.replace(last)
    again = train(vae_task(), SCHEDULE, tmp_path, device=CPU)
    whole = train(vae_task(), SCHEDULE, tmp_path / "whole", device=CPU)
    assert all(torch.equal(again[k], whole[k]) for k in whole), "with its optimizers"


def test_the_decoder_s_noise_is_as_wide_as_each_channel() -> None:
    """An encoder with wider latents, and a decoder that undoes it: the same pictures, noise and
    all. Otherwise an encoder would escape the noise by shouting."""
    recipe = dataclasses.replace(vae_task().recipe, latent_noise=1.0, kl=0.0)

    def loss(noise: float, scale: float) -> float:
        task = vae_task()
        task.recipe = dataclasses.replace(recipe, latent_noise=noise)
        last, first = task.vae.encoder.conv_out.conv, task.vae.decoder.conv_in.conv
        c = recipe.config.latent_channels
        with torch.no_grad():
            last.weight[:c] *= scale
            last.bias[:c] *= scale
            first.weight /= scale
            last.weight[c:], last.bias[c:] = 0.0, -20.0  # no noise of the posterior
            return float(task(step=0, generator=step_generator(0, 0), progress=0.0)["loss"])

    assert loss(1.0, 64.0) == pytest.approx(loss(1.0, 1.0), rel=1e-3)
    assert loss(1.0, 1.0) != pytest.approx(loss(0.0, 1.0), rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
def test_compiled_halves_have_the_same_gradients(tmp_path: Path) -> None:
    found = []
    for compiled in (False, True):
        task = vae_task().train()
        if compiled:
            task.compile_halves()
        task(step=0, generator=step_generator(0, 0), progress=0.0)["loss"].backward()
        grads = [p.grad for p in task.parameters() if p.grad is not None]
        assert len(grads) == len(list(task.parameters()))
        found.append(torch.cat([g.flatten() for g in grads]))
    # As a run does it, with weights in the step's number format.
    train(task, dataclasses.replace(SCHEDULE, steps=1), tmp_path, device=CPU, dtype=torch.float32)
    for half in task._halves:
        assert isinstance(half, Compiled) and half.done and not half.problem, "no fallback"
    assert (found[1] - found[0]).norm() < 1e-4 * found[0].norm()


# ---------------------------------------------------------------------- a real kill

DRIVER = """
import sys, torch
from pathlib import Path
sys.path[:0] = sys.argv[2:4]
torch.set_num_threads(1)
from train_tasks import SCHEDULE, vae_task
from vft_lib.train.loop import train
import dataclasses

schedule = dataclasses.replace(SCHEDULE, steps=14)
task = vae_task(schedule)
forward = task.forward
def spoken(step, generator, progress):
    print("step", step, flush=True)
    return forward(step, generator, progress)
task.forward = spoken
task.samples = lambda out, step: None
train(task, schedule, Path(sys.argv[1]), device=torch.device("cpu"), every=0.0)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    driver, out = tmp_path / "driver.py", tmp_path / "run"
    driver.write_text(DRIVER)
    here = Path(__file__).resolve().parents[1]
    command = [sys.executable, str(driver), str(out), str(here), str(here.parent)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    checkpoint = out / "checkpoint.safetensors"

    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as run:
        deadline = time.monotonic() + 120
        while not checkpoint.exists() and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        run.send_signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL, "it ended before it could be killed"
    with safe_open(checkpoint, "pt") as f:
        saved = json.loads(f.metadata()["train"])["step"]
    assert 1 <= saved < 14

    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr[-2000:]
    steps = [int(line.split()[1]) for line in again.stdout.splitlines()]
    assert steps == list(range(saved, 14))
    logged = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert logged[0]["step"] == 0
    steps = [row["step"] for row in logged]
    assert steps == list(range(14)), "a row for each checkpoint, none twice"
    assert all(math.isfinite(row["loss"]) for row in logged)
    seconds = [row["seconds"] for row in logged]
    assert seconds == sorted(seconds), "time spent before the kill counts"
