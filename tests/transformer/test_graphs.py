"""Captured steps: the same numbers, forgotten when weights move. On a CPU a rehearsal stands in for
the capture: it runs nothing until the replay, reads the same inputs, writes the same outputs."""

from __future__ import annotations

import copy
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from prior.test_prior import OURS
from prior.test_prior import made as made_prior
from torch import Tensor

from vft_lib.config.sampling import Method
from vft_lib.models.loading import load_prior, load_tokenizer
from vft_lib.prior.prior import Prior
from vft_lib.tokenizer.sampling import Sampling
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.transformer.graphs import HELD, WARM, Graphs, Outputs, Pace, rehearse
from vft_lib.transformer.masks import holding, remembered

CPU = torch.device("cpu")


def latents(tok: Tokenizer, sampling: Sampling, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(64_000, (2, 5, 3), generator=g)
    noise = torch.randn((2, *tok.config.latent_shape), generator=g)
    with torch.inference_mode():
        return tok.sample_latents(ids, noise, sampling)


@pytest.fixture
def tok(tiny_checkpoint: Path) -> Tokenizer:
    return load_tokenizer(tiny_checkpoint, device="cpu")


@pytest.mark.parametrize("method", ["euler", "heun", "midpoint"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_captured_steps_sample_the_same_latents(
    tok: Tokenizer, method: Method, scale: float
) -> None:
    sampling = Sampling(5, scale, method=method)
    asked = len(sampling.settled(tok.config.sampling).schedule().asked())
    plain = [latents(tok, sampling, seed) for seed in (0, 1)]
    assert tok.graphs.replayed == 0  # on a CPU nothing is captured
    tok.graphs = Graphs(rehearse, "on")
    assert torch.equal(latents(tok, sampling, 0), plain[0])
    assert tok.graphs.captured == 1
    first = tok.graphs.replayed
    assert first == asked - WARM
    assert torch.equal(latents(tok, sampling, 1), plain[1])  # other ids, the same capture
    assert (tok.graphs.captured, tok.graphs.replayed - first) == (1, asked)


def test_an_interval_and_reuse_sample_the_same_with_captured_steps(tok: Tokenizer) -> None:
    """Two kinds of step, with and without the unconditional pass, and some left out."""
    for sampling in (
        Sampling(12, 3.0, interval=(0.2, 0.8)),
        Sampling(12, 3.0, interval=(0.2, 0.8), reuse=0.1),
        Sampling(12, 1.0, reuse=0.1),
    ):
        tok.graphs = Graphs(rehearse, "off")
        plain = latents(tok, sampling)
        tok.graphs = Graphs(rehearse, "on")
        assert torch.equal(latents(tok, sampling), plain)
        assert tok.graphs.replayed


def test_weights_that_have_moved_are_captured_anew(tok: Tokenizer) -> None:
    sampling = Sampling(4, 1.0)
    tok.graphs = Graphs(rehearse, "on")
    latents(tok, sampling)
    block = tok.decoder.trunk.blocks[0]
    for p in block.parameters():
        p.data = p.data.clone()
    latents(tok, sampling)
    assert tok.graphs.captured == 2
    block.to("meta")  # elsewhere than where it computes: as ComfyUI keeps what does not fit
    assert tok.graphs.begin(tok.decoder, CPU, 1) is None


def test_large_steps_are_captured_only_where_it_is_asked_for(tok: Tokenizer) -> None:
    graphs = Graphs(rehearse)
    assert graphs.begin(tok.decoder, CPU, 100) is graphs
    assert graphs.begin(tok.decoder, CPU, 1 << 20) is None
    graphs.use = "on"
    assert graphs.begin(tok.decoder, CPU, 1 << 20) is graphs
    graphs.use = "off"
    assert graphs.begin(tok.decoder, CPU, 100) is None
    assert Graphs(use="on").begin(tok.decoder, CPU, 100) is None  # a CPU has no CUDA graphs


def test_decoding_leaves_no_captured_step(tok: Tokenizer) -> None:
    tok.graphs = Graphs(rehearse, "on")
    tokens = tok.encode(torch.rand(1, 3, 33, 32, 32) * 2 - 1, budget=2)
    tok.decode(tokens, steps=5, guidance=3.0)
    assert tok.graphs.captured == 1  # for all chunks
    assert tok.graphs.held == 0

    def cancel(done: int, total: int) -> None:
        assert done < 4, "cancelled"

    with pytest.raises(AssertionError, match="cancelled"):
        tok.decode(tokens, steps=5, progress=cancel)
    assert tok.graphs.captured == 2
    assert tok.graphs.held == 0


def test_what_cannot_be_captured_runs_without(
    tok: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    def capture(step: object, inputs: Outputs) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    plain = latents(tok, Sampling(6, 3.0))
    tok.graphs = Graphs(capture, "on")  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING, logger="vft_lib"):
        assert torch.equal(latents(tok, Sampling(6, 3.0)), plain)
    why = "RuntimeError: operation not permitted when stream is capturing"
    assert tok.graphs.failures == [why]
    assert caplog.messages == [f"a step cannot be captured as a CUDA graph and runs without: {why}"]


def test_a_result_is_the_callers_own_and_inputs_may_change() -> None:
    graphs = Graphs(rehearse, "on")
    found = [
        graphs.run("double", lambda x: (2 * x,), torch.full((2,), float(i)))[0] for i in range(6)
    ]
    assert [t.tolist() for t in found] == [[2.0 * i] * 2 for i in range(6)]
    for i in range(2 * HELD):
        graphs.run("double", lambda x: (2 * x,), torch.zeros(i + 3))
    assert graphs.held <= HELD


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_prior_writes_the_same_ids(guidance: float, temperature: float) -> None:
    prior = load_prior("default", device="cpu")
    written = []
    for use in ("off", "on"):
        prior.graphs = Graphs(rehearse, use)
        seen: list[int] = []

        def note(done: int, total: int, seen: list[int] = seen) -> None:
            seen.append(done)

        tokens = prior.generate(
            ["a red ball", "a green star spins"], budget=2, guidance=guidance, seed=5,
            temperature=temperature, progress=note, frames=17,
        )  # fmt: skip
        written.append(tokens.ids)
        assert seen == list(range(1, 11))
    assert torch.equal(*written)
    assert (prior.graphs.captured, prior.graphs.replayed) == (1, 9 - WARM)
    assert prior.graphs.held == 0


def test_refined_ids_keep_what_is_known(tok: Tokenizer) -> None:
    """Clips of more than one window: `known` ids stand in the captured step, too."""
    prior = made_prior(OURS).bind(tok)
    coarse = tok.encode(torch.rand(1, 3, 33, 32, 32) * 2 - 1, budget=1)
    plain = prior.refine(coarse, 3, seed=1)
    other = copy.deepcopy(prior)
    other.graphs = Graphs(rehearse, "on")
    assert torch.equal(other.refine(coarse, 3, seed=1).ids, plain.ids)
    assert other.graphs.captured == 2


def test_remembered_results_are_held_for_whoever_captures() -> None:
    made = remembered(lambda n: torch.ones(n))
    held: list[Tensor] = []
    with torch.inference_mode(), holding(held):
        first = made(3)
    assert held == [first]
    assert not first.is_inference()  # who asks next may be training
    made(3)
    assert len(held) == 1
    Pace(CPU)()  # a CPU is never ahead of itself


# ------------------------------------------------------------------ on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_cuda_graph_gives_the_same_bits(tiny_checkpoint: Path, scale: float) -> None:
    tok = load_tokenizer(tiny_checkpoint, device="cuda")
    tok.graphs.use = "off"
    plain = latents(tok, Sampling(8, scale))
    tok.graphs.use = "on"
    for _ in range(2):
        assert torch.equal(latents(tok, Sampling(8, scale)), plain)
    assert tok.graphs.failures == []
    assert tok.graphs.captured == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_graph_writes_the_ids_of_its_own_path() -> None:
    prior: Prior = load_prior("default", device="cuda")
    written = []
    for graphs in (Graphs(use="on"), Graphs(rehearse, "on")):
        prior.graphs = graphs
        written.append(prior.generate("a red ball", budget=8, seed=5).ids)
        assert graphs.failures == []
    assert torch.equal(*written)


WITHOUT_COMPILER = """
import torch
from vft_lib.transformer.graphs import Compiled
step = Compiled(lambda x: torch.sin(x) * 2)
assert torch.equal(step(torch.ones(3)), torch.sin(torch.ones(3)) * 2)
print(step.problem)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="finds compilers by other ways than PATH")
def test_without_a_compiler_a_step_runs_as_written_and_says_what_to_install(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k not in ("CC", "CXX")}
    env |= {"PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER],
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "No working C++ compiler found" in run.stdout
    assert run.stdout.endswith("; install one (g++ or clang), or do not compile\n")
    assert "; install one (g++ or clang), or do not compile" in run.stderr, "a warning"
