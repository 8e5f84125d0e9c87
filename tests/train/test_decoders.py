"""A decoder trained alone (`vft train preview`, `vft train vae --freeze-encoder`): what it trains,
what it leaves alone, through tokens or not, that it goes on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from conftest import TINY
from preview import SMALL, with_preview
from published import SMALL_VAE, VAE_ID, config_of, tensors_of, write_folder
from safetensors.torch import load_file
from torch import Tensor
from train_tasks import CPU, SCHEDULE, STEPS

from vft_lib.checkpoints import convert
from vft_lib.cli.vft import main
from vft_lib.footage.footage import Footage
from vft_lib.footage.worlds import Worlds
from vft_lib.models.loading import load_tokenizer
from vft_lib.tokenizer.sampling import Sampling
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.train.decoders import DecoderRecipe, DecoderTask
from vft_lib.train.loop import step_generator, train
from vft_lib.train.state import step_of
from vft_lib.train.vae import fold_latent_scale

RECIPE = DecoderRecipe(32, 17, SCHEDULE, SMALL, crop=16, uses=2, held=2)
OWN = dataclasses.replace(RECIPE, preview=None)


def task(recipe: DecoderRecipe = RECIPE, **fields: object) -> DecoderTask:
    torch.manual_seed(0)
    tokenizer = Tokenizer(TINY).eval().requires_grad_(False)
    footage = Footage(None, Worlds(range(1_000_000, 1_000_064), 17, 32))
    clips = footage.draw(torch.Generator().manual_seed(0), 4, 17, 32, 1.0)
    fold_latent_scale(tokenizer.vae, clips)
    torch.manual_seed(1)
    return DecoderTask(recipe, tokenizer, footage, **fields)  # type: ignore[arg-type]


def run(out: Path, **fields: object) -> dict[str, Tensor]:
    return train(task(), SCHEDULE, out, device=CPU, dtype=torch.float32, **fields)  # type: ignore[arg-type]


def test_a_killed_run_takes_the_steps_that_it_would_have_taken(tmp_path: Path) -> None:
    """In the middle of a draw's uses, too: what it had encoded is drawn again."""
    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", stop_after=3)
    assert step_of(tmp_path / "parts" / "checkpoint.safetensors") == 3
    parts = run(tmp_path / "parts")
    assert parts.keys() == {f"preview.{k}" for k in task().preview.state_dict()}
    assert all(torch.equal(parts[k], whole[k]) for k in whole)
    rows = [json.loads(r) for r in (tmp_path / "parts/log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == STEPS - 1
    assert {"l1", "psnr"} <= rows[-1].keys()


@pytest.mark.parametrize("recipe", [RECIPE, OWN], ids=["preview", "own"])
def test_it_learns_and_the_tokenizer_does_not(recipe: DecoderRecipe) -> None:
    trained = task(recipe)
    before = {k: v.clone() for k, v in trained.frozen[0].state_dict().items()}
    learning = {k: p for k, p in trained.named_parameters() if p.requires_grad}
    prefix = "vae.decoder." if recipe is OWN else "preview."
    assert learning
    assert all(name.startswith(prefix) for name in learning)
    optimizer = torch.optim.Adam(learning.values(), 3e-3)
    losses = []
    for _ in range(100):  # of the same two clips
        loss = trained(0, step_generator(0, 0), 0.5)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(v, before[k]) for k, v in trained.frozen[0].state_dict().items())


def test_clips_are_used_several_times_mixed_with_others() -> None:
    trained, seen = task(), []
    for step in range(8):
        x, mean = trained._clips(step, step_generator(0, step))
        assert x.shape == (2, 3, 17, 16, 16)
        assert mean.shape == (2, 4, 5, 2, 2)
        assert torch.allclose(trained.frozen[0].vae.encode(x), mean, atol=1e-5)
        seen += [float(clip.sum()) for clip in x]
        assert len(trained._drawn) <= 2
    assert 4 <= len(set(seen)) <= 8, "four draws of two clips"
    other = task(rank=1)._clips(0, step_generator(0, 0, 1))[0]
    assert not torch.equal(other, task()._clips(0, step_generator(0, 0))[0]), "of another process"


@pytest.mark.parametrize("recipe", [RECIPE, OWN], ids=["preview", "own"])
def test_some_clips_go_through_tokens(recipe: DecoderRecipe) -> None:
    """Whole ones, of which the same part is then cut out of pixels and latents."""
    trained = task(dataclasses.replace(recipe, token_share=1.0))
    tokenizer = trained.frozen[0]
    x, latents = trained._draw(step_generator(0, 3))
    assert x.shape == (2, 3, 17, 16, 16)
    assert latents.shape == (2, 4, 5, 2, 2)
    # What is random follows from the generator, in this order: token or not, clips, budgets, noise.
    replay = step_generator(0, 3)
    torch.rand((), generator=replay)
    whole = trained.footage.draw(replay, 2, 17, 32, 0.25, None)
    places = [(i, j) for i in range(3) for j in range(3)]
    found = [
        (i, j) for i, j in places
        if torch.equal(whole[..., 8 * i : 8 * i + 16, 8 * j : 8 * j + 16], x)
    ]  # fmt: skip
    assert len(found) == 1
    i, j = found[0]
    with torch.no_grad():
        encoded = tokenizer.vae.encode(whole)
        ids = tokenizer.fsq.ids(tokenizer.encoder(encoded))
    kept = encoded[..., i : i + 2, j : j + 2]
    assert not torch.allclose(latents, kept, atol=0.1), "they have lost something"
    budgets = 8 >> torch.randint(4, (2,), generator=replay)
    noise = torch.randn(encoded.shape, generator=replay)
    with torch.no_grad():
        again = tokenizer.sample_latents(ids, noise, Sampling(), keep=budgets)
    assert torch.allclose(again[..., i : i + 2, j : j + 2], latents, atol=1e-4)


def test_a_share_of_the_draws_goes_through_tokens() -> None:
    trained = task(dataclasses.replace(RECIPE, token_share=0.5))
    exact = 0
    for i in range(12):
        x, latents = trained._draw(step_generator(0, i))
        exact += torch.allclose(trained.frozen[0].vae.encode(x), latents, atol=1e-5)
    assert 0 < exact < 12


def test_a_pixels_children_begin_alike() -> None:
    """So that there is no checkerboard to unlearn."""
    preview = task().preview
    with torch.no_grad():
        for up in (preview.up1, preview.up2, preview.out):
            width = up.conv.conv.weight.shape[1]
            y = up(torch.randn(1, 2, 4, 4, width, generator=torch.Generator().manual_seed(0)))
            blocks = y.unflatten(3, (4, 2)).unflatten(2, (4, 2))  # (1, 2, 4, 2, 4, 2, C)
            assert torch.allclose(blocks, blocks[:, :, :, :1, :, :1].expand_as(blocks), atol=1e-6)


def test_the_command_adds_it_to_a_tokenizer(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["train", "preview", "--tokenizer", str(tiny_checkpoint), "--out", str(out)]
    command += ["--no-real", "--device", "cpu", "--dtype", "float32", "--steps", "3"]
    assert main([*command, "--stop-after", "1"]) == 0
    assert not (out / "tokenizer.safetensors").exists()
    assert main(command) == 0
    assert "preview decoder of 1.79 MB" in capsys.readouterr().out
    old, new = load_file(tiny_checkpoint), load_file(out / "tokenizer.safetensors")
    assert all(torch.equal(new[k], old[k]) for k in old)
    found = load_tokenizer(out / "tokenizer.safetensors", device="cpu")
    assert found.fingerprint == load_tokenizer(tiny_checkpoint, device="cpu").fingerprint
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"no model")
    assert main([*command[:3], str(other), *command[4:]]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_published_tokenizer_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(convert.VAES, VAE_ID, SMALL_VAE)
    case = "time-causal"
    folder = write_folder(tmp_path / "made-up", config_of(case), tensors_of(case))
    out = tmp_path / "run"
    command = ["train", "preview", "--tokenizer", str(folder), "--out", str(out), "--steps", "1"]
    assert main([*command, "--no-real", "--device", "cpu", "--dtype", "float32"]) == 0
    old, new = (load_tokenizer(f, device="cpu") for f in (folder, out / "tokenizer.safetensors"))
    assert new.fingerprint == old.fingerprint
    assert new.preview is not None
    state = new.state_dict()
    assert all(torch.equal(state[k], v) for k, v in old.state_dict().items())
    with torch.no_grad():
        z = torch.randn(1, *new.config.latent_shape)
        assert new.preview(z).shape == old.vae.decode(z).shape


def test_a_new_decoder_of_the_autoencoder_keeps_it(tmp_path: Path, tiny_checkpoint: Path) -> None:
    old = with_preview(tiny_checkpoint, tmp_path / "old.safetensors")
    command = ["train", "vae", "--init", str(old), "--freeze-encoder", "--out", str(tmp_path)]
    command += ["--preset", "tiny", "--no-real", "--device", "cpu", "--steps", "1"]
    command += ["--through-tokens", "1"]
    assert main(command) == 0
    new = load_tokenizer(tmp_path / "tokenizer.safetensors", device="cpu")
    assert new.preview is not None
    kept = load_file(old)
    for name, value in new.preview.state_dict().items():
        assert torch.equal(value, kept[f"preview.{name}"].float())


def test_a_run_of_another_tokenizer_is_not_gone_on_with(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from conftest import save_tiny

    command = ["train", "preview", "--out", str(tmp_path), "--no-real", "--device", "cpu"]
    command += ["--dtype", "float32", "--steps", "3", "--stop-after", "1", "--tokenizer"]
    assert main([*command, str(tiny_checkpoint)]) == 0
    assert main([*command, str(save_tiny(tmp_path / "b.safetensors", seed=1))]) == 2
    assert "belongs to another recipe" in capsys.readouterr().err
