"""The prior's training clips: what each shows, that a killed run goes on, that time is kept."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vft_lib.checkpoints.checkpoint import save_tokenizer
from vft_lib.footage.bank import ClipBank
from vft_lib.footage.footage import Footage, to_video
from vft_lib.prior.prior import Prior
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.tokens import Tokens
from vft_lib.train import dataset
from vft_lib.train.dataset import Plan, Sequences, encode_sequences
from vft_lib.train.presets import PRESETS
from vft_lib.train.run import Run, sequences_of
from vft_lib.world.world import make_clip

PRESET = PRESETS["tiny"]
BLOCK = 6  # clips drawn from one number


@pytest.fixture(autouse=True)
def _small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:  # of its own: a test may undo what it patched
        patch.setattr(dataset, "SEQUENCES", BLOCK)
        yield


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer(PRESET.tokenizer.config, "test").eval()


@pytest.fixture(scope="module")
def bank() -> ClipBank:
    clips = {"a": make_clip(1, frames=40, size=48).video}
    return ClipBank(clips, {"b": make_clip(2, frames=1, size=48).video[0]})


def plan(blocks: int, footage: bool = True) -> Plan:
    return Plan(PRESET.prior.config, blocks, footage, seed=3)


def test_every_clip_is_what_it_is_said_to_be(tokenizer: Tokenizer, bank: ClipBank) -> None:
    data = encode_sequences(plan(13), tokenizer, bank)
    assert len(data) == len(data.scenes) == 13 * BLOCK
    assert (data.rows.view(13, BLOCK) == data.rows.view(13, BLOCK)[:, :1]).all()
    kinds = data.rows.view(13, BLOCK)[:, 0].tolist()
    assert kinds == [9 if b % 4 == 0 else 5 for b in range(13)]
    assert [s is None for s in data.scenes[12 * BLOCK : 13 * BLOCK]] == [True] * BLOCK
    assert sum(s is None for s in data.scenes) == BLOCK
    acts = {len(s.main.then) for s in data.scenes[:BLOCK] if s is not None}
    assert acts == {0, 1, 2}
    assert data.one_act()[BLOCK : 2 * BLOCK].all()
    assert not data.one_act()[:BLOCK].all()
    for i in (0, 5, BLOCK + 3):
        scene, t = data.scenes[i], int(data.rows[i])
        assert scene is not None
        video = to_video([scene.render(1 + 4 * (t - 1), 32)])
        assert torch.equal(tokenizer.encode(video).ids[0], data.ids[i, :t].long())


def test_a_second_call_goes_on_and_a_new_tokenizer_begins_anew(
    tokenizer: Tokenizer, bank: ClipBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encode_sequences(plan(6), tokenizer, bank)
    part = encode_sequences(plan(6), tokenizer, bank, folder=tmp_path, deadline=time.monotonic())
    assert len(part) == 4 * BLOCK
    encoded: list[int] = []
    encode = tokenizer.encode

    def counted(video: Tensor) -> Tokens:
        encoded.append(len(video))
        return encode(video)

    monkeypatch.setattr(tokenizer, "encode", counted)
    again = encode_sequences(plan(6), tokenizer, bank, folder=tmp_path)
    assert sum(encoded) == 2 * BLOCK
    assert same(again, whole)
    other = Tokenizer(PRESET.tokenizer.config, "other").eval()
    assert not same(encode_sequences(plan(6), other, bank, folder=tmp_path), whole)
    assert same(encode_sequences(plan(6), tokenizer, bank, folder=tmp_path), whole), "overwritten"


def test_processes_draw_what_this_one_would(tokenizer: Tokenizer) -> None:
    alone = encode_sequences(plan(5, footage=False), tokenizer, None)
    assert same(encode_sequences(plan(5, footage=False), tokenizer, None, processes=2), alone)


def same(a: Sequences, b: Sequences) -> bool:
    inside = torch.arange(a.ids.shape[1])[None, :, None] < a.rows[:, None, None]
    return torch.equal(a.rows, b.rows) and torch.equal(a.ids * inside, b.ids * inside)


def test_a_prior_that_goes_on_from_another_is_given_other_worlds(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """The other may know its own by heart."""

    def worlds(name: str, start: Prior | None) -> set[str]:
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        save_tokenizer(
            out / "tokenizer.safetensors", tokenizer.config, tokenizer.state_dict(), None
        )
        preset = dataclasses.replace(
            PRESET, prior=dataclasses.replace(PRESET.prior, clips=dataset.SEQUENCES)
        )
        run = Run(preset, Footage(None, None), out, torch.device("cpu"), torch.float32)
        return {repr(scene) for scene in sequences_of(run, None, start).scenes}

    one, other = (Prior(PRESET.prior.config, mark) for mark in ("00000000000000a1", "f" * 16))
    found = [worlds("first", None), worlds("one", one), worlds("other", other)]
    assert all(len(scenes) == BLOCK for scenes in found)
    assert len(set.union(*found)) == 3 * BLOCK
    assert worlds("one", one) == found[1], "the same again when it is resumed"
