"""What a step costs, in operations: a change that makes it dearer has to change these numbers."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import save_tiny

from vft_lib.cli.vft import main
from vft_lib.config.tokenizer import TokenizerConfig, TransformerConfig, VAEConfig
from vft_lib.errors import VftError
from vft_lib.measure import bench
from vft_lib.models.loading import load_tokenizer
from vft_lib.tokenizer.sampling import Sampling
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.transformer.attention import Layout, attend

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    tok = load_tokenizer("default", device=CPU)
    bench.decoder_step(tok, 1, 1.0)  # from here on modulation is remembered
    return tok


def mega(tok: Tokenizer, k: int, guidance: float) -> float:
    return bench.operations(lambda: bench.decoder_step(tok, k, guidance)) / 1e6


def expected(c: TokenizerConfig, frames: int, passes: list[tuple[int, int]]) -> float:
    """By hand: (clips, tokens a frame) of each pass through the trunk; mode "full"."""
    trunk, patches, numbers = c.decoder.trunk, 64, 64  # of a frame; in a patch
    d, total = trunk.dim, 0.0
    for clips, each in passes:
        n = frames * each
        linear = 4 * d * d + 3 * d * trunk.hidden
        total += trunk.depth * clips * (2 * n * linear + 4 * n * n * d)
        total += clips * frames * patches * 2 * 2 * d * numbers  # patches in and out
    prepared = 2 if any(clips == 2 for clips, _ in passes) or len(passes) == 2 else 1
    return (total + prepared * 2 * frames * c.registers * 6 * d) / 1e6


@pytest.mark.parametrize("k", [1, 4, 8, 14])
def test_a_step_costs_what_its_budget_takes(tok: Tokenizer, k: int) -> None:
    each = 64 + k + 1
    assert mega(tok, k, 1.0) == pytest.approx(expected(tok.config, 5, [(1, each)]), rel=1e-3)
    guided = [(2, each)] if each <= 1.1 * 65 else [(1, each), (1, 65)]
    assert mega(tok, k, 3.0) == pytest.approx(expected(tok.config, 5, guided), rel=1e-3)


def test_modulation_is_once_a_schedule(tok: Tokenizer) -> None:
    trunk = tok.config.decoder.trunk
    d, times = trunk.dim, torch.linspace(1, 0.1, 30)
    one = trunk.depth * 2 * d * 6 * d * trunk.modulation_kinds
    one += 2 * 256 * d + 2 * d * d + 2 * d * 2 * d  # the embedding, the head's modulation
    assert bench.operations(lambda: tok.decoder.modulate(times, tok.dtype)) == 30 * one
    again = load_tokenizer("default", device=CPU)
    assert mega(again, 4, 1.0) == pytest.approx(mega(tok, 4, 1.0) + one / 1e6, rel=1e-6)


def test_all_registers_cost_no_weighted_one(tok: Tokenizer) -> None:
    assert mega(tok, 128, 1.0) == pytest.approx(expected(tok.config, 5, [(1, 192)]), rel=1e-3)


def test_time_blocks_leave_out_the_upper_triangle() -> None:
    """Of the published decoder's attention, 15 of 25 frame pairs."""
    with torch.device("meta"):
        full = Tokenizer(bench.published("k600"), "made-up")
    assert full.decoder.trunk.mask.mode == "time_block_causal"
    q = torch.zeros(1, 18, 5 * 512, 64)
    block = bench.operations(
        lambda: attend(q, q, q, Layout(full.decoder.trunk.mask, 5, 256, 256), 0.125)
    )
    assert block == 18 * 4 * 64 * 512 * 512 * 15


def test_the_published_sizes_are_those_of_the_spec() -> None:
    counts = {}
    for size in ("k600", "d28"):
        with torch.device("meta"):
            tok = Tokenizer(bench.published(size), "made-up")
        counts[size] = [
            round(sum(p.numel() for p in m.parameters()) / 1e6)
            for m in (tok.encoder, tok.decoder, tok.vae)
        ]
    # The published encoder has registers for more frames than a chunk's five: 289.
    assert counts == {"k600": [288, 579, 158], "d28": [288, 2170, 158]}


def test_the_command_prints_every_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    default = {stage for stage, _ in bench.stages("default", CPU, torch.float32)}
    previewed = load_tokenizer("default", device=CPU).preview is not None
    assert len(default) == 13 + previewed
    assert ("preview decoder" in default) == previewed
    tiny = load_tokenizer(save_tiny(tmp_path / "t.safetensors", registers=128), device=CPU)
    monkeypatch.setattr(bench, "load_tokenizer", lambda *_, **__: tiny)
    assert main(["bench", "--repeat", "1", "--device", "cpu", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    rows = {r["stage"]: r for r in facts["rows"]}
    assert rows.keys() == default - {"preview decoder"}
    assert facts["matmul_gflops"] > 1
    assert all(r["seconds"] > 0 and r["gflop"] > 0 and r["share"] > 0 for r in rows.values())
    assert rows["decoder step, k = 1"]["gflop"] < rows["decoder step, k = 16"]["gflop"]


def test_an_unknown_size_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "d99", "--device", "cpu"]) == 2
    assert "no size 'd99'; choose among default, k600" in capsys.readouterr().err


def test_options_cost_what_their_passes_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted from one step and two; a whole run of four steps, guided at two, costs the same."""
    small = dataclasses.replace(
        bench.published("k600"), size=32,
        vae=VAEConfig(8, (1, 1, 2, 2), 1, 1, 4),
        decoder=dataclasses.replace(
            bench.published("k600").decoder, trunk=TransformerConfig(128, 2, modulation_kinds=2)
        ),
    )  # fmt: skip
    monkeypatch.setattr(bench, "published", lambda _: small)
    option = Sampling(4, 3.0, interval=(0.0, 0.5))
    monkeypatch.setattr(bench, "OPTIONS", {"all": Sampling(4, 3.0), "half": option})
    every, half = bench.count_options("k600", 4)
    assert (every.passes, half.passes) == (8, 6)
    with torch.device("meta"):
        tok = Tokenizer(small, "made-up").eval().requires_grad_(False)
    ids, noise = torch.zeros(1, 5, 4, dtype=torch.int64), torch.zeros(1, *small.latent_shape)
    for row, sampling in ((every, Sampling(4, 3.0)), (half, option)):
        flops = bench.operations(partial(tok.sample_latents, ids, noise, sampling))
        assert row.sampler_tflop == pytest.approx(flops / 1e12, rel=1e-9)
    with pytest.raises(VftError, match="k600, d28"):
        bench.count_options("default", 4)
