"""Captions to states: free wording in, any length, unknown words and all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vft_lib.config.prior import TextEncoderConfig
from vft_lib.errors import VftError
from vft_lib.prior.text import TextEncoder, ngrams, split_words
from vft_lib.prior.umt5 import prepare_states
from vft_lib.train.prior import caption_words
from vft_lib.world import captions, world


@pytest.fixture
def encoder() -> TextEncoder:
    torch.manual_seed(0)
    config = TextEncoderConfig(caption_words(), dim=16, head_dim=8, buckets=512, max_words=12)
    return TextEncoder(config).eval().requires_grad_(False)


def test_words_are_lower_case_without_punctuation_or_accents() -> None:
    assert split_words("  A red-orange BALL, bouncing… (café)! ") == [
        "a", "red", "orange", "ball", "bouncing", "cafe",
    ]  # fmt: skip
    assert split_words("?! …") == []
    assert len(split_words("x" * 1000)[0]) == 24


def test_ngrams_do_not_depend_on_the_process() -> None:
    """Python's own hash() would: the buckets of a trained file must stay what they were."""
    script = "from vft_lib.prior.text import ngrams; print(ngrams('ball', 2048))"
    other = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2], env=os.environ | {"PYTHONHASHSEED": other},
    )  # fmt: skip
    assert run.stdout.strip() == str(ngrams("ball", 2048))


def test_the_vocabulary_has_every_word_of_the_captions() -> None:
    rng, known = np.random.default_rng(0), set(caption_words())
    for seed in range(300):
        scene = world.draw_scene(seed)
        main = scene.main
        short = captions.brief(rng, color=main.color, shape=main.shape, motion=main.motion)
        for text in (scene.caption(rng), short):
            assert set(split_words(text)) <= known, text


def test_states_do_not_depend_on_the_other_captions(encoder: TextEncoder) -> None:
    texts = ["a red ball", "", "a small dotted blue square spins on sand"]
    states, mask = encoder(texts, rows=4)
    assert states.shape == (3, 8, 16)
    assert mask.sum(1).tolist() == [3, 0, 8]
    assert not states[~mask].any()
    for i, text in enumerate(texts):
        alone, own = encoder([text], rows=4)
        assert torch.allclose(alone[own], states[i][mask[i]], atol=1e-5)
    assert torch.isfinite(states).all()


def test_word_order_counts(encoder: TextEncoder) -> None:
    a, _ = encoder(["a red ball near a blue square"])
    b, _ = encoder(["a blue ball near a red square"])
    assert not torch.allclose(a, b, atol=1e-2)


def test_unknown_words_are_read_by_their_spelling(encoder: TextEncoder) -> None:
    with torch.no_grad():
        encoder.words[-1] = 0
    known, typo, other = (encoder([w])[0][0, 0] for w in ("trianglee", "triangles", "xylophone"))
    assert (known - typo).norm() < (known - other).norm()


def test_long_captions_are_cut(encoder: TextEncoder) -> None:
    states, mask = encoder(["ball " * 100])
    assert states.shape[1] == mask.shape[1] == 12


def test_forgetting_makes_known_words_unknown(encoder: TextEncoder) -> None:
    plain, _ = encoder(["red ball"])
    kept, _ = encoder(["red ball"], forget=torch.ones(2))
    lost, _ = encoder(["red ball"], forget=torch.zeros(2))
    assert torch.equal(plain, kept)
    assert not torch.allclose(plain, lost)


# ---------------------------------------------------------------------- states from outside


def test_states_are_trimmed_cut_and_rounded() -> None:
    states = torch.zeros(2, 20, 4)
    states[0, :5] = torch.randn(5, 4)
    states[1, :9] = torch.randn(9, 4)
    out, mask = prepare_states(states, None, 16)
    assert out.shape == (2, 9, 4)
    assert mask.sum(1).tolist() == [5, 9]
    assert torch.equal(out, states[:, :9].half().float())
    out, _ = prepare_states(states, None, 7)
    assert out.shape == (2, 7, 4)


def test_a_mask_wins_over_the_rows() -> None:
    states = torch.randn(1, 6, 4)
    mask = torch.tensor([[1, 1, 0, 0, 0, 0]], dtype=torch.uint8)
    out, kept = prepare_states(states, mask, 16)
    assert kept.tolist() == [[True, True]]
    assert out.shape == (1, 2, 4)


def test_states_of_nothing_are_one_masked_row() -> None:
    out, mask = prepare_states(torch.zeros(512, 4), None, 128)
    assert out.shape == (1, 1, 4)
    assert not mask.any()


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(VftError, match="mask"):
        prepare_states(torch.randn(1, 6, 4), torch.ones(1, 5), 16)
