"""Training the prior: which registers a step reads, and what it makes of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from train_tasks import CPU, SCHEDULE, prior_task

from vft_lib.errors import CheckpointError
from vft_lib.train.loop import step_generator, train


def test_the_prior_reads_a_smaller_budget_as_it_reads_the_first_registers() -> None:
    task = prior_task().eval()
    index, classes = torch.arange(3), torch.tensor([0, 16, 3])
    texts = ["a red ball", "", "a green star moves up"]
    with torch.no_grad():
        ids = task.sequences.ids[index, :5]
        whole = task.bits(ids, texts, classes)
        short = task.bits(ids[:, :, :2], texts, classes)
    assert (whole.shape, short.shape) == ((3, 8, 5), (3, 2, 5))
    assert torch.allclose(whole[:, :2], short, atol=1e-4)


def test_half_of_the_prior_s_steps_read_the_first_registers_alone() -> None:
    task, read = prior_task(), []
    bits = task.bits

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        found = bits(*args, **kwargs)
        read.append(found.shape[1])
        return found

    task.bits = counted  # type: ignore[method-assign]
    for step in range(40):
        losses = task(step=step, generator=step_generator(0, step), progress=0.0)
        assert ("k8" in losses) == (read[-1] == 8)
    assert set(read) == {2, 4, 8}
    assert 12 <= read.count(8) <= 28


def test_a_step_reads_clips_of_one_length_whose_captions_are_true_of_it() -> None:
    numbered = torch.arange(64, dtype=torch.int32)[:, None, None].expand(64, 9, 8)
    task, seen = prior_task(numbered), []
    bits = task.bits

    def counted(ids: Tensor, texts: list[str], classes: Tensor, **more: Any) -> Any:
        seen.append((ids.shape[1], ids[:, 0, 0], texts, classes))
        return bits(ids, texts, classes, **more)

    task.bits = counted  # type: ignore[method-assign, assignment]
    scenes, rows = task.sequences.scenes, task.sequences.rows
    for step in range(60):
        task(step=step, generator=step_generator(0, step), progress=0.0)
    assert {t for t, *_ in seen} == {5, 9}
    assert 10 < sum(t == 9 for t, *_ in seen) < 40
    clips = {int(i): t for t, index, *_ in seen for i in index}
    assert 8 in {i for t, index, *_ in seen if t == 9 for i in index.tolist()}
    for t, index, texts, classes in seen:
        assert len(index) == (4 if t == 5 else 2)
        for i, text, number in zip(index.tolist(), texts, classes.tolist()):
            scene = scenes[i]
            assert rows[i] >= t
            assert (i + 1) % 32, "held out"
            if scene is None:
                assert (text, number) == ("", 16)
            elif scene.main.then:
                assert (t, number) == (9, 16), "cut off, its second act would not be seen"
    assert any(i % 8 == 4 and t == 5 for i, t in clips.items()), "one act may be cut off"


def test_a_run_goes_on_only_with_the_ids_that_it_was_begun_with(tmp_path: Path) -> None:
    """A tokenizer that was trained anew writes other ids; another flow decoder does not."""
    schedule = dataclasses.replace(SCHEDULE, steps=2)

    def run(ids: Tensor | None = None) -> dict[str, Tensor]:
        task = prior_task(ids)
        task.samples = lambda out, step: None  # type: ignore[method-assign]
        return train(task, schedule, tmp_path, device=CPU)

    first, again = run(), run()
    assert first.keys() == again.keys()
    assert all(torch.equal(v, again[k]) for k, v in first.items())
    ids = prior_task().sequences.ids.clone()
    ids[0, 0, 0] += 1
    with pytest.raises(CheckpointError, match="another recipe"):
        run(ids)
