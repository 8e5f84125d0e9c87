"""The prior's model card: a judge that learns something real, and what the card must hold."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from vft_lib.checkpoints.checkpoint import save_prior
from vft_lib.cli.vft import main
from vft_lib.evaluation import classifier, outline
from vft_lib.evaluation.classifier import labels_of
from vft_lib.evaluation.judge import Judge, pixels_of, recipes
from vft_lib.evaluation.prior_card import _budgets, written
from vft_lib.evaluation.run_clips import decoded_video, run_clips
from vft_lib.footage.footage import to_video
from vft_lib.prior.prior import Prior
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.train.loop import Schedule, train
from vft_lib.train.presets import PRESETS
from vft_lib.world import world

CPU = torch.device("cpu")
TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def prior(tiny_tokenizer: Tokenizer) -> Prior:
    """Random weights, the procedural world's words and motions."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = dataclasses.replace(TINY.prior.config, tokenizer="tiny")
        return Prior(config, "test").bind(tiny_tokenizer).eval().requires_grad_(False)


def test_the_classifier_reads_colours_of_clips_it_has_not_seen(tmp_path: Path) -> None:
    """On clips of the world, seen as if 4x4x4 averages were its latents: `[N,3,5,8,8]`."""
    scenes = [world.draw_scene(seed) for seed in range(360)]
    video = to_video([s.render(17, 32) for s in scenes])
    latents = F.adaptive_avg_pool3d(video, (5, 8, 8)).half()
    labels = labels_of(scenes)
    seen = {name: y[:280] for name, y in labels.items()}
    unseen = {name: y[280:] for name, y in labels.items()}
    nothing = {name: y[:0] for name, y in labels.items()}
    schedule = Schedule(100, 32, lr=2e-3, matrix_lr=4e-3, warmup=10, ema=0.9)
    recipe = classifier.ClassifierRecipe("none", schedule, widths=(32, 32), noise=0.05)
    torch.manual_seed(0)
    task = classifier.ClassifierTask(recipe, latents[:280], seen, latents[:0], nothing)
    judge = Judge(task.classifier.eval(), outline.Outline((8, 8, 8)), {})
    before = judge.accuracy(unseen, latents[280:])
    weights = train(task, schedule, tmp_path, device=CPU, dtype=torch.float32)
    task.load_state_dict(weights)
    task.eval()
    after = judge.accuracy(unseen, latents[280:])
    assert before["color"] < 0.25
    assert after["color"] > 0.4, "chance is 0.1"
    assert set(after) == {"color", "motion"}, "latents tell no shapes"


def test_moved_clips_keep_their_pixels() -> None:
    x = torch.randn(40, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    moved = classifier._moved(x, torch.Generator().manual_seed(1))
    assert moved.shape == x.shape
    wide = F.pad(x.flatten(1, 2), (1, 1, 1, 1), mode="replicate").unflatten(1, (2, 3))
    places = set()
    for clip, out in zip(wide, moved):
        found = [
            (i, j) for i in range(3) for j in range(3)
            if torch.equal(clip[:, :, i : i + 4, j : j + 4], out)
        ]  # fmt: skip
        assert found
        places.add(found[0])
    assert len(places) == 9


def test_pictures_are_every_second_one_the_autoencoder_decodes(tiny_tokenizer: Tokenizer) -> None:
    c = tiny_tokenizer.config
    latents = torch.randn(9, *c.latent_shape, generator=torch.Generator().manual_seed(0))
    video = decoded_video(tiny_tokenizer, latents, torch.float32)
    with torch.no_grad():
        whole = tiny_tokenizer.vae.decode(latents).clamp(-1, 1)
    assert video.shape == (9, 3, (c.chunk_frames + 1) // 2, c.size, c.size)
    assert torch.allclose(video.float(), whole[:, :, ::2], atol=2e-3)
    few = decoded_video(tiny_tokenizer, latents[:, :, :3], torch.float32)
    assert torch.allclose(few.float(), video[:, :, :5].float(), atol=2e-3), "causal in time"


def test_all_three_are_right_at_once_or_not_at_all() -> None:
    scenes = [world.draw_scene(seed) for seed in range(6)]
    torch.manual_seed(0)
    judge = Judge(classifier.Classifier((2, 5, 4, 4)).eval(), outline.Outline((8, 8, 8)), {})
    latents, video = torch.randn(6, 2, 5, 4, 4), pixels_of(scenes, 5, 64)
    read = judge.read(latents, video)
    assert judge.accuracy(read, latents, video)["all"] == 1
    labels = {name: x.clone() for name, x in read.items()}
    labels["color"][0] += 1
    labels["shape"][1] += 1
    labels["motion"][1] += 1
    found = judge.accuracy(labels, latents, video)
    assert found["color"] == found["shape"] == found["motion"] == round(5 / 6, 4)
    assert found["all"] == round(4 / 6, 4)
    assert judge.accuracy(labels, video=video) == {"shape": found["shape"]}


def test_small_budgets_are_the_first_ids_of_large_ones(prior: Prior) -> None:
    captions = ["a red ball spins", "a blue star moves up", "a green ring grows"]
    scales = {1: 2.0, 2: 1.0, 4: 2.0}
    ids = written(prior, [1, 2, 4], scales.__getitem__, batch=2, caption=captions)
    for k, scale in scales.items():
        alone = prior.generate(captions, budget=k, guidance=scale, seed=0, frames=17).ids
        assert torch.equal(ids[k], alone)


def test_clips_of_the_judge_are_kept_and_found_again(
    tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    latents, scenes = run_clips(TINY.tokenizer, tmp_path, tiny_tokenizer, torch.float32)
    assert len(latents) == len(scenes) == 64
    again, same = run_clips(TINY.tokenizer, tmp_path, tiny_tokenizer, torch.float32)
    assert torch.equal(latents, again)
    assert [s.caption() for s in scenes.values()] == [s.caption() for s in same.values()]


@pytest.mark.slow
def test_card_of_a_run_folder(
    prior: Prior, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    run = tmp_path / "run"
    save_prior(tmp_path / "prior.safetensors", prior.config, prior.state_dict(), None)
    command = [
        "train", "prior-card", "--preset", "tiny", "--device", "cpu",
        "--tokenizer", str(tiny_checkpoint), "--prior", str(tmp_path / "prior.safetensors"),
        "--clips", "4", "--stories", "3", "--steps", "4",
    ]  # fmt: skip
    assert main([*command, "--out", str(run), "--sweep", "2"]) == 0
    card = run / "prior-card"
    results = json.loads((card / "results.json").read_text())
    assert results["clips"] == 4
    assert results["judge"]["classifier"]["clips"] == 62, "two of 64 are held out"
    assert results["judge"]["outline"]["clips"] == 62
    assert results["chance"]["motion"] == 1 / 16
    budgets = ["1", "2", "4", "8"]
    for source in ("reconstructed", "caption"):
        assert list(results[source]) == budgets
    assert list(results["class"]) == ["1", "4", "8"]
    shares = [v for row in results["caption"].values() for v in row.values()]
    assert all(0 <= v <= 1 for v in [*shares, *results["autoencoder"].values()])
    assert set(results["real"]) == {"shape"}
    assert set(results["caption"]["1"]) == {"color", "shape", "motion", "all"}
    assert set(results["bits_per_id"]) == {"caption", "class", "nothing"}
    # a random prior spreads its guesses: about log2 64,000 bits
    assert all(10 < v < 40 for row in results["bits_per_id"].values() for v in row.values())
    told = results["stories"]
    assert (told["clips"], told["frames"]) == (3, 33)
    for source in ("own tokens", "caption"):
        assert list(told[source]) == ["4", "8"]
        assert list(told[source]["4"]) == ["first act", "last act"]
        assert set(told[source]["4"]["last act"]) == {"color", "shape", "motion", "all"}
    assert list(results["sweep"]["2"]) == ["1", "2", "3", "4.5"]
    assert results["sweep"]["2"]["2"] == results["caption"]["2"], "2 is the default here"
    said = capsys.readouterr()
    assert (card / "table.md").read_text() in said.out
    assert "| motion, generated from its class |" in said.out
    assert "3 clips of 33 frames with two or three acts" in said.out
    with Image.open(card / "sheet.png") as sheet:
        assert sheet.width > 800

    kept = [run / "classifier.safetensors", run / "outline.safetensors"]
    weights = [path.stat().st_mtime_ns for path in kept]
    assert main([*command, "--out", str(run)]) == 0
    again = json.loads((card / "results.json").read_text())
    assert [path.stat().st_mtime_ns for path in kept] == weights, "trained once"
    assert capsys.readouterr().err.count("is reused") == 2
    assert "sweep" not in again
    for key in ("real", "autoencoder", "reconstructed", "caption", "class", "bits_per_id", "judge"):
        assert again[key] == results[key]

    assert main([*command, "--out", str(run), "--sweep", "3"]) == 2
    assert "powers of two" in capsys.readouterr().err


def test_the_card_of_a_prior_that_writes_less_than_its_tokenizer_holds(
    tiny_tokenizer: Tokenizer, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Of 8 registers this one writes 2."""
    run = tmp_path / "run"
    t = TINY.prior.config.latent_frames
    config = dataclasses.replace(TINY.prior.config, tokenizer="tiny", seq_len=2 * t)
    small = Prior(config, "small").bind(tiny_tokenizer)
    save_prior(tmp_path / "prior.safetensors", small.config, small.state_dict(), None)
    command = [
        "train", "prior-card", "--preset", "tiny", "--device", "cpu",
        "--tokenizer", str(tiny_checkpoint), "--prior", str(tmp_path / "prior.safetensors"),
        "--clips", "3", "--stories", "2", "--steps", "4", "--sweep", "1", "--out", str(run),
    ]  # fmt: skip
    assert main(command) == 0
    results = json.loads((run / "prior-card/results.json").read_text())
    for key in ("caption", "reconstructed", "class"):
        assert list(results[key]) == ["1", "2"]
    assert list(results["bits_per_id"]["nothing"]) == ["1", "2"]


def test_large_budgets_and_pictures_are_measured_at_a_bounded_cost(
    prior: Prior, tiny_tokenizer: Tokenizer
) -> None:
    t = TINY.prior.config.latent_frames
    for registers, budgets in ((2, [1, 2]), (16, [1, 2, 4, 8, 16]), (24, [1, 4, 16, 24]),
                               (32, [1, 4, 16, 32]), (128, [1, 4, 16, 64, 128])):  # fmt: skip
        config = dataclasses.replace(TINY.prior.config, seq_len=registers * t)
        assert _budgets(Prior(config, "test")) == budgets
    assert [r.softened for r in recipes(tiny_tokenizer)] == [2048, 1024]
    tiny_tokenizer = copy.copy(tiny_tokenizer)
    tiny_tokenizer.config = dataclasses.replace(tiny_tokenizer.config, size=128)
    assert [r.softened for r in recipes(tiny_tokenizer)] == [512, 256]
