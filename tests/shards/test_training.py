"""Priors and tokenizers trained on shards: every clip once an epoch, on at the very sample."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from train_tasks import CPU, SCHEDULE

from shards.conftest import tokenize, write_shards
from vft_lib.cli.vft import main
from vft_lib.errors import VftError
from vft_lib.models.loading import load_prior, load_tokenizer
from vft_lib.shards.batches import Batches, by_chunk, by_length, words_of
from vft_lib.shards.dataset import Index, Order
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.train.loop import train
from vft_lib.train.presets import PRESETS
from vft_lib.train.prior import ShardsPriorTask, recipe_for

PRIOR = PRESETS["tiny"].prior


def rows(clip: int) -> int:
    return (5, 9, 13, 6)[clip % 4]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, clips=100, rows=rows)
    return folder


def batches(folder: Path, rank: int = 0, world: int = 1) -> Batches:
    order = Order(Index.of(folder), 1, buffer=40, rank=rank, world=world, held_out=False)
    return by_length(order, (5, 9), 4)


def test_every_clip_is_read_once_an_epoch(shards: Path) -> None:
    """At the greatest length that it holds; longer ones in smaller batches."""
    source, seen, step = batches(shards), Counter[int](), 0
    while seen.total() < 97:
        kind, found = source.at(step)
        assert len(found) <= (4 if kind == 5 else 2)
        for record, _ in found:
            seen[record.clip] += 1
            assert kind == (5 if rows(record.clip) < 9 else 9)
        step += 1
    assert seen == Counter({clip: 1 for clip in range(100) if clip % 32 != 31})


def test_processes_share_the_clips(shards: Path) -> None:
    """In an epoch each clip comes to one of them."""
    seen = Counter[int]()
    for rank in range(3):
        order = Order(Index.of(shards), 1, buffer=40, rank=rank, world=3, held_out=False)
        own = by_length(order, (5, 9), 4)
        for block in order.blocks(0):
            for _, items in own._batches(block, np.random.default_rng(0)):
                seen.update(order.index.shards[s].clips[i] for s, i, _ in items.tolist())
    assert seen == Counter({clip: 1 for clip in range(100) if clip % 32 != 31})


def test_a_step_reads_the_same_after_a_restart(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    def keys(source: Batches, step: int) -> list[str]:
        return [record.key for record, _ in source.at(step)[1]]

    whole = batches(shards)
    expected = [keys(whole, step) for step in range(90)]
    assert keys(whole, 3) == expected[3], "back again"
    read: list[int] = []
    numbered = Index._numbered

    def counted(index: Index, shard: int, extras: object) -> object:
        read.append(shard)
        return numbered(index, shard, extras)  # type: ignore[arg-type]

    monkeypatch.setattr(Index, "_numbered", counted)
    for step in (0, 17, 44, 89):
        read.clear()
        assert keys(batches(shards), step) == expected[step]
        assert len(read) <= 6, "one block"


def test_captions_are_the_words_of_the_prior(shards: Path, tiny_tokenizer: Tokenizer) -> None:
    index = Index.of(shards)
    words = words_of(index)
    assert set(words) == {"clip", "is", "coloured", *map(str, range(100))}
    with pytest.raises(VftError, match=r"made-up at 8\.0 fps, this tokenizer is tiny"):
        recipe_for(PRIOR, tiny_tokenizer, index, None)


def task_on(folder: Path, tokenizer: Tokenizer) -> ShardsPriorTask:
    torch.manual_seed(0)
    order = Order(Index.of(folder), 1, held_out=False)
    recipe = recipe_for(PRIOR, tokenizer, order.index, None)
    recipe = dataclasses.replace(recipe, schedule=SCHEDULE)
    source = by_length(order, recipe.config.lengths, SCHEDULE.batch)
    return ShardsPriorTask(recipe, tokenizer, source)


def test_a_prior_takes_the_same_steps_after_a_kill(
    tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    write_shards(tmp_path / "tokens", 70, rows=rows, fingerprint=tiny_tokenizer.fingerprint)

    def run(out: str, stop: int | None = None) -> dict[str, torch.Tensor]:
        task = task_on(tmp_path / "tokens", tiny_tokenizer)
        return train(task, SCHEDULE, tmp_path / out, device=CPU, stop_after=stop)

    whole = run("whole")
    run("parts", 2)
    run("parts", 1)
    parts = run("parts")
    assert all(torch.equal(v, parts[k]) for k, v in whole.items())
    said = (tmp_path / "whole" / "validation.jsonl").read_text()
    assert '"caption_t5"' in said and '"null_t5"' in said
    assert list((tmp_path / "whole").glob("samples-*.png"))


def test_chunks_without_overlap_are_never_cut_in_two(
    tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    write_shards(tmp_path, 64, rows=lambda clip: 10, fingerprint=tiny_tokenizer.fingerprint)
    task, begins = task_on(tmp_path, tiny_tokenizer), set()
    c = task.recipe.config
    config = dataclasses.replace(c, chunk=0, latent_frames=5, seq_len=5 * c.registers)
    task.recipe = dataclasses.replace(task.recipe, config=config)
    for step in range(40):
        ids, _, _ = task.draw(step, np.random.default_rng(step))
        _, found = task.batches.at(step)
        for row, (record, _) in zip(ids, found):
            whole = torch.from_numpy(record.ids.astype(np.int64))[:, : c.registers]
            (begin,) = (b for b in range(6) if torch.equal(whole[b : b + 5], row[:5]))
            begins.add(begin)
    assert begins == {0, 5}


def test_what_a_step_reads_is_a_stretch_of_each_clip(
    tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    write_shards(tmp_path, 64, rows=lambda clip: 13, fingerprint=tiny_tokenizer.fingerprint)
    index = Index.of(tmp_path)
    known = {r.clip: r for r in index.read(index.records(range(len(index.shards))))}
    task, begins = task_on(tmp_path, tiny_tokenizer), Counter[tuple[int, int]]()
    assert task.recipe.config.lengths == (5, 9), "the preset's longest"
    texts_seen: list[str] = []
    for step in range(120):
        rng = np.random.default_rng(step)
        ids, texts, classes = task.draw(step, rng)
        assert classes == [0] * len(ids)
        texts_seen += texts
        _, found = task.batches.at(step)
        for row, (record, _) in zip(ids, found):
            assert record.clip % 32 != 31
            whole = torch.from_numpy(known[record.clip].ids.astype(np.int64))
            t = len(row)
            (begin,) = (b for b in range(13 - t + 1) if torch.equal(whole[b : b + t], row))
            begins[t, begin] += 1
    assert set(begins) == {(5, 0), (5, 4), (5, 8), (9, 0), (9, 4)}
    assert 0.02 < texts_seen.count("") / len(texts_seen) < 0.25


@pytest.mark.slow
def test_own_clips_become_a_prior_in_three_commands(
    clips: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    tokens, run = tmp_path / "tokens", tmp_path / "run"
    assert tokenize(clips, tokens, tiny_checkpoint) == 0
    train_it = ["--preset", "tiny", "--device", "cpu", "--shards", str(tokens), "--steps", "4"]
    model = ["--tokenizer", str(tiny_checkpoint)]
    assert main(["train", "prior", *train_it, *model, "--out", str(run)]) == 0
    prior = load_prior(run / "prior.safetensors", device="cpu")
    assert prior.config.text_encoder is not None
    assert {"picture", "moves"} < set(prior.config.text_encoder.words)
    clip = tmp_path / "new.mp4"
    generate = ["generate", "picture number 3 moves", "--prior", str(run / "prior.safetensors")]
    assert main([*generate, *model, "--steps", "1", "-o", str(clip)]) == 0
    assert clip.stat().st_size > 500
    # From a trained one, whose words stay what they are; others are added.
    more = tmp_path / "more"
    write_shards(more, 40, rows=rows, fingerprint=prior.config.tokenizer_fingerprint)
    train_it[train_it.index("--shards") + 1] = str(more)
    init = ["--init", str(run / "prior.safetensors"), "--out", str(tmp_path / "tuned")]
    assert main(["train", "prior", *train_it, *model, *init]) == 0
    tuned = load_prior(tmp_path / "tuned" / "prior.safetensors", device="cpu").config
    known = prior.config.text_encoder.words
    assert tuned.text_encoder is not None
    assert tuned.text_encoder.words[: len(known)] == known
    assert "coloured" in tuned.text_encoder.words


@pytest.mark.slow
def test_a_tokenizer_is_trained_on_latents_of_shards(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of its own autoencoder only; frozen, it keeps the ids."""
    first = ["--preset", "tiny", "--device", "cpu", "--no-real", "--out", str(tmp_path / "first")]
    assert main(["train", "vae", *first]) == 0
    assert main(["train", "tokenizer", *first]) == 0
    made = tmp_path / "first" / "tokenizer.safetensors"
    tokens = tmp_path / "tokens"
    assert tokenize(clips, tokens, made, "--with", "latents") == 0
    own = ["--preset", "tiny", "--device", "cpu", "--shards", str(tokens), "--steps", "4"]
    out = tmp_path / "second"
    assert main(["train", "tokenizer", *own, "--tokenizer", str(made), "--out", str(out)]) == 0
    second = load_tokenizer(out / "tokenizer.safetensors", device="cpu")
    frozen = ["--freeze-encoder", "--init", str(out / "tokenizer.safetensors")]
    out = tmp_path / "third"
    more = ["--tokenizer", str(made), "--out", str(out), *frozen]
    assert main(["train", "tokenizer", *own, *more]) == 0
    third = load_tokenizer(out / "tokenizer.safetensors", device="cpu")
    video = torch.rand(1, 3, 17, 32, 32) * 2 - 1
    assert torch.equal(second.encode(video).ids, third.encode(video).ids)
    capsys.readouterr()
    other = ["--preset", "tiny", "--device", "cpu", "--no-real", "--out", str(tmp_path / "other")]
    assert main(["train", "vae", *other, "--steps", "5"]) == 0
    assert main(["train", "tokenizer", *own, "--out", str(tmp_path / "other")]) == 2
    assert "of another autoencoder" in capsys.readouterr().err


def test_each_chunk_of_a_clip_is_trained_on(
    clips: Path, tiny_checkpoint: Path, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    assert tokenize(clips, tmp_path / "out", tiny_checkpoint, "--with", "latents") == 0
    source = by_chunk(Order(Index.of(tmp_path / "out"), 0), 5, 1, 4)
    chunks = sum(tiny_tokenizer.chunk_count(5 + 5 * i) for i in range(11))
    seen = Counter[tuple[int, int]]()
    for step in range(-(-chunks // 4)):
        for record, chunk in source.at(step)[1]:
            seen[record.clip, chunk] += 1
            assert chunk < len(record.extras["latents"])
    assert len(seen) == seen.total() == chunks
