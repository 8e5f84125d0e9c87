"""`vft train distill`: from a tokenizer's name to a file of a student that reads the same ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints.checkpoint import save_tokenizer
from ..errors import VftError
from ..files.tensor_files import Gathered
from ..models.loading import licence_of, load_tokenizer, stored_tokenizer
from ..train.loop import Window, first_alone
from ..train.presets import Preset
from ..train.run import CHECKPOINT, Run, latents_of
from ..train.tokenizer import encode_ids
from .task import RECIPES, DistillRecipe, DistillTask

ENCODING = 0.15  # of a window, at most


def recipe_of(
    preset: str, name: str, steps: int | None, guidance: float | None, of_training: int | None
) -> DistillRecipe:
    """That of a preset's name, with the teacher `name` sampled as asked for (None: as its best
    quality), in `of_training` steps (None: the recipe's)."""
    recipe = RECIPES[preset]
    schedule = recipe.schedule
    if of_training is not None:
        schedule = replace(schedule, steps=of_training)
    best = stored_tokenizer(name)[1].sampling.of("best")
    best = replace(
        best, steps=best.steps if steps is None else steps,
        guidance=best.guidance if guidance is None else guidance,
    )  # fmt: skip
    return replace(recipe, schedule=schedule, teacher=best)


def preset_of(preset: Preset, recipe: DistillRecipe, name: str) -> Preset:
    """`preset` with clips as the tokenizer `name` takes them. VftError for one whose encoder reads
    image features beside the latents."""
    config = stored_tokenizer(name)[1]
    if config.encoder.reads_images:
        raise VftError(
            f"tokenizer {config.name!r} encodes from DINOv2 features, which training does not make"
        )
    return replace(
        preset, vae=replace(preset.vae, size=config.size),
        tokenizer=replace(preset.tokenizer, config=config, clips=recipe.clips),
    )  # fmt: skip


def train_student(run: Run, recipe: DistillRecipe, name: str, window: Window | None = None) -> Path:
    """Distill the flow decoder of the tokenizer `name`. Returns the path of
    `tokenizer.safetensors`: the student, with everything else, name and fingerprint included, as
    the teacher's file has it (or of the checkpoint, where `stop_after` ended the run)."""
    device, out = run.device, run.out / "distill"
    teacher = load_tokenizer(name, device=device, dtype=torch.float32)
    late = None if window is None else window.began + 60 * window.minutes * ENCODING
    latents = latents_of(run, teacher.vae, late).latents
    with first_alone(device):
        ids = encode_ids(teacher, latents, out / "ids.safetensors")
    torch.manual_seed(recipe.schedule.seed)
    task = DistillTask(recipe, teacher, ids, latents)
    teacher.to(run.precision)  # after the student has its weights
    weights = run.train(task, recipe.schedule, out, window)
    if run.stopped(out):
        return out / CHECKPOINT
    path = run.out / "tokenizer.safetensors"
    with first_alone(device) as first:
        if first:
            mark = save_student(path, name, weights, recipe)
            print(f"{path}: fingerprint {mark}, that of {name}")
    return path


def save_student(path: Path, name: str, decoder: dict[str, Tensor], recipe: DistillRecipe) -> str:
    """Write the tokenizer `name` with the weights `decoder.…` in place of its own, in the formats
    that those are stored in. Returns the fingerprint, which stays what it was: ids are the
    encoder's, and every one of its bytes is kept."""
    source, config, mark, stored = stored_tokenizer(name)
    own = {k: v.to(stored[k].dtype) for k, v in decoder.items()}
    assert own.keys() == {k for k in stored if k.startswith("decoder.")}
    config = replace(config, sampling=recipe.sampling, distilled=recipe.passes)
    places: dict[str, Mapping[str, Tensor]] = dict.fromkeys(stored, stored) | dict.fromkeys(
        own, own
    )
    return save_tokenizer(
        path, config, Gathered(places), None, mark=mark, license=licence_of(source)
    )
