"""A stretch made anew: what stays is the same to the bit, and nothing jumps where it joins."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from tokenizer.test_tokenizer import clips, with_overlap

from vft_lib.clips.redo import Redo, Stretch, fade, redo_file
from vft_lib.clips.seams import Jumps, borders
from vft_lib.clips.stream import decode_file, decode_frames
from vft_lib.errors import VftError
from vft_lib.models.loading import load_tokenizer
from vft_lib.tokenizer.sampling import Sampling
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.tokens import Tokens
from vft_lib.video.frames import to_tensor
from vft_lib.video.video_in import read_frames
from vft_lib.world.world import make_clip

SAMPLING = Sampling(steps=2, guidance=1.0)


def decoded(tok: Tokenizer, tokens: Tokens, seed: int = 0) -> np.ndarray:
    return np.stack(list(decode_frames(tok, tokens, Sampling(steps=2, guidance=1.0, seed=seed))))


@pytest.fixture(scope="module", params=[1, 0], ids=["overlap1", "overlap0"])
def tok(request: pytest.FixtureRequest, tiny_tokenizer: Tokenizer) -> Tokenizer:
    return with_overlap(tiny_tokenizer, request.param)


@pytest.mark.parametrize(
    ("start", "stop", "chunks"),
    [(0, 1, (0, 0)), (2.2, 2.3, (1, 1)), (2.2, 4.3, (1, 2)), (5, None, (2, 3)), (0, 99, (0, 3))],
)
def test_only_the_stretch_changes(
    tok: Tokenizer, start: float, stop: float | None, chunks: tuple[int, int]
) -> None:
    """63 frames of 8 a second: four chunks, the last one not full."""
    tokens = tok.encode(clips(1, 63))
    old = decoded(tok, tokens)
    at = Stretch.of(tok, tokens, start, stop)
    assert (at.first, at.last) == chunks
    done: list[tuple[int, int]] = []
    redo = Redo(tok, tokens, old, at)
    new = np.stack(
        list(redo.frames(Sampling(2, 1.0, seed=9), progress=lambda *now: done.append(now)))
    )
    assert new.shape == old.shape
    changed = [i for i, (a, b) in enumerate(zip(old, new)) if (a != b).any()]
    assert changed
    assert at.begin <= changed[0] <= changed[-1] < at.end
    assert changed == list(range(at.begin, at.end))
    count = chunks[1] - chunks[0] + 1
    assert done == [(i, 2 * count) for i in range(1, 2 * count + 1)]


def test_the_same_seed_and_budget_make_what_was_there(tok: Tokenizer) -> None:
    """But for the kept frame that it begins with, which has been rounded to 8 bits."""
    tokens = tok.encode(clips(1, 60))
    old = decoded(tok, tokens)
    for start in (0.0, 3.0):
        redo = Redo(tok, tokens, old, Stretch.of(tok, tokens, start, 5.0))
        new = np.stack(list(redo.frames(SAMPLING)))
        assert np.abs(new.astype(int) - old).max() <= 2


def test_other_tokens_and_another_first_frame(tiny_tokenizer: Tokenizer) -> None:
    tokens = tiny_tokenizer.encode(clips(1, 49))
    old = decoded(tiny_tokenizer, tokens)
    at = Stretch.of(tiny_tokenizer, tokens, 2.5, 4.0)
    coarse = np.stack(list(Redo(tiny_tokenizer, tokens.truncate(2), old, at).frames(SAMPLING)))
    assert (coarse[17:20] != old[17:20]).any()
    assert np.array_equal(coarse[32:], old[32:])
    red = np.zeros((50, 40, 3), np.uint8)
    red[..., 0] = 255
    for start, i in ((2.5, 17), (0.0, 0)):
        at = Stretch.of(tiny_tokenizer, tokens, start, start + 1)
        free = list(Redo(tiny_tokenizer, tokens, old, at).frames(SAMPLING))
        held = list(Redo(tiny_tokenizer, tokens, old, at).frames(SAMPLING, first_frame=red))
        assert (held[i] != free[i]).any()


@pytest.mark.parametrize(
    ("start", "stop"), [(-1, 2), (3, 3), (3, 2), (7.5, None), (7.5, 9), (0, float("nan"))]
)
def test_a_stretch_outside_of_the_clip_is_refused(
    tok: Tokenizer, start: float, stop: float | None
) -> None:
    tokens = tok.encode(clips(1, 60))
    with pytest.raises(VftError, match=r"of a clip of 7\.5 s"):
        Stretch.of(tok, tokens, start, stop)


def test_an_earlier_result_of_something_else_is_refused(tok: Tokenizer) -> None:
    tokens = tok.encode(clips(1, 40))
    old = decoded(tok, tokens)
    at = Stretch.of(tok, tokens, 2.5)
    wrong: list[tuple[Iterable[np.ndarray], str]] = [
        (old[:39], "has 39 frames, the tokens are of 40"),
        ([*old, old[0]], "has 41 frames"),
        (old[:, :30], "frames of 32x30 px, this decode makes 32x32"),
        (old[:0], "has 0 frames"),
    ]
    for frames, why in wrong:
        with pytest.raises(VftError, match=why):
            list(Redo(tok, tokens, frames, at).frames(SAMPLING))


def test_independent_chunks_take_no_first_frame(tiny_tokenizer: Tokenizer) -> None:
    tok = with_overlap(tiny_tokenizer, 0)
    tokens = tok.encode(clips(1, 40))
    redo = Redo(tok, tokens, decoded(tok, tokens), Stretch.of(tok, tokens, 3))
    with pytest.raises(VftError, match="share no frame"):
        redo.frames(SAMPLING, first_frame=np.zeros((32, 32, 3), np.uint8))


def test_bars_that_were_taken_off_are_put_on_again(tiny_tokenizer: Tokenizer) -> None:
    tokens = dataclasses.replace(
        tiny_tokenizer.encode(clips(1, 49)), source_size=(90, 160), fit="pad"
    )
    old = decoded(tiny_tokenizer, tokens)
    assert old.shape == (49, 18, 32, 3)
    at = Stretch.of(tiny_tokenizer, tokens, 2.5, 4.0)
    new = np.stack(list(Redo(tiny_tokenizer, tokens, old, at).frames(Sampling(2, 1.0, seed=5))))
    assert np.array_equal(new[:17], old[:17])
    assert np.array_equal(new[32:], old[32:])
    assert (new[17:32] != old[17:32]).any()


# ------------------------------------------------------------------ seams


@pytest.mark.slow
def test_no_join_stands_out() -> None:
    """The tokenizer of the package, another seed, then another budget. Borders of chunks in a
    decode of this clip jump by up to 1.7 mean steps, an end that is not faded by more than 4."""
    tok = load_tokenizer("default", device="cpu")
    video = to_tensor(make_clip(1, frames=65, size=tok.config.size).video)[None]
    tokens = tok.encode(video)
    old = list(decode_frames(tok, tokens.truncate(4)))
    at = Stretch.of(tok, tokens, 2.5, 6.0)
    assert at.joins == (17, 48)
    for k in (4, 16):
        redo = Redo(tok, tokens.truncate(k), old, at)
        new = list(redo.frames(Sampling(seed=7)))
        assert redo.seams.worst < 2
        assert redo.jumps.seams([48]).worst < 1.1
        assert max(redo.jumps.jumps[33:48]) < 2 * sum(redo.jumps.jumps) / 64
        cut = Jumps()
        unfaded = list(Redo(tok, tokens.truncate(k), old, Stretch.of(tok, tokens, 2.5)).frames(
            Sampling(seed=7)
        ))  # fmt: skip
        assert np.array_equal(unfaded[17:33], new[17:33])
        list(cut.watch([*unfaded[:48], *old[48:]]))
        assert cut.seams([48]).worst > 3


def shades(frames: list[np.ndarray]) -> list[int]:
    return [int(f[0, 0, 0]) for f in frames]


def test_a_cross_fade_is_as_short_as_it_may_be() -> None:
    ramp = [np.full((2, 2, 3), 10 * i, np.uint8) for i in range(10)]
    slightly = [f + np.uint8(10) for f in ramp]  # apart by one step: two frames
    far = [f + np.uint8(100) for f in ramp]  # not even all frames are enough
    for same in (fade(ramp, ramp, after=ramp[0], ends=True), fade(ramp, far)):
        assert all(np.array_equal(a, b) for a, b in zip(same, ramp))
    assert shades(fade(ramp, slightly, ends=True)) == [0, 10, 20, 30, 40, 50, 60, 70, 85, 100]
    assert shades(fade(ramp, far, ends=True)) == [10 * i + 10 * (i + 1) for i in range(10)]


def test_a_cross_fade_at_the_beginning_mirrors_that_at_the_end() -> None:
    """But for the old frame itself: before the beginning it is the kept one."""
    ramp = [np.full((2, 2, 3), 10 * i, np.uint8) for i in range(10)]
    higher, far = ([f + np.uint8(n) for f in ramp] for n in (20, 100))
    kept = np.full((2, 2, 3), 20, np.uint8)
    assert shades(fade(ramp, higher, after=kept)) == [15, 20, 25, 30, 40, 50, 60, 70, 80, 90]
    assert shades(fade(ramp, far, after=kept + np.uint8(80))) == [90] * 10
    both = shades(fade(ramp, far, after=kept + np.uint8(80), ends=True))
    assert both[-1] == 190, "the old ones weigh most where both would"
    assert all(a <= b <= a + 100 for a, b in zip(shades(ramp), both))


def test_nothing_is_faded_where_that_would_not_help() -> None:
    ramp = [np.full((2, 2, 3), 10 * i, np.uint8) for i in range(10)]
    higher = [f + np.uint8(60) for f in ramp]
    usual, cut = np.full((2, 2, 3), 12, np.uint8), np.full((2, 2, 3), 25, np.uint8)
    for after in (usual, cut):  # a step like any other; one that the old frames had too
        assert shades(fade(ramp, higher, after=after)) == shades(ramp)


@pytest.mark.parametrize("pinned", [False, True])
def test_a_frame_of_the_user_s_begins_at_once(tiny_tokenizer: Tokenizer, pinned: bool) -> None:
    """Else the kept frames would shine through it."""
    tokens = tiny_tokenizer.encode(clips(1, 49))
    grey = [np.full((32, 32, 3), 128, np.uint8)] * 49  # far from all that is decoded
    at = Stretch.of(tiny_tokenizer, tokens, 2.5)
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 255
    new = list(Redo(tiny_tokenizer, tokens, grey, at).frames(
        SAMPLING, first_frame=red if pinned else None
    ))  # fmt: skip
    first = new[at.begin].astype(int)
    step = np.abs(first - 128).mean()
    assert step > 20 if pinned else step < 10


def test_seams_count_jumps_in_mean_steps(tiny_tokenizer: Tokenizer) -> None:
    c = tiny_tokenizer.config
    assert list(borders(c, 40)) == [17, 33]
    assert list(borders(with_overlap(tiny_tokenizer, 0).config, 40)) == [17, 34]
    levels = [0, 2, 4, 6, 12, 14, 16, 24, 26]  # steps of 2, one of 6 and one of 8
    frames = [np.full((4, 4, 3), v, np.uint8) for v in levels]
    jumps = Jumps()
    assert [f[0, 0, 0] for f in jumps.watch(frames)] == levels
    seams = jumps.seams([4, 7])
    assert (seams.mean, seams.worst, seams.worst_at) == (3.5, 4.0, 7)
    assert np.isnan(jumps.seams([]).mean)
    still = Jumps()
    list(still.watch([frames[0]] * 5))
    assert still.seams([2]).worst == 1


# ------------------------------------------------------------------ files


def test_a_file_is_redone_in_place(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokens = tiny_tokenizer.encode(clips(1, 49))
    decode_file(tiny_tokenizer, tokens, tmp_path / "a.mp4", SAMPLING)
    old = np.stack(list(read_frames(tmp_path / "a.mp4")))
    at = Stretch.of(tiny_tokenizer, tokens, 2.5, 4.0)
    seams = redo_file(
        tiny_tokenizer, tokens, tmp_path / "a.mp4", tmp_path / "a.mp4", at,
        Sampling(2, 1.0, seed=4),
    )  # fmt: skip
    new = np.stack(list(read_frames(tmp_path / "a.mp4")))
    assert new.shape == old.shape
    apart = np.abs(new.astype(float) - old).mean((1, 2, 3))
    inside = apart[at.begin : at.end].mean()
    outside = np.concatenate([apart[: at.begin], apart[at.end :]]).mean()
    assert inside > 3 * outside  # H.264 twice, against another seed
    assert seams.worst_at in at.joins
    with pytest.raises(VftError, match="no file"):
        redo_file(tiny_tokenizer, tokens, tmp_path / "b.mp4", tmp_path / "c.mp4", at)
    assert [f.name for f in tmp_path.iterdir()] == ["a.mp4"]
