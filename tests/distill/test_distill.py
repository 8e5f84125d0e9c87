"""A student flow decoder: what it learns, what it keeps of its teacher, and where it is taken."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, save_tiny
from semantok import save_semantok, semantok_config
from torch import Tensor

from vft_lib.cli.vft import main
from vft_lib.clips.stream import _facts
from vft_lib.distill.run import recipe_of, save_student
from vft_lib.distill.task import RECIPES, DistillTask
from vft_lib.files.tensor_files import Source
from vft_lib.models.loading import load_tokenizer
from vft_lib.prior.prior import Prior
from vft_lib.tokenizer.sampling import Sampling
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.tokens import Tokens
from vft_lib.train.loop import Schedule, step_generator, train
from vft_lib.train.presets import PRESETS

CPU = torch.device("cpu")


def student_task(checkpoint: Path, steps: int = 4, lr: float = 2e-3) -> DistillTask:
    """Of a teacher that is sampled in four guided steps; 16 clips of random latents."""
    teacher = load_tokenizer(checkpoint, device=CPU)
    schedule = Schedule(steps, 8, lr=lr, warmup=2, ema=0.9)
    recipe = dataclasses.replace(RECIPES["tiny"], schedule=schedule)
    numbers = torch.Generator().manual_seed(1)
    latents = torch.randn(16, *TINY.latent_shape, generator=numbers).half()
    ids = teacher.fsq.ids(teacher.encoder(latents.float())).int()
    torch.manual_seed(0)
    return DistillTask(recipe, teacher, ids, latents)


@pytest.fixture(scope="module")
def student_file(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A student whose decoder is the teacher's, a little off."""
    path = tmp_path_factory.mktemp("student") / "student.safetensors"
    stored = Source.open(tiny_checkpoint)
    moved = {k: v * 1.05 for k, v in stored.items() if k.startswith("decoder.")}
    save_student(path, str(tiny_checkpoint), moved, RECIPES["tiny"])
    return path


def distance(found: Tensor, wanted: Tensor, given: int = 0) -> Tensor:
    """Root mean square by clip, without the frames that are given."""
    return (found - wanted)[:, :, given:].square().flatten(1).mean(1).sqrt()


@pytest.mark.parametrize("given", [0, 1])
def test_the_losses_are_how_far_its_samples_are_from_the_teachers(
    tiny_checkpoint: Path, given: int
) -> None:
    """Of one pass, and of two: later passes are trained where the sampler asks for them."""
    task = student_task(tiny_checkpoint)
    with torch.no_grad():
        for p in task.decoder.parameters():
            p.mul_(1.02)
    student = load_tokenizer(tiny_checkpoint, device=CPU)
    student.decoder.load_state_dict(task.decoder.state_dict())
    ids = task.ids[:3, :, :4].long()
    noise = torch.randn(3, *TINY.latent_shape, generator=torch.Generator().manual_seed(5))
    pinned = task.latents[:3, :, :given].float() if given else None
    wanted = task.frozen[0].sample_latents(ids, noise, Sampling(4, 2.0, False), pinned=pinned)
    first, later = task._missed(ids, noise, pinned, 0.5)
    for passes, found in ((1, first), (2, later)):
        made = student.sample_latents(ids, noise, Sampling(passes, 1.0), pinned=pinned)
        assert torch.allclose(found, distance(made, wanted, given), rtol=1e-3)


def test_the_student_learns_to_do_in_one_pass_what_takes_its_teacher_eight(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Under noise and budgets that it has not seen."""
    task = student_task(tiny_checkpoint, steps=60)
    weights = train(task, task.recipe.schedule, tmp_path, device=CPU, dtype=torch.float32)
    assert all(k.startswith("decoder.") for k in weights)
    teacher = task.frozen[0]
    student = load_tokenizer(tiny_checkpoint, device=CPU)
    student.decoder.load_state_dict({k.removeprefix("decoder."): v for k, v in weights.items()})
    noise = torch.randn(16, *TINY.latent_shape, generator=torch.Generator().manual_seed(9))
    ids = task.ids[:, :, :3].long()
    wanted = teacher.sample_latents(ids, noise, Sampling(4, 2.0, False))
    for passes in (1, 2):
        before = teacher.sample_latents(ids, noise, Sampling(passes, 1.0))
        after = student.sample_latents(ids, noise, Sampling(passes, 1.0))
        assert distance(after, wanted).mean() < 0.8 * distance(before, wanted).mean()
    assert (tmp_path / "samples-000060.png").exists()


def test_only_the_flow_decoder_is_trained_and_all_its_budgets_are_drawn(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = student_task(tiny_checkpoint)
    drawn, missed = [], task._missed

    def spy(ids: Tensor, noise: Tensor, pinned: Tensor | None, time: float) -> Any:
        drawn.append((ids.shape[2], pinned is not None, round(time, 3)))
        return missed(ids, noise, pinned, time)

    monkeypatch.setattr(task, "_missed", spy)
    for step in range(24):
        losses = task(step, step_generator(0, step), 0.0)
    losses["loss"].backward()
    budgets, pins, times = (set(x) for x in zip(*drawn))
    assert (budgets, pins) == ({1, 2, 4, 8}, {True, False})
    assert times == {0.5, 0.667, 0.333, 0.75, 0.25}
    assert sum(time == 0.5 for *_, time in drawn) > len(drawn) / 2
    assert {n.split(".")[0] for n, p in task.named_parameters()} == {"decoder"}
    teacher = task.frozen[0]
    assert all(p.grad is None for p in teacher.parameters())
    unguided = {"decoder.null"}  # what stands in for the tokens is never shown
    assert {n for n, p in task.named_parameters() if p.grad is None} <= unguided


def test_a_student_keeps_what_ids_mean_and_says_what_it_is(
    tiny_checkpoint: Path, student_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, student = (load_tokenizer(f, device=CPU) for f in (tiny_checkpoint, student_file))
    old, new = Source.open(tiny_checkpoint), Source.open(student_file)
    assert old.keys() == new.keys()
    for name, weight in old.items():
        assert torch.equal(weight, new[name]) != name.startswith("decoder."), name
    assert student.fingerprint == teacher.fingerprint
    assert student.config.identity() == teacher.config.identity()
    assert (student.config.name, student.config.distilled) == ("tiny", 2)
    recipes = [student.config.sampling.of(q) for q in ("draft", "normal", "best")]
    assert [(r.steps, r.guidance) for r in recipes] == [(1, 1.0), (2, 1.0), (2, 1.0)]
    video = torch.rand(1, 3, 20, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    tokens = teacher.encode(video, budget=4)
    assert torch.equal(tokens.ids, student.encode(video, budget=4).ids)
    made = student.decode(tokens, seed=3)
    assert student.passes.run == 4, "two passes for each of two chunks"
    assert made.shape == video.shape
    assert not torch.equal(made, teacher.decode(tokens, seed=3, steps=2, guidance=1.0))
    assert main(["info", str(student_file)]) == 0
    assert "distilled to 2 passes without guidance" in capsys.readouterr().out
    assert main(["info", str(tiny_checkpoint)]) == 0
    assert "distilled" not in capsys.readouterr().out


def test_its_decodes_are_not_taken_for_its_teachers(
    tiny_checkpoint: Path, student_file: Path, tmp_path: Path
) -> None:
    """A decode that was interrupted goes on only with the decoder that it was begun with."""
    again = tmp_path / "again.safetensors"
    moved = {k: v * 1.1 for k, v in Source.open(tiny_checkpoint).items() if "decoder." in k[:8]}
    save_student(again, str(student_file), moved, RECIPES["tiny"])
    three = [load_tokenizer(f, device=CPU) for f in (tiny_checkpoint, student_file, again)]
    tokens = three[0].encode(torch.zeros(1, 3, 17, 32, 32))
    assert len({json.dumps(_facts(t, tokens, None), default=str) for t in three}) == 3
    assert three[0].decoder_mark == three[0].fingerprint
    assert len({t.fingerprint for t in three}) == 1


def test_token_files_and_priors_are_read_with_either(
    tiny_checkpoint: Path, student_file: Path, tmp_path: Path
) -> None:
    teacher, student = (load_tokenizer(f, device=CPU) for f in (tiny_checkpoint, student_file))
    tokens = teacher.encode(torch.zeros(1, 3, 17, 32, 32))
    tokens.save(tmp_path / "t.vft")
    for file in (tiny_checkpoint, student_file):
        args = ["-o", str(tmp_path / f"{file.stem}.mp4"), "--tokenizer", str(file)]
        assert main(["decode", str(tmp_path / "t.vft"), *args, "--device", "cpu"]) == 0
    config = PRESETS["tiny"].prior.config
    bound = Prior(dataclasses.replace(config, tokenizer="tiny")).bind(teacher)
    assert bound.config.tokenizer_fingerprint == teacher.fingerprint
    bound.bind(student)  # it was marked for the teacher, and knows its ids
    own = Tokens.load(tmp_path / "t.vft")
    assert own.fingerprint == student.fingerprint


def test_a_stopped_run_goes_on_and_the_teacher_is_sampled_as_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = save_tiny(tmp_path / "teacher.safetensors", seed=4)
    common = ["train", "distill", "--preset", "tiny", "--tokenizer", str(teacher), "--no-real",
              "--device", "cpu", "--dtype", "float32", "--steps", "6"]  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*common, "--out", str(whole)]) == 0
    assert main([*common, "--out", str(parts), "--stop-after", "3"]) == 0
    assert not (parts / "tokenizer.safetensors").exists()
    assert main([*common, "--out", str(parts)]) == 0
    files = [(f / "tokenizer.safetensors").read_bytes() for f in (whole, parts)]
    assert files[0] == files[1]
    assert load_tokenizer(parts / "tokenizer.safetensors").config.distilled == 2
    capsys.readouterr()
    assert main([*common, "--out", str(parts), "--teacher-steps", "2"]) == 2
    assert "another recipe" in capsys.readouterr().err
    asked = recipe_of("tiny", str(teacher), 3, 1.5, None).teacher
    assert (asked.steps, asked.guidance) == (3, 1.5)
    best = recipe_of("tiny", "default", None, None, 9)
    assert (best.teacher.steps, best.teacher.guidance, best.schedule.steps) == (4, 2.0, 9)


def test_a_tokenizer_that_reads_image_features_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save_semantok(tmp_path / "semantok.safetensors", semantok_config())
    args = ["--tokenizer", str(file), "--out", str(tmp_path / "out"), "--preset", "tiny"]
    assert main(["train", "distill", *args, "--no-real", "--device", "cpu"]) == 2
    assert "DINOv2 features" in capsys.readouterr().err


def test_flow_decode_takes_either(host: Any, small: Any, tmp_path: Path) -> None:
    """The nodes: one encodes, the other decodes, in the passes that its file asks for."""
    teacher = save_tiny(host.models / "teacher.safetensors", name="small")
    student = host.models / "student.safetensors"
    moved = {k: v * 1.05 for k, v in Source.open(teacher).items() if k.startswith("decoder.")}
    save_student(student, str(teacher), moved, RECIPES["tiny"])
    try:
        loaded, about = host.results("VFTLoadTokenizer", tokenizer=student.name)
    finally:
        teacher.unlink()
        student.unlink()
    assert "student of 2 passes" in about
    images = host.results("VFTDecode", tokenizer=loaded, tokens=small.tokens)[0]
    other = host.results("VFTDecode", tokenizer=small.tokenizer, tokens=small.tokens)[0]
    assert images.shape == other.shape == (17, 32, 32, 3)
    assert not torch.equal(images, other)
    model: Tokenizer = loaded.model
    assert model.passes.run == 2
