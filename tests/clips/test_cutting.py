"""Tokens cut and joined in time, chosen budgets, and the sampler's looks ahead."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tokenizer.test_tokenizer import clips, with_overlap

from vft_lib.clips import stream
from vft_lib.clips.cutting import join_tokens, slice_tokens
from vft_lib.errors import VftError
from vft_lib.tokenizer.sampling import Sampling
from vft_lib.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module", params=[1, 0], ids=["overlap1", "overlap0"])
def tok(request: pytest.FixtureRequest, tiny_tokenizer: Tokenizer) -> Tokenizer:
    return with_overlap(tiny_tokenizer, request.param)


@pytest.mark.parametrize("frames", [17, 33, 40, 60])
def test_the_slices_of_a_clip_join_to_the_clip(tok: Tokenizer, frames: int) -> None:
    tokens = tok.encode(clips(1, frames))
    chunks = tok.chunk_count(frames)
    for cut in range(1, chunks):
        parts = [slice_tokens(tok, tokens, 0, cut), slice_tokens(tok, tokens, cut)]
        joined = join_tokens(tok, parts)
        assert torch.equal(joined.ids, tokens.ids)
        assert joined.frames == frames
        assert tok.decode(parts[1], steps=1).shape[2] == parts[1].frames


def test_a_slice_without_shared_frames_is_what_the_part_encodes_to(
    tiny_tokenizer: Tokenizer,
) -> None:
    tok = with_overlap(tiny_tokenizer, 0)
    video = clips(1, 51)
    part = slice_tokens(tok, tok.encode(video), 1, 2)
    assert torch.equal(part.ids, tok.encode(video[:, :, 17:51]).ids)
    assert part.frames == 34


def test_a_slice_begins_with_the_shared_frame(tiny_tokenizer: Tokenizer) -> None:
    tokens = tiny_tokenizer.encode(clips(1, 49))
    part = slice_tokens(tiny_tokenizer, tokens, 1)
    assert part.frames == 33  # frames 16 to 48: the shared one belongs to both chunks
    assert torch.equal(part.ids, tokens.ids[:, 4:])


@pytest.mark.parametrize(("first", "count"), [(3, None), (-1, 1), (0, 4), (1, 0), (2, 2)])
def test_chunks_that_are_not_there_are_named(
    tiny_tokenizer: Tokenizer, first: int, count: int | None
) -> None:
    tokens = tiny_tokenizer.encode(clips(1, 49))
    with pytest.raises(VftError, match="these tokens hold chunks 0 to 2"):
        slice_tokens(tiny_tokenizer, tokens, first, count)


def test_a_slice_from_later_on_has_no_sound_of_the_source(tok: Tokenizer) -> None:
    tokens = dataclasses.replace(tok.encode(clips(1, 50)), source="a.mp4")
    assert slice_tokens(tok, tokens, 0, 1).source == "a.mp4"
    later = slice_tokens(tok, tokens, np.int64(1), np.int64(1))
    assert later.source is None
    assert type(later.frames) is int


def test_clips_of_other_shapes_are_joined_whole(tok: Tokenizer) -> None:
    plain = tok.encode(clips(1, 17))
    wide, wider, square = (
        dataclasses.replace(plain, fit=fit, source_size=size)
        for fit, size in (("pad", (36, 64)), ("pad", (72, 128)), ("crop", (64, 64)))
    )
    joined = join_tokens(tok, [wide, wider])
    assert (joined.fit, joined.source_size) == ("pad", (36, 64)), "of one aspect"
    for pair in ([wide, square], [square, wide]):
        joined = join_tokens(tok, pair)
        assert (joined.fit, joined.source_size) == ("crop", None)
        frames = list(stream.decode_frames(tok, joined, Sampling(1)))
        assert {f.shape for f in frames} == {(32, 32, 3)}


def test_joined_clips_keep_their_budgets_and_hold_or_drop_what_is_not_full(tok: Tokenizer) -> None:
    a, b = tok.encode(clips(1, 40)), tok.encode(clips(1, 20, seed=1)).truncate(3)
    o = tok.config.overlap
    held, dropped = join_tokens(tok, [a, b]), join_tokens(tok, [a, b], drop_partial=True)
    rows = len(b.rows) - o
    assert held.rows == a.rows + b.rows[o:]
    assert dropped.rows == a.rows[: len(dropped.rows) - rows] + b.rows[o:]
    assert torch.equal(held.ids[:, -rows:, :3], b.ids[:, o:])
    assert held.frames == 51 - 2 * o + 20 - o  # three whole chunks, then b
    assert dropped.frames == 34 - o + 20 - o
    for joined in (held, dropped):
        assert tok.decode(joined, steps=1).shape[2] == joined.frames
    assert join_tokens(tok, [a.truncate(3), b]).budgets is None


def test_the_slices_of_an_uneven_clip_join_to_the_clip(tok: Tokenizer) -> None:
    whole = tok.encode(clips(2, 40))
    tokens = whole.truncate([1 + i % 7 for i in range(len(whole.rows))])
    parts = [slice_tokens(tok, tokens, 0, 1), slice_tokens(tok, tokens, 1)]
    assert max(parts[0].rows) == parts[0].budget < tokens.budget
    joined = join_tokens(tok, parts)
    assert torch.equal(joined.ids, tokens.ids)
    assert joined.budgets == tokens.budgets
    even = slice_tokens(tok, whole.truncate([4] * 5 + [2] * (len(whole.rows) - 5)), 0, 1)
    assert (even.budget, even.budgets) == (4, None)


def test_clips_that_do_not_fit_together_are_refused(tok: Tokenizer) -> None:
    a = tok.encode(clips(1, 17))
    with pytest.raises(VftError, match="8 and 12 fps"):
        join_tokens(tok, [a, tok.encode(clips(1, 17), fps=12.0)])
    with pytest.raises(VftError, match="not one whole chunk"):
        join_tokens(tok, [tok.encode(clips(1, 5)), a], drop_partial=True)
    with pytest.raises(VftError, match="no clips"):
        join_tokens(tok, [])


def test_the_budget_within_a_number_of_ids_or_bytes(tiny_tokenizer: Tokenizer) -> None:
    tokens = tiny_tokenizer.encode(clips(1, 17))  # 5 latent frames, up to 8 ids each
    assert [tokens.budget_within(count=n) for n in (5, 9, 10, 39, 40, 10**6)] == [1, 1, 2, 7, 8, 8]
    assert [tokens.budget_within(id_bytes=n) for n in (10, 19, 20, 80)] == [1, 1, 2, 8]
    with pytest.raises(VftError, match="5 latent frames is 5 tokens, 10 bytes"):
        tokens.budget_within(count=4)
    with pytest.raises(VftError, match="one of them"):
        tokens.budget_within()


def test_guided_passes_one_after_the_other_give_the_same_clip(tiny_tokenizer: Tokenizer) -> None:
    tokens = tiny_tokenizer.encode(clips(1, 33))
    frames = [
        np.stack(list(stream.decode_frames(
            tiny_tokenizer, tokens, Sampling(3, 2.0), low_memory=low
        ))).astype(int)
        for low in (False, True)
    ]  # fmt: skip
    assert np.abs(frames[0] - frames[1]).max() <= 1


def test_estimates_come_after_every_step_and_the_last_is_the_result(
    tiny_tokenizer: Tokenizer,
) -> None:
    tokens, seen = tiny_tokenizer.encode(clips(1, 17)), list[torch.Tensor]()
    video = torch.cat(
        list(
            tiny_tokenizer.decode_chunks(
                tokens, Sampling(steps=4), estimate=seen.append, clamp=False
            )
        ),
        2,
    )
    assert len(seen) == 4
    assert torch.allclose(tiny_tokenizer.vae.decode(seen[-1]), video, atol=1e-4)
    assert not torch.allclose(seen[0], seen[-1], atol=1e-2)


def test_frames_encode_to_the_ids_of_the_clip_they_make(tiny_tokenizer: Tokenizer) -> None:
    video = clips(1, 20)
    frames = [
        f.permute(1, 2, 0).add(1).mul(127.5).round().byte().numpy() for f in video[0].unbind(1)
    ]
    seen: list[tuple[int, int | None]] = []
    tokens = stream.encode_frames(
        tiny_tokenizer, frames, fps=12, total=20, progress=lambda *x: seen.append(x)
    )
    exact = torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2)[None] / 127.5 - 1
    assert torch.equal(tokens.ids, tiny_tokenizer.encode(exact).ids)
    assert (tokens.frames, tokens.fps, tokens.source_size) == (20, 12, (32, 32))
    assert seen == [(1, 2), (2, 2), (2, 2)]
