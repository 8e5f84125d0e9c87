"""`vft train` from nothing to a tokenizer that decodes, with the `tiny` preset; and torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vft_lib.cli import main
from vft_lib.loading import load_tokenizer
from vft_lib.train.data import RealClips
from vft_lib.video_out import write_video
from vft_lib.world import make_clip

TINY = ["--preset", "tiny", "--device", "cpu"]


@pytest.mark.slow
def test_train_from_nothing_to_a_measured_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, clips = tmp_path / "run", tmp_path / "clips"
    clips.mkdir()
    for seed in range(12):
        write_video(clips / f"clip{seed}-1.mp4", make_clip(seed, frames=20, size=48).video, 8)
    run = ["--out", str(out), "--real", str(clips), *TINY]
    assert main(["train", "vae", *run]) == 0
    assert main(["train", "tokenizer", *run]) == 0
    file = out / "tokenizer.safetensors"
    tok = load_tokenizer(file, device="cpu")
    video = tok.decode(tok.encode(torch.zeros(1, 3, 20, 32, 32)).truncate(2), steps=2)
    assert video.shape == (1, 3, 20, 32, 32)
    assert torch.isfinite(video).all()
    capsys.readouterr()
    args = ["--tokenizer", str(file), "--clips", "4", "--probe-clips", "32"]
    assert main(["train", "card", *run, *args]) == 0
    assert "held-out procedural clips" in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert [r["budget"] for r in results["real"]["rows"]] == [1, 2, 4, 8, None]
    for name in ("quality", "probe", "loss", "strip-procedural", "strip-real"):
        assert (out / f"{name}.png").stat().st_size > 1000


def test_tokenizer_before_vae_says_what_to_run_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "tokenizer", "--no-real", "--out", str(tmp_path), *TINY]) == 2
    assert "vft train vae" in capsys.readouterr().err
    assert main(["train", "vae", "--no-real", "--out", str(tmp_path), "--preset", "huge"]) == 2
    assert "nano" in capsys.readouterr().err


def test_held_out_clips_stay_held_out(tmp_path: Path) -> None:
    for seed in range(24):
        write_video(tmp_path / f"clip{seed}-1.mp4", make_clip(seed, frames=6, size=32).video, 8)
        write_video(tmp_path / f"clip{seed}-2.mp4", make_clip(seed, frames=6, size=32).video, 8)
    train, held = RealClips.load(tmp_path, 32, tmp_path / "cache.npz").split()
    assert train.clips
    assert held.clips
    stems = [{name.rsplit("-", 1)[0] for name in side.clips} for side in (train, held)]
    assert not stems[0] & stems[1], "an edited twin on the other side"
    assert len(train.clips) + len(held.clips) == 48


@pytest.mark.slow
def test_torchrun_trains_on_two_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
               "--master-port", "29517", "-m", "vft_lib", "train"]  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    for step in ("vae", "tokenizer"):
        args = [step, "--no-real", "--out", str(tmp_path), *TINY]
        subprocess.run([*command, *args], check=True, env=env, capture_output=True, timeout=240)
    steps = [json.loads(r)["step"] for r in (tmp_path / "vae/log.jsonl").read_text().splitlines()]
    assert steps == [0, 10, 11], "one process writes the log"
    load_tokenizer(tmp_path / "tokenizer.safetensors", device="cpu")
