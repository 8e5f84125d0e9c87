"""The preview decoder: its shapes, its causality, what it costs; as a part of a checkpoint that may
be missing; and who draws through it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from preview import SMALL, weights, with_preview
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from vft_lib.autoencoder.preview import PreviewDecoder
from vft_lib.autoencoder.vae import VideoAutoencoder
from vft_lib.checkpoints.checkpoint import fingerprint
from vft_lib.cli.vft import main
from vft_lib.clips.stream import decode_file
from vft_lib.config.preview import PreviewConfig
from vft_lib.config.tokenizer import TokenizerConfig
from vft_lib.errors import CheckpointError, ConfigError, VftError
from vft_lib.models.loading import add_preview, load_tokenizer
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.tokens import Tokens
from vft_lib.train.presets import PRESETS
from vft_lib.video.video_in import read_frames


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    return with_preview(tiny_checkpoint, tmp_path_factory.mktemp("preview") / "tiny.safetensors")


@pytest.fixture
def tokenizer(file: Path) -> Tokenizer:
    return load_tokenizer(file, device="cpu")


def tokens_of(tokenizer: Tokenizer, frames: int = 17, clips: int = 1) -> Tokens:
    generator = torch.Generator().manual_seed(frames)
    return tokenizer.encode(torch.rand(clips, 3, frames, 32, 32, generator=generator) * 2 - 1)


# ---------------------------------------------------------------------- the network


@pytest.mark.parametrize("t", [1, 2, 5])
def test_shapes_are_the_autoencoders(t: int) -> None:
    latents = torch.randn(2, 4, t, 2, 3)
    vae, preview = VideoAutoencoder(TINY.vae).eval(), PreviewDecoder(SMALL, 4)
    with torch.no_grad():
        assert preview(latents).shape == vae.decode(latents).shape == (2, 3, 4 * t - 3, 16, 24)


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_parts_of_a_chunk_give_what_the_whole_gives(at_once: int) -> None:
    preview, latents = PreviewDecoder(SMALL, 4), torch.randn(2, 4, 5, 4, 4)
    with torch.no_grad():
        assert torch.allclose(preview(latents, at_once), preview(latents), atol=1e-6)


@torch.no_grad()
def test_a_frame_depends_on_what_came_before_and_on_nothing_later() -> None:
    preview, latents = PreviewDecoder(SMALL, 4), torch.randn(1, 4, 5, 4, 4)
    video = preview(latents)
    for t in range(5):
        other = latents.clone()
        other[:, :, t] += 1
        moved = (preview(other) - video).abs().amax((0, 1, 3, 4)) > 0
        first = max(0, 4 * t - 3)
        assert not moved[:first].any()
        assert moved[first : min(17, first + 4 * SMALL.blocks)].all(), "and the frames after it"


def test_the_usual_one_is_small_and_cheap() -> None:
    """Under 2 MB in float16, and a tenth of the default autoencoder's operations at most: seconds
    stand in docs/performance.md."""
    c = PRESETS["small"].tokenizer.config
    latents = torch.randn(1, *c.latent_shape, device="meta")
    with torch.device("meta"):
        vae, preview = VideoAutoencoder(c.vae), PreviewDecoder(PreviewConfig(), 16)
    assert 2 * sum(p.numel() for p in preview.parameters()) < 2e6
    counts = []
    for decode in (vae.decode, preview):
        with FlopCounterMode(display=False) as counter:
            decode(latents)
        counts.append(counter.get_total_flops())
    assert 10 * counts[1] < counts[0]


# ---------------------------------------------------------------------- a part of a checkpoint


def test_a_file_with_it_reads_the_same_tokens(
    file: Path, tiny_checkpoint: Path, tiny_tokenizer: Tokenizer, tokenizer: Tokenizer
) -> None:
    old, new = load_file(tiny_checkpoint), load_file(file)
    assert all(torch.equal(new[k], old[k]) for k in old)
    added = {k for k in new if k not in old}
    assert added == {f"preview.{k}" for k in weights()}
    assert {new[k].dtype for k in added} == {torch.float16}
    assert tokenizer.config.preview == SMALL
    assert tiny_tokenizer.preview is None
    assert tokenizer.fingerprint == tiny_tokenizer.fingerprint
    assert fingerprint(tokenizer.config, new) == fingerprint(tiny_tokenizer.config, old)
    tokens = tokens_of(tiny_tokenizer)
    assert torch.equal(tokens.ids, tokens_of(tokenizer).ids)
    assert torch.equal(tokenizer.decode(tokens), tiny_tokenizer.decode(tokens)), "not a draft"


def test_another_one_takes_its_place(file: Path, tmp_path: Path) -> None:
    other = dataclasses.replace(SMALL, blocks=1)
    mark = add_preview(file, tmp_path / "b.safetensors", other, weights(1, other))
    tokenizer = load_tokenizer(tmp_path / "b.safetensors", device="cpu")
    assert tokenizer.config.preview == other
    assert tokenizer.fingerprint == mark == load_tokenizer(file, device="cpu").fingerprint


def test_a_config_without_it_is_what_it_was(tiny_checkpoint: Path) -> None:
    """Files are the same to the byte, and programs from before it read them."""
    with safe_open(tiny_checkpoint, "pt") as f:
        text = f.metadata()["config"]
    assert "preview" not in json.loads(text)
    assert TokenizerConfig.from_json(text).to_json() == text
    both = dataclasses.replace(TINY, preview=SMALL)
    assert both.identity() == TINY.identity()
    assert TokenizerConfig.from_json(both.to_json()) == both


@pytest.mark.parametrize(
    "bad",
    [
        {"width": 0}, {"middle": 0}, {"width": 1 << 20}, {"fine": 4096}, {"blocks": 0},
        {"blocks": 1000}, {"blocks": "3"}, {"kind": "large"}, "small", [1, 2],
    ],
)  # fmt: skip
def test_a_hostile_config_is_refused_in_one_line(file: Path, tmp_path: Path, bad: object) -> None:
    with safe_open(file, "pt") as f:
        header = dict(f.metadata())
    config = json.loads(header["config"])
    config["preview"] = config["preview"] | bad if isinstance(bad, dict) else bad
    path = tmp_path / "bad.safetensors"
    save_file(load_file(file), path, header | {"config": json.dumps(config)})
    with pytest.raises(CheckpointError, match=r"preview|Preview") as e:
        load_tokenizer(path, device="cpu")
    assert "\n" not in str(e.value)


def test_hostile_tensors_are_refused_in_one_line(file: Path, tmp_path: Path) -> None:
    with safe_open(file, "pt") as f:
        header = dict(f.metadata())
    tensors, path = load_file(file), tmp_path / "bad.safetensors"
    name = "preview.conv_in.conv.weight"
    without = {k: v for k, v in tensors.items() if k != name}
    for bad, message in (
        (without, f"misses tensor '{name}'"),
        (tensors | {"preview.more": torch.zeros(2)}, "has an unexpected tensor 'preview.more'"),
        (tensors | {name: torch.zeros(3)}, r"is \[3\], its config says \[16, 4, 3, 3\]"),
        (tensors | {name: tensors[name].int()}, "is I32"),
        (tensors | {name: tensors[name] + 1}, "damaged"),
    ):
        save_file(bad, path, header)
        with pytest.raises(CheckpointError, match=message) as e:
            load_tokenizer(path, device="cpu")
        assert "\n" not in str(e.value)


def test_limits_of_a_config() -> None:
    for fields in ({"width": 0}, {"width": 1025}, {"blocks": 33}, {"fine": 0}):
        with pytest.raises(ConfigError, match="1 to 1024, and 1 to 32 blocks"):
            PreviewConfig(**fields)


# ---------------------------------------------------------------------- drafts


def test_a_draft_goes_through_it(tokenizer: Tokenizer, tiny_tokenizer: Tokenizer) -> None:
    tokens = tokens_of(tokenizer, 33, clips=2)
    assert tokenizer.preview is not None
    seen: list[tuple[int, ...]] = []
    tokenizer.preview.register_forward_hook(lambda _, inputs, y: seen.append(tuple(y.shape)))
    video = tokenizer.decode(tokens, quality="draft", steps=2)
    assert seen == [(1, 3, 17, 32, 32)] * 4  # two clips of two chunks
    assert video.shape == (2, 3, 33, 32, 32)
    assert str(tokenizer.passes) == "8 passes, preview decoder"
    assert not torch.equal(video, tiny_tokenizer.decode(tokens, quality="draft", steps=2))
    assert "preview" not in str(tiny_tokenizer.passes), "which has none"
    before = dataclasses.replace(tokenizer.passes)
    tokenizer.decode(tokens, steps=2)
    assert len(seen) == 4
    assert str(tokenizer.passes.since(before)) == "8 passes"


def test_a_draft_in_less_memory_is_the_same(tokenizer: Tokenizer) -> None:
    tokens = tokens_of(tokenizer, 33)
    whole = tokenizer.decode(tokens, quality="draft", steps=1)
    tokenizer.frames_at_once = 2
    parts = tokenizer.decode(tokens, quality="draft", steps=1)
    assert torch.allclose(parts, whole, atol=1e-4)


def test_it_shows_estimates(tokenizer: Tokenizer, tiny_tokenizer: Tokenizer) -> None:
    latents = torch.randn(1, 4, 1, 4, 4, dtype=torch.float64)
    assert tokenizer.preview is not None
    with torch.inference_mode():
        shown = tokenizer.draft_picture(latents)
        assert torch.equal(shown, tokenizer.preview(latents.float()))
        plain = tiny_tokenizer.draft_picture(latents)
        assert torch.equal(plain, tiny_tokenizer.vae.decode(latents.float()))


def test_no_draft_goes_on_with_chunks_of_another_one(
    file: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """The fingerprint does not tell one preview decoder from another."""
    tokens, out = tokens_of(tokenizer, 49), tmp_path / "a.mp4"
    chunks = []

    def stop(chunk: object) -> None:
        chunks.append(chunk)
        if len(chunks) == 3:
            raise KeyboardInterrupt

    draft: dict[str, Any] = {"quality": "draft", "steps": 1}
    with pytest.raises(KeyboardInterrupt):
        decode_file(tokenizer, tokens, out, resume=False, on_chunk=stop, **draft)
    other = load_tokenizer(with_preview(file, tmp_path / "b.safetensors", seed=5), device="cpu")
    with pytest.raises(VftError, match="of other tokens, models or settings"):
        decode_file(other, tokens, out, resume=True, **draft)
    assert decode_file(tokenizer, tokens, out, resume=True, **draft) == 49


def test_the_command_line_says_so(
    file: Path, tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens, out = tmp_path / "t.vft", tmp_path / "a.mp4"
    tokens_of(tokenizer).save(tokens)
    decode = ["decode", str(tokens), "-o", str(out), "--tokenizer", str(file), "--steps", "1"]
    cpu = ["--device", "cpu"]
    assert main([*decode, "--quality", "draft", *cpu]) == 0
    assert "1 pass, preview decoder" in capsys.readouterr().out
    assert len(list(read_frames(out))) == 17
    assert main([*decode, *cpu]) == 0
    assert "preview" not in capsys.readouterr().out
    assert main([*decode, "--quality", "draft", "--json", *cpu]) == 0
    passes = json.loads(capsys.readouterr().out)["passes"]
    assert passes == {"asked": 1, "run": 1, "previewed": 1}
    redo = ["--redo", str(out), "--seed", "3"]
    assert main([*decode, "--quality", "draft", *redo, *cpu]) == 0
    assert "made anew, 1 pass, preview decoder" in capsys.readouterr().out
    assert main(["info", str(file), *cpu]) == 0
    said = capsys.readouterr().out
    assert "preview decoder   width 16, blocks 2, middle 8, fine 8" in said
    count = sum(v.numel() for v in weights().values())
    assert f"preview {count}" in said
