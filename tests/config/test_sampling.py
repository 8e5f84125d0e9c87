"""Recipes: what a checkpoint says of sampling, and what becomes of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from conftest import TINY

from vft_lib.checkpoints.checkpoint import header_of
from vft_lib.config.sampling import Recipe, SamplingDefaults
from vft_lib.config.tokenizer import TokenizerConfig
from vft_lib.errors import VftError
from vft_lib.files.packaged import packaged
from vft_lib.files.tensor_files import Source
from vft_lib.tokenizer.sampling import Sampling
from vft_lib.tokenizer.tokenizer import Tokenizer

DRAFT = Recipe(3, 2.0, apg=False, shift=2.0, interval=(0.5, 1.0))
MEASURED = SamplingDefaults(
    12, 4.0, apg=True, reuse=0.1, draft=DRAFT, best=Recipe(40, 4.0, interval=(0.2, 0.9))
)


def test_a_checkpoint_keeps_its_recipes() -> None:
    config = dataclasses.replace(TINY, sampling=MEASURED)
    read = TokenizerConfig.from_json(config.to_json())
    assert read == config
    assert read.sampling.of("draft") == DRAFT
    assert read.sampling.of("normal") == Recipe(12, 4.0, reuse=0.1)
    assert read.sampling.of("best").steps == 40
    assert config.identity() == TINY.identity(), "tokens stay readable"


def test_the_defaults_recipes() -> None:
    """As docs/performance.md has them measured; tokens of it stay readable."""
    source = Source.open(packaged("default.safetensors"))
    meta, text = header_of(source, "tokenizer")
    sampling = TokenizerConfig.from_json(text).sampling
    assert meta["fingerprint"] == "7ab2c5c2ab2a96c7"
    assert sampling.of("normal") == sampling.of("draft") == Recipe(2, 1.5, apg=False)
    assert sampling.of("best") == Recipe(4, 2.0, apg=False)


@pytest.mark.parametrize(("guidance", "steps"), [(1.0, 4), (25.0, 2)])
def test_a_draft_that_was_not_measured_takes_four_passes(guidance: float, steps: int) -> None:
    defaults = SamplingDefaults(30, guidance, apg=True)
    assert defaults.of("draft") == Recipe(steps, guidance, apg=True)
    assert defaults.of("best") == defaults.of("normal") == Recipe(30, guidance, apg=True)
    assert SamplingDefaults(1, guidance).of("draft").steps == 1


def test_what_is_asked_for_stands_before_the_recipe() -> None:
    draft = Sampling(5, quality="draft", seed=7).settled(MEASURED)
    assert draft.recipe == dataclasses.replace(DRAFT, steps=5)
    assert draft.seed == 7
    assert Sampling().settled(MEASURED).recipe == Recipe(12, 4.0, reuse=0.1)
    # The checkpoint's reuse is of euler, and no reason to refuse another method.
    assert Sampling(method="heun").settled(MEASURED).recipe.reuse == 0


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"quality": "fast"}, "choose draft, normal, best"),
        ({"interval": (0.6, 0.5)}, "interval is 0.6 to 0.5"),
        ({"reuse": -0.1}, "reuse is -0.1"),
        ({"reuse": 0.1, "method": "heun"}, "euler only"),
    ],
)
def test_what_cannot_be_sampled_is_named(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(VftError, match=told):
        Sampling(**fields)


def sampled(tok: Tokenizer, sampling: Sampling, clips: int = 2) -> tuple[torch.Tensor, int, int]:
    """Latents; passes that were asked for and that ran, of each clip."""
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(64_000, (2, 5, 3), generator=g)[:clips]
    noise = torch.randn((2, *tok.config.latent_shape), generator=g)[:clips]
    before = dataclasses.replace(tok.passes)
    with torch.inference_mode():
        latents = tok.sample_latents(ids, noise, sampling)
    passes = tok.passes.since(before)
    return latents, passes.asked // clips, passes.run // clips


def test_guidance_on_an_interval_leaves_the_null_pass_out(tiny_tokenizer: Tokenizer) -> None:
    """Ten steps at the times 1, 0.9 … 0.1: five of them between 0.3 and 0.7."""
    every, *passes = sampled(tiny_tokenizer, Sampling(10, 3.0, interval=(0.0, 1.0)))
    assert passes == [20, 20]
    some, *passes = sampled(tiny_tokenizer, Sampling(10, 3.0, interval=(0.29, 0.71)))
    assert passes == [20, 15]
    none, *passes = sampled(tiny_tokenizer, Sampling(10, 3.0, interval=(0.01, 0.02)))
    assert passes == [20, 10]
    plain, *passes = sampled(tiny_tokenizer, Sampling(10, 1.0))
    assert passes == [10, 10]
    assert torch.equal(none, plain)
    assert not torch.allclose(every, some)
    assert not torch.allclose(some, plain)


def test_reuse_counts_its_passes_and_knows_no_neighbours(tiny_tokenizer: Tokenizer) -> None:
    sampling = Sampling(20, 3.0, interval=(0.5, 1.0), reuse=0.5)
    both, asked, ran = sampled(tiny_tokenizer, sampling)
    assert asked == 40
    assert ran < 31, "the interval alone leaves 31"
    alone, _, _ = sampled(tiny_tokenizer, sampling, clips=1)
    assert torch.allclose(both[:1], alone, atol=1e-5)


def test_reuse_runs_a_pass_where_guidance_begins_or_ends(tiny_tokenizer: Tokenizer) -> None:
    sampling = Sampling(20, 3.0, apg=True, interval=(0.31, 0.69), reuse=10.0)
    reuse = sampling.settled(MEASURED).reuser()
    assert reuse is not None
    times = Sampling(20).settled(MEASURED).schedule().asked()
    first_guided = next(i for i, t in enumerate(times) if t < 0.69)
    first_plain = next(i for i, t in enumerate(times) if t < 0.31)
    assert set(range(20)) & {0, 1, first_guided, first_plain, 19} == {
        i for i in range(20) if i in reuse.always
    }
    _, asked, ran = sampled(tiny_tokenizer, sampling)
    assert (asked, ran) == (40, 6)  # five velocities, one of them guided


def test_a_recipe_in_words_leaves_nothing_out() -> None:
    assert Recipe(30, 3.0).words == "Euler, 30 steps, guidance 3 projected"
    assert Recipe(2, 1.0).words == "Euler, 2 steps, guidance 1"
    every = Recipe(9, 2.5, apg=False, shift=3.0, interval=(0.25, 1.0), reuse=0.1)
    assert every.words == "Euler, 9 steps, guidance 2.5 from 0.25 to 1, shift 3, reuse 0.1"
    assert Recipe(5, 1.0, method="heun").words == "Heun, 5 steps, guidance 1"
