"""Priors of several chunks that also read and write clips of fewer."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch

from prior.test_prior import OURS, made
from vft_lib.errors import VftError
from vft_lib.prior.order import Window, places, rows_of, windows
from vft_lib.prior.prior import Prior
from vft_lib.tokenizer.tokenizer import Tokenizer

LONG = dataclasses.replace(OURS, latent_frames=9, seq_len=72, chunk=5)


@pytest.fixture(scope="module")
def prior(tiny_tokenizer: Tokenizer) -> Prior:
    return made(LONG).bind(tiny_tokenizer)


def short_twin(prior: Prior, tokenizer: Tokenizer) -> Prior:
    """A prior of one chunk, whose positions are those that `prior` uses for one chunk."""
    twin = made(OURS)
    weights = prior.state_dict()
    weights["network.positions"] = weights["network.positions"][places(LONG, 5)]
    twin.load_state_dict(weights)
    return twin.bind(tokenizer)


def test_places_name_the_same_register_and_frame() -> None:
    assert places(LONG, 9).equal(torch.arange(73))
    five = places(LONG, 5)
    assert len(five) == 41
    assert five[[0, 4, 5, 12, 40]].tolist() == [0, 4, 9, 2 * 9 + 2, 72]


def test_whole_chunks_of_frames() -> None:
    assert [rows_of(LONG, n) for n in (1, 17, 18, 33)] == [5, 5, 9, 9]
    assert [rows_of(OURS, n) for n in (1, 17)] == [5, 5]


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_short_clip_is_written_at_its_own_places(
    prior: Prior, tiny_tokenizer: Tokenizer, guidance: float
) -> None:  # fmt: skip
    twin = short_twin(prior, tiny_tokenizer)
    kwargs: dict[str, Any] = {"seed": 3, "guidance": guidance, "budget": 6}
    written = prior.generate("a red ball", frames=16, **kwargs)
    assert written.ids.shape == (1, 5, 6)
    assert written.frames == 16
    assert torch.equal(written.ids, twin.generate("a red ball", frames=16, **kwargs).ids)
    assert torch.equal(prior.surprise(written), twin.surprise(written))
    finer = prior.refine(written.truncate(2), 6, seed=1)
    assert torch.equal(finer.ids, twin.refine(written.truncate(2), 6, seed=1).ids)
    longest = prior.generate("a red ball", **kwargs)
    assert longest.ids.shape == (1, 9, 6)
    assert longest.frames == 33
    assert tiny_tokenizer.decode(longest, steps=1).shape[2] == 33


def test_the_compiled_step_knows_its_places(prior: Prior) -> None:
    plain = prior.generate("a red ball", budget=3, frames=17, temperature=0)
    compiled = copy.deepcopy(prior).compile_step("eager")
    again = compiled.generate("a red ball", budget=3, frames=17, temperature=0)
    assert torch.equal(again.ids, plain.ids)


def test_a_long_clip_is_read_in_windows_as_long_as_they_can_be(
    prior: Prior, tiny_tokenizer: Tokenizer
) -> None:
    video = torch.rand(1, 3, 60, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
    tokens = tiny_tokenizer.encode(video)
    assert tokens.ids.shape == (1, 17, 8)
    assert windows(LONG, tokens) == [Window(0, 9, 0), Window(8, 9, 1)]
    first = dataclasses.replace(tokens, ids=tokens.ids[:, :9], frames=33)
    bits = prior.surprise(tokens)
    assert torch.equal(bits[:, :9], prior.surprise(first))
    longer = dataclasses.replace(tokens, ids=tokens.ids[:, [*range(17), *range(13, 17)]], frames=80)
    assert windows(LONG, longer) == [Window(0, 9, 0), Window(8, 9, 1), Window(16, 5, 1)]
    assert prior.refine(longer.truncate(2), 4).ids.shape == (1, 21, 4)
    with pytest.raises(VftError, match=r"9 latent frames for 17 frames.*chunks of 5 \(17 frames\)"):
        prior.surprise(dataclasses.replace(first, frames=17))
