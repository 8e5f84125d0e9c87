"""Parts of the tokenizer's training: alignment with image features, swapped ids, places."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import TINY
from train_tasks import tokenizer_task

from vft_lib.errors import VftError
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.train.loop import step_generator
from vft_lib.train.places import places, start_registers_at_places
from vft_lib.train.tokenizer import _some


def test_alignment_teaches_the_decoder_and_the_encoder() -> None:
    task = tokenizer_task().train()
    assert task.alignment is not None
    losses = task(step=0, generator=step_generator(0, 0), progress=0.0)
    assert 0.5 < float(losses["align"]) < 1.5, "1 - cosine of what knows nothing yet"
    losses["loss"].backward()
    first = task.decoder.trunk.blocks[0].attention.wq.weight.grad  # type: ignore[union-attr]
    assert first is not None
    assert first.abs().sum() > 0  # type: ignore[operator]
    assert task.encoder.registers.grad is not None
    assert not task.noted, "features of a step are kept for the next"


def test_samples_between_steps_leave_nothing_for_the_alignment(tmp_path: Path) -> None:
    """In another number format and for other clips, they would end the next step, or spoil it."""
    task, other = tokenizer_task().train(), tokenizer_task().train()
    task.samples(tmp_path, 1)
    assert (tmp_path / "samples-000001.png").exists()
    assert not task.noted
    task.train()
    losses = task(step=0, generator=step_generator(0, 0), progress=0.0)
    wanted = other(step=0, generator=step_generator(0, 0), progress=0.0)
    assert torch.equal(losses["align"], wanted["align"])


def test_an_error_counts_by_what_it_does_to_the_pixels() -> None:
    """A network that has learnt nothing misses a channel by its own variance and the noise's."""
    task = tokenizer_task(batch=64)
    assert task.root is not None
    weights = task.root @ task.root.T
    assert weights.trace() == pytest.approx(4, rel=1e-4)
    assert (weights - torch.eye(4)).abs().max() > 0.01, "every channel counts the same"
    wide = torch.tensor([1.0, 2, 3, 10])
    task.given.latents.mul_(wide.view(4, 1, 1, 1))
    for channel in range(4):
        task.root = torch.zeros(4, 4)
        task.root[channel, channel] = 2.0  # trace of the weights: 4
        missed = float(task(step=0, generator=step_generator(0, 0), progress=0.0)["flow"])
        assert missed == pytest.approx(float(wide[channel] ** 2 + 1), rel=0.1)
    task.root = None
    missed = float(task(step=0, generator=step_generator(0, 0), progress=0.0)["flow"])
    assert missed == pytest.approx(float((wide**2 + 1).mean()), rel=0.1)


def test_clips_to_look_at_are_of_all_kinds() -> None:
    """Of blocks of 64 that begin with procedural clips."""
    chosen = _some(torch.arange(24_576), 24)
    assert torch.equal(chosen, _some(torch.arange(24_576), 24))
    assert len(set(chosen.tolist())) == 24
    assert len(set((chosen % 64).tolist())) > 8
    assert sorted(_some(torch.arange(3), 24).tolist()) == [0, 1, 2]


def test_some_codes_of_every_second_clip_are_its_neighbour_s() -> None:
    task = tokenizer_task(freeze_encoder=True)
    ids = torch.arange(400)[:, None, None].expand(400, 5, 16)
    swapped = task._swapped(ids, torch.Generator().manual_seed(0))
    foreign = swapped != ids
    assert torch.equal(swapped[foreign], ids.roll(1, 0)[foreign])
    share = foreign.float().mean((1, 2))
    assert 0.4 < (share == 0).float().mean() < 0.6
    assert 0.25 < share.max() < 0.5


def test_registers_share_the_position_vectors_of_their_places() -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer(TINY)
    encoder, decoder = tokenizer.encoder, tokenizer.decoder
    with torch.no_grad():
        for table in (encoder.patch_posemb.table, decoder.patch_posemb.table):
            table.normal_()
        encoder.registers.normal_()
    before, kept = encoder.registers.clone(), decoder.register_posemb.table.clone()
    start_registers_at_places(encoder, decoder)
    added = (encoder.registers - 0.5 * before)[0]  # (K, d)
    rows, columns = (encoder.patch_posemb.table[axis, 0].T for axis in (1, 2))
    assert torch.allclose(added[0], rows[2] + columns[2], atol=1e-5), "the middle of 4 x 4"
    quarters = {(y, x) for y in (1, 3) for x in (1, 3)}
    found = {
        place for place in quarters for vector in added[1:5]
        if torch.allclose(vector, rows[place[0]] + columns[place[1]], atol=1e-5)
    }  # fmt: skip
    assert found == quarters
    moved = decoder.register_posemb.table
    assert torch.equal(moved[0], kept[0]), "time is left as it was"
    assert not torch.equal(moved[1], kept[1])


def test_registers_begin_at_places_coarse_to_fine() -> None:
    found = places(21)
    assert found[0] == (0.5, 0.5)
    assert len(set(found[1:5])) == 4
    assert {y for y, _ in found[1:5]} == {0.25, 0.75}
    assert len(set(found[5:21])) == 16
    assert {(int(2 * y), int(2 * x)) for y, x in found[5:9]} == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize("frozen", [False, True])
def test_another_autoencoder_is_refused_where_ids_stay(frozen: bool, tmp_path: Path) -> None:
    """A tokenizer goes on with an autoencoder that has been trained further; ids do not."""
    task, trained = tokenizer_task(freeze_encoder=frozen), Tokenizer(TINY)
    if frozen:
        with pytest.raises(VftError, match="another autoencoder"):
            task.start_from(trained, tmp_path / "ids.safetensors")
        return
    task.start_from(trained, tmp_path / "ids.safetensors")
    for k, v in trained.decoder.state_dict().items():
        assert torch.equal(task.decoder.state_dict()[k], v), k
    assert task.ids is None
