"""A stretch of a decoded clip made anew, while the frames around it stay as they are.

Chunks share a frame, so the first new chunk begins with the kept frame before it, as in any decode.
Where that is not enough (more tokens than before show more, and at once), the old frames are
cross-faded into it. At the end the frame that the next chunk began with is kept, and the last new
chunk has to arrive there: its last frames are cross-faded into the old ones. Both over as few
frames as leave no step that stands out (:func:`fade`). Why not in the sampler: EXPERIMENTS.md, "The
ends of a redone stretch".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import numpy as np

from ..errors import VftError
from ..tokenizer.parts import Estimate, Progress
from ..tokenizer.sampling import Sampling
from ..tokenizer.tokenizer import Tokenizer
from ..tokens import Tokens
from ..video.frames import PathLike, Report, fit_frame, to_frames, to_tensor
from ..video.video_in import probe, read_frames, read_image
from ..video.video_out import VideoWriter
from .seams import Jumps, Seams, difference
from .stream import unfit

if TYPE_CHECKING:
    from ..config.tokenizer import TokenizerConfig

OUTSTANDING = 0.5  # of the mean step: what a cross-fade may add to one


@dataclass(frozen=True)
class Stretch:
    """Chunks `first` to `last`, whose frames `begin` to `end` - 1 are made anew. `joins`: the
    frames that the steps from old to new and from new to old lead to."""

    first: int
    last: int
    begin: int
    end: int
    joins: tuple[int, ...]

    @staticmethod
    def of(
        tokenizer: Tokenizer, tokens: Tokens, start: float = 0.0, stop: float | None = None
    ) -> Stretch:
        """The chunks with a frame that is on screen between `start` and `stop` seconds (None: the
        end of the clip). VftError for a stretch that is empty or not in the clip."""
        c, stop = tokenizer.config, tokens.seconds if stop is None else stop
        if not 0 <= start < min(stop, tokens.seconds):
            raise VftError(
                f"a stretch from {start:g} to {stop:g} s is asked for, of a clip of "
                f"{tokens.seconds:g} s; give from < to, within the clip"
            )
        last_frame = min(tokens.frames, math.ceil(stop * tokens.fps - 1e-6)) - 1
        first_frame = min(math.floor(start * tokens.fps + 1e-6), last_frame)
        first, last = (_chunk_of(c, frame) for frame in (first_frame, last_frame))
        to_the_end = last + 1 == tokenizer.chunk_count(tokens.frames)
        begin = first * c.stride + (c.overlap if first else 0)
        end = tokens.frames if to_the_end else (last + 1) * c.stride
        joins = [begin] * (first > 0) + [end] * (not to_the_end)
        return Stretch(first, last, begin, end, tuple(joins))

    def __str__(self) -> str:
        return f"frames {self.begin} to {self.end - 1}"


@dataclass
class Redo:
    """A clip of tokens with one stretch made anew: iterate over :meth:`frames` once.

    `earlier`: all frames of an earlier decode, uint8 `[H,W,3]`, as `clips.stream.decode_frames`
    gives them. Those outside of `stretch` come back as they are.
    """

    tokenizer: Tokenizer
    tokens: Tokens
    earlier: Iterable[np.ndarray]
    stretch: Stretch

    def __post_init__(self) -> None:
        self.jumps = Jumps()

    @property
    def seams(self) -> Seams:
        """Of the joins, once all frames have come."""
        return self.jumps.seams(self.stretch.joins)

    def frames(
        self, sampling: Sampling | None = None, *, first_frame: np.ndarray | None = None,
        keep_bars: bool = False, low_memory: bool = False, progress: Progress | None = None,
        estimate: Estimate | None = None,
    ) -> Iterator[np.ndarray]:  # fmt: skip
        """All frames of the clip, uint8 `[H,W,3]`, one chunk in memory. `first_frame`, uint8 of any
        size, pins the stretch in place of the kept frame before it; the rest as in
        `clips.stream.decode_frames`. Noise is drawn as for the whole clip: the seed, budget and
        steps of the earlier decode make what was there. Raises VftError for an earlier result that
        is not of these tokens."""
        at, tok, tokens = self.stretch, self.tokenizer, self.tokens
        if first_frame is not None and at.first and not tok.config.overlap:
            raise VftError(
                f"chunks of tokenizer {tok.config.name!r} share no frame: a first frame pins the "
                "beginning of the clip only; leave it out"
            )
        show = unfit(tokens, keep_bars)
        old = self._checked(show(np.zeros((*tokens.size, 3), np.uint8)).shape)
        pin = first_frame

        def made() -> Iterator[np.ndarray]:
            nonlocal pin
            for frame in islice(old, at.begin):
                yield frame
                pin = frame if first_frame is None else first_frame
            given = None
            if pin is not None:
                given = to_tensor([fit_frame(pin, tokens.size, tokens.fit)]).transpose(0, 1)
            chunks = tok.decode_chunks(
                tokens, sampling, first_frame=None if at.first else given, low_memory=low_memory,
                progress=_shifted(progress, at, tok.chunk_count(tokens.frames)), estimate=estimate,
                resume=None if given is None or not at.first else (at.first, given),
            )  # fmt: skip
            try:
                for i, chunk in enumerate(islice(chunks, at.last - at.first + 1), at.first):
                    frames = [show(f) for f in to_frames(chunk[0])]
                    yield from self._joined(i, frames, old, pin if first_frame is None else None)
            finally:
                chunks.close()  # type: ignore[attr-defined]
                tok.graphs.clear()  # it does so itself at the end of a clip only
            yield from old

        return self.jumps.watch(made())

    def _joined(
        self, chunk: int, new: list[np.ndarray], old: Iterator[np.ndarray],
        kept: np.ndarray | None,
    ) -> list[np.ndarray]:  # fmt: skip
        """The frames of one new chunk, in place of as many old ones. `kept`: the frame before the
        stretch (None: it begins with a frame of the user's, which nothing shines through)."""
        replaced, at = list(islice(old, len(new))), self.stretch
        if not self.tokenizer.config.overlap:
            return new
        return fade(
            new, replaced, after=kept if chunk == at.first else None,
            ends=chunk == at.last and at.end < self.tokens.frames,
        )  # fmt: skip

    def _checked(self, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        """`earlier`, as many frames as the tokens are of, and of that shape."""
        count, total = 0, self.tokens.frames
        for count, frame in enumerate(self.earlier, 1):
            if frame.shape != shape:
                raise VftError(
                    f"the earlier result has frames of {frame.shape[1]}x{frame.shape[0]} px, this "
                    f"decode makes {shape[1]}x{shape[0]}: give what the same tokens were decoded "
                    "to, with bars kept or not as then"
                )
            check_length(max(count, total), self.tokens)
            yield frame
        check_length(count, self.tokens)


def check_length(frames: int, tokens: Tokens) -> None:
    """VftError unless an earlier result of this many frames can be of these tokens."""
    if frames != tokens.frames:
        raise VftError(
            f"the earlier result has {frames} frames, the tokens are of {tokens.frames}: "
            "give what the same tokens were decoded to"
        )


def redo_file(
    tokenizer: Tokenizer, tokens: Tokens, earlier: PathLike, out: PathLike, stretch: Stretch,
    sampling: Sampling | None = None, *, first_frame: PathLike | None = None,
    audio_from: PathLike | None = None, keep_bars: bool = False,
    progress: Progress | None = None, on_problem: Report | None = None,
) -> Seams:  # fmt: skip
    """The video file `earlier`, which these tokens were decoded to, with `stretch` made anew -> an
    mp4; `out` may be `earlier`. Returns the seams of the joins. What stays is written from its
    decoded pictures, so H.264 takes its share a second time; :class:`Redo` leaves frames as they
    are. The rest and the errors as in `clips.stream.decode_file`."""
    length = probe(earlier).frames
    if length is not None:  # else it shows at the end
        check_length(length, tokens)
    h, w, _ = unfit(tokens, keep_bars)(np.zeros((*tokens.size, 3), np.uint8)).shape
    even = (h + h % 2, w + w % 2, 3)  # as `VideoWriter` makes them
    old = (
        frame[:h, :w] if frame.shape == even else frame
        for frame in read_frames(earlier, on_problem=on_problem)
    )
    given = None if first_frame is None else read_image(first_frame, tokens.size, tokens.fit)
    redo = Redo(tokenizer, tokens, old, stretch)
    with VideoWriter(out, tokens.fps, audio_from=audio_from, on_problem=on_problem) as writer:
        for frame in redo.frames(
            sampling, first_frame=given, keep_bars=keep_bars, progress=progress
        ):
            writer.write(frame)
    return redo.seams


def fade(
    new: Sequence[np.ndarray], old: Sequence[np.ndarray], *, after: np.ndarray | None = None,
    ends: bool = False,
) -> list[np.ndarray]:  # fmt: skip
    """New frames, uint8 `[H,W,3]`, blended linearly with the old ones: from `after` on, the kept
    frame before them, if the step from it stands out and that to the old frame is smaller; and
    where they end, until the very last is the old one. Over as few frames as keep what the blending
    adds to a step below `OUTSTANDING` of the mean step between new frames; over all of them if none
    are enough."""
    steps = [difference(a, b) for a, b in pairwise(new)]
    usual = sum(steps) / max(1, len(steps))
    apart = [difference(a, b) for a, b in zip(new, old)]
    count, rising, falling = len(new), 1, 1
    if after is not None:
        step = difference(after, new[0])
        if step > (1 + OUTSTANDING) * usual and step > difference(after, old[0]):
            while rising < count and max(apart[:rising]) / rising > OUTSTANDING * usual:
                rising += 1
    if ends:
        while falling < count and max(apart[-falling - 1 :]) / falling > OUTSTANDING * usual:
            falling += 1
    frames = []
    for i, (a, b) in enumerate(zip(new, old)):
        share = min(1.0, (i + 1) / rising)  # of the new frame
        if ends:
            share = min(share, (count - 1 - i) / falling)
        if share < 1:
            a = np.rint(b + (a.astype(np.float32) - b) * share).astype(np.uint8)
        frames.append(a)
    return frames


def _chunk_of(c: TokenizerConfig, frame: int) -> int:
    return max(0, frame - c.overlap) // c.stride


def _shifted(progress: Progress | None, at: Stretch, chunks: int) -> Progress | None:
    """Progress of all `chunks` as that of the stretch alone."""
    if progress is None:
        return None

    def of(done: int, total: int) -> None:
        each = total // chunks
        progress(done - at.first * each, (at.last - at.first + 1) * each)

    return of
