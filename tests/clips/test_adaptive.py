"""Budgets that follow the clip: exactly what may be spent, most where most happens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_tiny
from prior.test_prior import OURS, made
from tokenizer.test_tokenizer import clips

from vft_lib.checkpoints.checkpoint import save_prior
from vft_lib.clips.adaptive import rows_for, truncate_adaptive
from vft_lib.errors import VftError
from vft_lib.models.loading import load_tokenizer
from vft_lib.prior.order import time_first, to_grid
from vft_lib.prior.prior import Prior
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.tokens import Tokens


@pytest.fixture(scope="module")
def prior(tiny_tokenizer: Tokenizer) -> Prior:
    return made(OURS).bind(tiny_tokenizer)


@pytest.fixture(scope="module")
def tokens(tiny_tokenizer: Tokenizer) -> Tokens:
    """A picture held for 33 frames, then 32 that move: 17 latent frames of 8 ids."""
    still, busy = clips(1, 1), clips(1, 32, seed=3)
    return tiny_tokenizer.encode(torch.cat([still.expand(-1, -1, 33, -1, -1), busy], 2))


def test_the_count_asked_for_is_met(prior: Prior, tokens: Tokens) -> None:
    rows = len(tokens.rows)
    for count in range(rows, tokens.count + 1, 7):
        kept = truncate_adaptive(prior, tokens, count=count)
        assert kept.count == count
        assert torch.equal(kept.ids, tokens.truncate(kept.rows).ids), "the first ids of each"
    for size in (2 * rows, 101, 150, 151, 10**6):
        kept = truncate_adaptive(prior, tokens, id_bytes=size)
        assert kept.id_bytes == min(size - size % 2, tokens.id_bytes)
    assert truncate_adaptive(prior, tokens, count=10**6).budgets is None
    with pytest.raises(VftError, match="17 latent frames is 17 tokens, 34 bytes"):
        truncate_adaptive(prior, tokens, id_bytes=33)


def test_it_tells_how_far_it_is_and_can_be_cancelled(prior: Prior, tokens: Tokens) -> None:
    seen: list[tuple[int, int]] = []
    truncate_adaptive(prior, tokens, count=40, progress=lambda *at: seen.append(at))
    assert seen == [(i, 4) for i in range(1, 5)]  # 4 chunks

    def stop(done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        truncate_adaptive(prior, tokens, count=40, progress=stop)


def test_the_share_of_bits_is_kept_by_as_few_as_can_be(prior: Prior, tokens: Tokens) -> None:
    bits = prior.surprise(tokens).sum(0)
    before = 0
    for share in (0.2, 0.5, 0.9, 1.0):
        kept = truncate_adaptive(prior, tokens, keep_bits=share)
        held = torch.arange(8) < torch.tensor(kept.rows)[:, None]
        assert float(bits[held].sum() / bits.sum()) >= share - 1e-5
        assert kept.count > before
        before = kept.count
        fewer = torch.arange(8) < torch.tensor(rows_for(bits, kept.count - 1))[:, None]
        assert kept.count == 17 or float(bits[fewer].sum() / bits.sum()) < share
    assert before == tokens.count


def test_most_goes_where_the_prior_is_surprised_most(prior: Prior, tokens: Tokens) -> None:
    worth = prior.surprise(tokens).sum((0, 2))
    rows = torch.tensor(truncate_adaptive(prior, tokens, count=60).rows)
    assert rows.min() < rows.max()
    for i, held in enumerate(rows):
        assert (worth[rows < held] <= worth[i] + 1e-3).all()


def test_budgets_make_the_sum_of_worth_over_budget_least() -> None:
    worth = torch.tensor([900.0, 100.0, 100.0, 4.0])
    bits = worth[:, None].expand(-1, 6) / 6

    def cost(rows: list[int]) -> float:
        return sum(float(w) / k for w, k in zip(worth, rows))

    for count in range(4, 25):
        rows = rows_for(bits, count)
        assert sum(rows) == count and 1 <= min(rows) <= max(rows) <= 6
        for i in range(4):
            for j in range(4):
                other = [k + (n == i) - (n == j) for n, k in enumerate(rows)]
                if min(other) >= 1 and max(other) <= 6:
                    assert cost(other) >= cost(rows) - 1e-9
    assert rows_for(bits, 12) == [6, 3, 2, 1], "equal ones: the earlier first"
    assert rows_for(torch.zeros(3, 4), 7) == [3, 2, 2], "nothing tells anything"


def test_clips_of_a_batch_share_their_budgets(prior: Prior, tiny_tokenizer: Tokenizer) -> None:
    both = tiny_tokenizer.encode(clips(2, 33))
    kept = truncate_adaptive(prior, both, count=30)
    assert (len(kept), kept.count) == (2, 30)
    assert tiny_tokenizer.decode(kept, steps=1).shape == (2, 3, 33, 32, 32)


def test_what_cannot_be_chosen(prior: Prior, tokens: Tokens) -> None:
    with pytest.raises(VftError, match="one of them"):
        truncate_adaptive(prior, tokens)
    with pytest.raises(VftError, match="one of them"):
        truncate_adaptive(prior, tokens, count=40, keep_bits=0.5)
    for share in (0.0, 1.5):
        with pytest.raises(VftError, match="share of bits"):
            truncate_adaptive(prior, tokens, keep_bits=share)
    kept = truncate_adaptive(prior, tokens, count=40)
    held = f"these tokens hold {min(kept.rows)} to {max(kept.rows)} per latent frame, so"
    with pytest.raises(VftError, match=held):
        truncate_adaptive(prior, kept, count=30)


def test_refining_uneven_tokens_keeps_what_is_there(
    prior: Prior, tokens: Tokens, tiny_tokenizer: Tokenizer
) -> None:
    kept = truncate_adaptive(prior, tokens, count=60)
    words: dict[str, Any] = {"caption": "a red ball", "seed": 3}
    steps: list[tuple[int, int]] = []
    fine = prior.refine(kept, 8, progress=lambda *x: steps.append(x), **words)
    assert fine.budgets is None and fine.ids.shape == (1, 17, 8)
    there = kept.ids >= 0
    assert torch.equal(fine.ids[..., : kept.budget][there], kept.ids[there])
    assert int(fine.ids.min()) >= 0 and int(fine.ids.max()) < 64_000
    assert steps == sorted(steps) and steps[-1][0] == steps[-1][1]
    assert torch.equal(prior.refine(kept, 8, **words).ids, fine.ids)
    assert not torch.equal(prior.refine(kept, 8, **words | {"seed": 4}).ids, fine.ids)
    assert tiny_tokenizer.decode(fine, steps=1).shape[2] == tokens.frames
    two = tokens.truncate([2] * 5 + [6] * 12)
    assert torch.equal(prior.refine(two, 6, **words).ids[:, 5:], tokens.ids[:, 5:, :6])
    with pytest.raises(VftError, match="2 to 6 per latent frame already"):
        prior.refine(two, 5)
    for use in (prior.surprise, lambda t: truncate_adaptive(prior, t, count=30)):
        with pytest.raises(VftError, match="what each tells is not known any more"):
            use(kept)


def test_what_is_written_between_uneven_tokens_knows_those_of_its_own_register(
    prior: Prior, tokens: Tokens
) -> None:
    """At temperature 0 each new id is the likeliest after all ids that come before it in the
    prior's order, those that were there among them; in later chunks too."""
    kept = tokens.truncate([3, 1, 4, 1, 5, 2, 2, 6, 1, 3, 3, 1, 2, 4, 1, 1, 2])
    before = kept.ids.clone()
    fine = prior.refine(kept, 6, temperature=0, guidance=1.0).ids
    assert torch.equal(kept.ids, before), "the tokens given stay as they are"
    for start in (0, 4, 8, 12):
        window = fine[:, start : start + 5]
        with torch.inference_mode():
            logits = prior.network(time_first(window), prior.network.condition(1))
        likeliest = to_grid(logits[:, :-1].argmax(-1), 5)
        new = ~kept.there[start : start + 5]
        new[0] &= start == 0  # it belongs to the chunk before
        assert new.sum() > 5
        assert torch.equal(likeliest[:, new], window[:, new]), start


TWO_MINUTES = """
import sys, torch
torch.set_num_threads(1)
from vft_lib.cli.vft import main
clip, prior, tokenizer = sys.argv[1:]
for line in (
    ["encode", clip, "-o", "a.vft", "--tokenizer", tokenizer],
    ["truncate", "a.vft", "--adaptive", "--bytes", "1601", "--prior", prior, "-o", "b.vft"],
    ["decode", "b.vft", "-o", "c.mp4", "--tokenizer", tokenizer, "--steps", "1"],
):
    code = main(line)
    if code:
        sys.exit(code)
with open("/proc/self/status") as f:  # ru_maxrss begins with what the parent held
    print(next(int(line.split()[1]) // 1024 for line in f if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_minutes_at_an_adaptive_budget_in_bounded_memory(tmp_path: Path) -> None:
    """As a creator does it, file by file: 960 frames and 9 s take about the same memory."""
    from conftest import moving_picture

    from vft_lib.video.video_in import probe
    from vft_lib.video.video_out import write_video

    checkpoint = save_tiny(tmp_path / "tiny.safetensors", seed=0)
    prior = made(OURS).bind(load_tokenizer(checkpoint, device="cpu"))
    judge = tmp_path / "prior.safetensors"
    save_prior(judge, prior.config, prior.state_dict(), torch.float32)
    peaks = []
    for frames in (72, 960):
        clip = tmp_path / f"{frames}.mp4"
        write_video(clip, moving_picture(frames, 40, 56), 8)
        run = subprocess.run(
            [sys.executable, "-c", TWO_MINUTES, str(clip), str(judge), str(checkpoint)],
            capture_output=True, text=True, cwd=tmp_path, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        peaks.append(int(run.stdout.splitlines()[-1]))
    kept = Tokens.load(tmp_path / "b.vft")
    assert (kept.seconds, len(kept.rows), kept.id_bytes) == (120, 241, 1600)
    assert len(set(kept.rows)) > 1
    assert probe(tmp_path / "c.mp4").frames == 960
    assert peaks[1] - peaks[0] < 30, peaks
