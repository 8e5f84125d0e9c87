"""Training in two processes: what torchrun starts agrees in everything, and waits for its first."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import save_tiny
from train_tasks import SCHEDULE, vae_task

from vft_lib.files.tensor_files import Source
from vft_lib.models.loading import load_tokenizer
from vft_lib.train.loop import step_generator
from vft_lib.video.video_out import write_video
from vft_lib.world.world import make_clip

HERE = Path(__file__).resolve().parents[1]
TINY = ["--preset", "tiny", "--device", "cpu"]


def torchrun(*command: str, fails: bool = False) -> str:
    """Two processes of that command; all that they printed."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
             "--master-port", str(port)]  # fmt: skip
    paths = {"PYTHONPATH": os.pathsep.join((str(HERE), str(HERE.parent)))}
    done = subprocess.run(
        [*start, *command], env=os.environ | paths | {"OMP_NUM_THREADS": "1"}, timeout=240,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert (done.returncode != 0) == fails, done.stdout[-3000:]
    return done.stdout


def driver(folder: Path, text: str) -> str:
    """A program for :func:`torchrun` that has RANK, OUT and `train`."""
    path = folder / "driver.py"
    head = """
        import dataclasses, math, os, time, torch
        from datetime import timedelta
        from pathlib import Path
        from train_tasks import CPU, SCHEDULE, vae_task
        from vft_lib.errors import VftError
        from vft_lib.train import loop
        RANK, OUT = int(os.environ["RANK"]), Path(__file__).parent
        torch.set_num_threads(1)
    """
    path.write_text("\n".join(line.removeprefix(" " * 8) for line in (head + text).split("\n")))
    return str(path)


@pytest.mark.slow
def test_both_train_all_stages_on_clips_that_one_has_decoded(tmp_path: Path) -> None:
    """Stage after stage: none begins before the first process wrote the file that it needs."""
    out, clips = tmp_path / "run", tmp_path / "clips"
    clips.mkdir()
    for seed in range(6):
        write_video(clips / f"clip{seed}-1.mp4", make_clip(seed, frames=8, size=48).video, 8)
    args = ["--out", str(out), "--real", str(clips), "--minutes", "0.25", *TINY]
    said = torchrun("-m", "vft_lib", "train", "all", *args)
    assert said.count("decoding real clips:   0%") == 1
    assert said.count("fingerprint") == 2, "a tokenizer and a prior, each written once"
    load_tokenizer(out / "tokenizer.safetensors", device="cpu")
    for stage in ("vae", "tokenizer", "prior"):
        rows = [json.loads(r) for r in (out / stage / "log.jsonl").read_text().splitlines()]
        steps = [r["step"] for r in rows]
        assert steps == sorted(set(steps)), "one process writes the log"


@pytest.mark.slow
def test_two_processes_make_one_student(tmp_path: Path) -> None:
    teacher = save_tiny(tmp_path / "teacher.safetensors", seed=4)
    out = tmp_path / "out"
    torchrun(
        "-m", "vft_lib", "train", "distill", "--preset", "tiny", "--tokenizer", str(teacher),
        "--no-real", "--device", "cpu", "--steps", "4", "--out", str(out),
    )  # fmt: skip
    rows = [json.loads(r) for r in (out / "distill/log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [0, 3], "one process writes the log"
    old, new = Source.open(teacher), Source.open(out / "tokenizer.safetensors")
    assert any(not torch.equal(w, new[k]) for k, w in old.items())
    assert all(torch.equal(w, new[k]) for k, w in old.items() if not k.startswith("decoder."))


@pytest.mark.slow
def test_gradients_are_the_mean_over_processes_and_weights_stay_the_same(tmp_path: Path) -> None:
    """A weight that only one process uses gets half of its gradient."""
    torchrun(driver(tmp_path, """
        task = vae_task()
        task.own = torch.nn.Parameter(torch.ones(3))
        forward, clip = task.forward, torch.nn.utils.clip_grad_norm_
        def more(step, generator, progress):
            losses = forward(step, generator, progress)
            return losses | {"loss": losses["loss"] + (task.own.sum() if RANK else 0)}
        def spy(parameters, limit):
            grads = {k: p.grad.clone() for k, p in task.named_parameters() if p.grad is not None}
            torch.save(grads, OUT / f"grads-{RANK}.pt")
            return clip(parameters, limit)
        task.forward, torch.nn.utils.clip_grad_norm_ = more, spy
        loop.train(task, SCHEDULE, OUT / "run", device=CPU, dtype=torch.float32, stop_after=1)
        torch.nn.utils.clip_grad_norm_ = clip
        window = loop.Window(0.05)
        time.sleep(0.4 * RANK)  # its clock is behind
        loop.train(task, SCHEDULE, OUT / "run", device=CPU, dtype=torch.float32, window=window)
        torch.save(task.state_dict(), OUT / f"weights-{RANK}.pt")
        loop.leave_group()
        assert not torch.distributed.is_initialized()
    """))  # fmt: skip
    first, second = (torch.load(tmp_path / f"grads-{r}.pt", weights_only=True) for r in (0, 1))
    alone = []
    for rank in (0, 1):
        task = vae_task()
        task(step=0, generator=step_generator(SCHEDULE.seed, 0, rank), progress=0.0)[
            "loss"
        ].backward()
        alone.append({k: p.grad for k, p in task.named_parameters()})
    assert first.keys() == second.keys() == {*alone[0], "own"}
    for name, gradient in first.items():
        assert torch.equal(gradient, second[name])
        if name != "own":
            parts = [g for a in alone if (g := a[name]) is not None]
            mean = torch.stack(parts).sum(0) / 2
            assert torch.allclose(gradient, mean, rtol=1e-4, atol=1e-7), name
    assert torch.equal(first["own"], torch.full((3,), 0.5))
    here, there = (torch.load(tmp_path / f"weights-{r}.pt", weights_only=True) for r in (0, 1))
    for name, weight in here.items():
        assert torch.equal(weight, there[name]), name


@pytest.mark.slow
def test_a_loss_that_is_no_number_in_one_process_ends_all_at_the_same_step(tmp_path: Path) -> None:
    torchrun(driver(tmp_path, """
        task = vae_task()
        forward = task.forward
        def broken(step, generator, progress):
            losses = forward(step, generator, progress)
            bad = RANK == 1 and step == 3
            return losses | {"loss": losses["loss"] * (math.nan if bad else 1)}
        task.forward = broken
        schedule = dataclasses.replace(SCHEDULE, steps=30)
        try:
            loop.train(task, schedule, OUT / "run", device=CPU, every=0.0)
        except VftError as e:
            (OUT / f"error-{RANK}.txt").write_text(str(e))
        loop.leave_group()
    """))  # fmt: skip
    first, second = ((tmp_path / f"error-{rank}.txt").read_text() for rank in (0, 1))
    assert first == second
    assert "the loss is nan" in first
    assert "at step 10; " in first
    assert "checkpoint.safetensors (step 1) is the last good checkpoint" in first


@pytest.mark.slow
def test_what_the_first_process_makes_may_take_longer_than_the_time_out(tmp_path: Path) -> None:
    torchrun(driver(tmp_path, """
        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=2))
        with loop.first_alone(CPU) as first:
            if first:
                time.sleep(6)
                (OUT / "made").touch()
            assert (OUT / "made").exists()
        (OUT / f"done-{RANK}").touch()
        loop.leave_group()
    """))  # fmt: skip
    assert {p.name for p in tmp_path.glob("done-*")} == {"done-0", "done-1"}


@pytest.mark.slow
def test_if_the_first_process_fails_the_others_do_not_wait(tmp_path: Path) -> None:
    args = ["train", "tokenizer", "--no-real", "--out", str(tmp_path), *TINY]
    (tmp_path / "vae.safetensors").write_bytes(b"no weights")
    said = torchrun("-m", "vft_lib", *args, fails=True)
    assert "Traceback" not in said.partition("torch/distributed")[0]
    torchrun(driver(tmp_path, """
        try:
            with loop.first_alone(CPU) as first:
                if first:
                    raise OSError("the disk is full")
                (OUT / "went on").touch()
        except (OSError, VftError) as e:
            (OUT / f"error-{RANK}.txt").write_text(f"{type(e).__name__}: {e}")
        loop.leave_group()
    """))  # fmt: skip
    assert (tmp_path / "error-0.txt").read_text() == "OSError: the disk is full"
    assert (tmp_path / "error-1.txt").read_text().startswith("VftError: the first process ended")
    assert not (tmp_path / "went on").exists()
