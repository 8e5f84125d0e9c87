"""`vft train` from nothing to a tokenizer that decodes, with the `tiny` preset."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from vft_lib.autoencoder.vae import VideoAutoencoder
from vft_lib.cli.vft import main
from vft_lib.footage.footage import Footage, to_video
from vft_lib.footage.real import RealClips
from vft_lib.footage.worlds import Worlds
from vft_lib.models.loading import load_prior, load_tokenizer
from vft_lib.train.dataset import Latents, encode_dataset
from vft_lib.train.presets import PRESETS
from vft_lib.video.video_out import write_video
from vft_lib.world.world import make_clip

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
    args = ["--tokenizer", str(file), "--clips", "4", "--probe-clips", "32", "--no-features"]
    assert main(["train", "card", *run, *args]) == 0
    assert "procedural clips" in capsys.readouterr().out
    rows = json.loads((out / "results.json").read_text())["sets"]["real"]["rows"]
    assert [r["budget"] for r in rows if r["kind"] == "tokens"] == [1, 2, 4, 8]
    for name in ("quality", "probe", "loss", "strip-procedural", "strip-real"):
        assert (out / f"{name}.png").stat().st_size > 1000


@pytest.mark.slow
def test_train_a_prior_that_writes_for_its_tokenizer(tmp_path: Path) -> None:
    run = ["--out", str(tmp_path), "--no-real", *TINY]
    for step in ("vae", "tokenizer", "prior"):
        assert main(["train", step, *run]) == 0
    tokenizer = load_tokenizer(tmp_path / "tokenizer.safetensors", device="cpu")
    prior = load_prior(tmp_path / "prior.safetensors", device="cpu").bind(tokenizer)
    tokens = prior.generate(["a red ball", "a green star spins"], budget=3)
    assert tokenizer.decode(tokens, steps=1).shape == (2, 3, 33, 32, 32)
    assert prior.generate("a red ball", budget=3, frames=17).ids.shape == (1, 5, 3)
    rows = [json.loads(r) for r in (tmp_path / "prior/log.jsonl").read_text().splitlines()]
    assert rows[0]["k1"] == pytest.approx(16, abs=0.3), "begins as a uniform guess"
    row = json.loads((tmp_path / "prior/validation.jsonl").read_text().splitlines()[-1])
    assert {"caption_t5", "class_t5", "null_t5_k8"} <= row.keys()


def test_more_clips_extend_what_is_there(tmp_path: Path) -> None:
    """The first clips stay bit for bit what they were, and every clip's seed can be found again."""
    config = PRESETS["tiny"].tokenizer.config
    vae = VideoAutoencoder(config.vae).eval()
    seeds = list(range(1_000_000, 1_000_128))
    footage = Footage(None, Worlds(seeds, 17, config.size))

    def encode(clips: int, folder: Path) -> Latents:
        folder.mkdir(exist_ok=True)
        return encode_dataset(
            config, vae, footage, clips, 1.0, 0, torch.device("cpu"), torch.float32, folder
        )

    first = encode(64, tmp_path / "a").latents.clone()
    both = encode(128, tmp_path / "a")
    assert len(both) == 128
    assert torch.equal(both.latents[:64], first)
    assert torch.equal(encode(128, tmp_path / "b").latents, both.latents)
    clip = make_clip(seeds[70], frames=17, size=config.size).video
    with torch.inference_mode():
        again = vae.encode(to_video([clip]))
    assert torch.allclose(again[0], both.latents[70].float(), atol=1e-2)


@pytest.mark.slow
def test_one_window_trains_all_three_and_a_second_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--out", str(tmp_path), "--no-real", "--minutes", "0.3", *TINY]
    began = time.monotonic()
    assert main(["train", "all", *run]) == 0
    assert time.monotonic() - began < 18 + 30, "what is left over for files and pictures"
    stages = ("vae", "tokenizer", "prior")
    logs = [(tmp_path / stage / "log.jsonl").read_text() for stage in stages]
    tokenizer = load_tokenizer(tmp_path / "tokenizer.safetensors", device="cpu")
    load_prior(tmp_path / "prior.safetensors", device="cpu").bind(tokenizer)
    assert "steps in 0.1 minutes" in "".join(capsys.readouterr())
    assert main(["train", "vae", *run[:3], "--minutes", "0.05", *TINY]) == 0
    assert (tmp_path / "vae/log.jsonl").read_text().startswith(logs[0])


@pytest.mark.slow
def test_a_new_decoder_of_the_autoencoder_leaves_the_ids_as_they_are(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    few = ["--no-real", "--steps", "3", *TINY]
    for step in ("vae", "tokenizer"):
        assert main(["train", step, "--out", str(first), *few]) == 0
    old = first / "tokenizer.safetensors"
    frozen = ["--init", str(old), "--freeze-encoder"]
    assert main(["train", "vae", "--out", str(second), *frozen, *few]) == 0
    one, other = (
        load_tokenizer(f / "tokenizer.safetensors", device="cpu") for f in (first, second)
    )
    video = torch.from_numpy(make_clip(3, frames=17, size=32).video).permute(3, 0, 1, 2)[None]
    video = video.float() / 127.5 - 1
    assert torch.equal(one.vae.encode(video), other.vae.encode(video))
    tokens = one.encode(video)
    assert torch.equal(tokens.ids, other.encode(video).ids)
    latents = one.vae.encode(video)
    assert not torch.equal(one.vae.decode(latents), other.vae.decode(latents))


def test_tokenizer_before_vae_says_what_to_run_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "tokenizer", "--no-real", "--out", str(tmp_path), *TINY]) == 2
    assert "vft train vae" in capsys.readouterr().err
    assert main(["train", "vae", "--no-real", "--out", str(tmp_path), "--preset", "huge"]) == 2
    assert "nano" in capsys.readouterr().err
    for step in ("vae", "tokenizer"):
        assert main(["train", step, "--out", str(tmp_path), "--freeze-encoder", *TINY]) == 2
        assert "--init" in capsys.readouterr().err
    assert main(["train", "all", "--out", str(tmp_path), "--no-real", *TINY]) == 2
    assert "--minutes" in capsys.readouterr().err


def test_all_ends_with_the_stage_that_stop_after_stops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next one needs the file that a stage writes at its end."""
    run = ["--out", str(tmp_path), "--no-real", "--minutes", "5", "--stop-after", "1", *TINY]
    assert main(["train", "all", *run]) == 0, capsys.readouterr().err
    assert (tmp_path / "vae/checkpoint.safetensors").exists()
    assert not (tmp_path / "tokenizer").exists()
    done = ["--out", str(tmp_path), "--no-real", "--stop-after", "99", "--steps", "2", *TINY]
    assert main(["train", "vae", *done]) == 2, "of another recipe"
    (tmp_path / "vae/checkpoint.safetensors").unlink()
    assert main(["train", "vae", *done]) == 0
    assert (tmp_path / "vae.safetensors").exists(), "it reached its end before"


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
