"""The prior's commands through `main`, with a tiny prior of random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import moving_picture, save_tiny
from prior.test_prior import OURS, made

from cli.test_cli import Vft
from vft_lib.checkpoints.checkpoint import save_prior
from vft_lib.models.loading import load_prior, load_tokenizer
from vft_lib.tokens import Tokens
from vft_lib.video.video_in import probe
from vft_lib.video.video_out import write_video


@pytest.fixture(scope="module")
def prior_file(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    prior = made(OURS).bind(load_tokenizer(tiny_checkpoint, device="cpu"))
    path = tmp_path_factory.mktemp("prior") / "prior.safetensors"
    save_prior(path, prior.config, prior.state_dict(), torch.float32)
    return path


@pytest.fixture
def vft(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> Vft:
    return Vft(tiny_checkpoint, capsys)


@pytest.fixture
def tokens(vft: Vft, tmp_path: Path) -> Path:
    """A real clip of two chunks at four tokens per latent frame."""
    write_video(tmp_path / "clip.mp4", moving_picture(30, 40, 56), 8)
    vft("encode", tmp_path / "clip.mp4", "-o", tmp_path / "clip.vft", "--budget", 4)
    return tmp_path / "clip.vft"


def test_generate_writes_a_clip_and_its_tokens(vft: Vft, tmp_path: Path, prior_file: Path) -> None:
    out, kept = tmp_path / "o.mp4", tmp_path / "o.vft"
    args = ["-k", 3, "--prior", prior_file, "--steps", 2, "--seed", 7]
    facts = vft.json("generate", "a red ball", *args, "-o", out, "--tokens-out", kept)
    assert (facts["frames"], facts["budget"], facts["seed"]) == (17, 3, 7)
    assert probe(out).frames == 17
    tokens = Tokens.load(kept)
    assert tokens.ids.shape == (1, 5, 3)
    again = tmp_path / "again.vft"
    vft("generate", "a red ball", *args, "--tokens-out", again)
    assert torch.equal(Tokens.load(again).ids, tokens.ids)
    vft("generate", "moves", *args, "--tokens-out", again)
    assert not torch.equal(Tokens.load(again).ids, tokens.ids)
    vft("generate", "--class", "spin", *args, "--frames", 9, "--tokens-out", again)
    assert Tokens.load(again).frames == 9
    vft("decode", kept, "-o", tmp_path / "d.mp4", "--steps", 2)
    assert vft("generate", "--list-classes", "--prior", prior_file).split() == ["still", "spin"]


def test_refine_adds_and_keeps(vft: Vft, tmp_path: Path, tokens: Path, prior_file: Path) -> None:
    fine = tmp_path / "fine.vft"
    vft("refine", tokens, "-k", 6, "-o", fine, "--prior", prior_file, "--caption", "a ball")
    before, after = Tokens.load(tokens), Tokens.load(fine)
    assert after.ids.shape == (1, 9, 6)
    assert torch.equal(after.ids[..., :4], before.ids)
    assert after.source == before.source


def test_surprise_and_the_budget_it_picks(
    vft: Vft, tmp_path: Path, tokens: Path, prior_file: Path
) -> None:
    plot = tmp_path / "bits.png"
    facts = vft.json("surprise", tokens, "--prior", prior_file, "--plot", plot)
    bits = torch.tensor(facts["bits"])
    assert bits.shape == (9, 4)
    assert facts["total"] == pytest.approx(float(bits.sum()), abs=0.1)
    assert facts["kept"][-1] == 1
    assert plot.stat().st_size > 3000
    assert "bits in 36 tokens" in vft("surprise", tokens, "--prior", prior_file)
    for share in (0.2, 0.6, 1.0):
        out = tmp_path / "small.vft"
        vft("truncate", tokens, "--auto", "--keep-bits", share, "--prior", prior_file, "-o", out)
        k = Tokens.load(out).budget
        assert facts["kept"][k - 1] >= share - 1e-3
        assert k == 1 or facts["kept"][k - 2] < share


def test_truncating_to_a_size_evenly_and_adaptively(
    vft: Vft, tmp_path: Path, tokens: Path, prior_file: Path
) -> None:
    out = tmp_path / "small.vft"  # of 9 x 4 tokens
    assert vft.json("truncate", tokens, "--tokens", 26, "-o", out)["grid"] == [9, 2]
    assert vft.json("truncate", tokens, "--bytes", 55, "-o", out)["id_bytes"] == 54
    adaptive = ("truncate", tokens, "--adaptive", "--prior", prior_file, "-o", out)
    for size, count in ((("--tokens", 26), 26), (("--bytes", 55), 27), (("-k", 2), 18)):
        facts = vft.json(*adaptive, *size)
        rows = facts.get("budgets", [count // 9] * 9)
        assert facts["ids"] == sum(rows) == count
        assert facts["id_bytes"] == 2 * count
        assert facts == vft.json("info", out)
        assert list(Tokens.load(out).rows) == rows
    assert vft.json(*adaptive, "--keep-bits", 0.5)["ids"] < vft.json(*adaptive)["ids"] < 36
    assert "budgets" not in vft.json(*adaptive, "--keep-bits", 1)
    said, kept = vft(*adaptive, "--tokens", 20), Tokens.load(out).rows
    assert min(kept) < max(kept)
    assert f"9 x {min(kept)} to {max(kept)} = 20 tokens, 40 bytes" in said
    lines = vft("info", out).splitlines()
    rows = " ".join(map(str, Tokens.load(out).rows))
    assert f"{'budgets':18}{rows}" in lines
    facts = vft.json("decode", out, "-o", tmp_path / "o.mp4", "--steps", 1, "--budget", 3)
    assert (facts["frames"], facts["budget"]) == (30, 3)
    fine = tmp_path / "fine.vft"
    facts = vft.json("refine", out, "-k", 6, "-o", fine, "--prior", prior_file)
    assert (facts["grid"], facts["ids"]) == ([9, 6], 54)
    again = ("truncate", out, "--adaptive", "--tokens", 15, "-o", out)
    for line in (("surprise", out), ("truncate", out, "--auto", "-o", fine), again):
        assert "what each tells is not known any more" in vft.error(*line, "--prior", prior_file)
    for sizes in ("-k 2 --bytes 9", "-k 2 --keep-bits 0.5", "--auto -k 2"):
        assert "give one of" in vft.error("truncate", tokens, *sizes.split(), "-o", out)
    assert "choose one" in vft.error(*adaptive, "--auto")
    assert "choose 1 to 4" in vft.error(*adaptive, "-k", 5)
    assert "more than 0" in vft.error(*adaptive, "--keep-bits", 0)
    assert "9 tokens, 18 bytes" in vft.error(*adaptive, "--bytes", 17)


def test_what_does_not_fit_is_one_line(
    vft: Vft, tmp_path: Path, tokens: Path, prior_file: Path, capsys: Any
) -> None:
    out = tmp_path / "o.mp4"
    given = ["--prior", prior_file, "-o", out]
    assert "trained on 5 latent frames" in vft.error("generate", "a", *given, "--frames", 33)
    assert "no class 'fly'; there are still, spin" in vft.error(
        "generate", "--class", "fly", *given
    )
    assert "holds no word" in vft.error("generate", "?!", *given)
    assert "choose 1 to 8" in vft.error("generate", "a ball", *given, "-k", 99)
    assert "-o CLIP.mp4" in vft.error("generate", "a ball", "--prior", prior_file)
    assert "existing folder" in vft.error(
        "generate", "a ball", "--prior", prior_file, "-o", tmp_path / "no" / "o.mp4"
    )
    assert "no prior" in vft.error("generate", "a ball", "--prior", tmp_path / "none", "-o", out)
    assert "not a VFT prior" in vft.error(
        "generate", "a ball", "--prior", vft.model[1], "-o", out
    )  # fmt: skip
    assert "temperature" in vft.error("generate", "a ball", *given, "--temperature", -1)
    assert "give a budget with -k" in vft.error("truncate", tokens, "-o", tmp_path / "u.vft")
    other = Vft(save_tiny(tmp_path / "other.safetensors", seed=1, name="other"), capsys)
    error = other.error("generate", "a ball", *given)
    assert "'tiny-prior'" in error
    assert "'other'" in error
    assert not out.exists()


def test_a_prior_that_was_saved_comes_back(prior_file: Path) -> None:
    prior = load_prior(prior_file, device="cpu")
    assert prior.config.tokenizer == "tiny"
    half = load_prior(prior_file, device="cpu", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.generate("a ball", budget=2).ids.shape == (1, 5, 2)
    header = json.loads(half.config.to_json())
    assert header["name"] == "tiny-prior"


def test_info_on_a_prior(vft: Vft, prior_file: Path) -> None:
    facts = vft.json("info", prior_file)
    assert (facts["kind"], facts["name"], facts["classes"]) == ("prior", "tiny-prior", 2)
    assert facts["tokenizer"].startswith("tiny ")
    assert facts["parameters_total"] == sum(facts["parameters"].values()) > 10_000
    assert "tiny-prior" in vft("info", prior_file)
