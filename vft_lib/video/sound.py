"""The sound of a file for an mp4 beside its pictures: AAC as it is, all else encoded as AAC.

One zero for both: the time of the first picture that can be shown. Sound before it is cut; sound
that begins later, or pauses, is preceded by silence.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .shots import HELD, JUMP, Line, Problem, move, pyav, seconds

if TYPE_CHECKING:
    import av

Packets = Generator[tuple[float, Any], None, None]
"""(seconds, packet of the mp4), in order, from zero on or a little earlier."""

# What browsers, QuickTime and Windows play.
_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_PROFILES = ("LC", "HE-AAC", "HE-AACv2")
_CHANNELS = 6
_SLACK = 0.03  # s; containers round times: sound that goes on is not moved by less
_STEADY = 8  # frames; sound is cut short only when so many in a row come too early


def sound_packets(file: Path, out: av.container.OutputContainer, problem: Problem) -> Packets:
    """Add the first sound track of `file` that can be decoded to `out`, an mp4 that has no packet
    yet, then yield its packets; neither where `file` has no sound. Damage that is skipped is told
    to `problem`. Raises ValueError or FFmpeg's error where no more sound can be had."""
    pyav(file)
    from .av_in import open_av, picture_moves, picture_zero

    with open_av(file) as source, closing(picture_moves(file)) as moves:
        if not source.streams.audio:
            return
        tracks: list[Any] = [
            track
            for track in source.streams.audio
            if track.codec_context is not None and track.codec_context.sample_rate
        ]
        if not tracks:
            raise ValueError("there is no decoder for it here, or too little of it")
        track = tracks[0]  # phones put sound that few can decode beside ordinary AAC
        zero = picture_zero(file)
        clock = _Clock(zero, None if zero is None else moves)
        if _as_it_is(track, clock.zero):
            yield from _copied(source, track, out, clock)
        else:
            yield from _encoded(source, track, out, clock, problem)


class _Clock:
    """A file's times -> seconds since the first picture. Where its clock runs back (joined
    recordings) or far ahead, sound is moved as the pictures are."""

    def __init__(self, zero: float | None, moves: Iterator[tuple[int, float]] | None) -> None:
        """`zero`: when the first picture is shown. `moves`: see `picture_moves`. None each for a
        file without pictures."""
        self.zero, self.end = zero, None  # type: float | None, float | None  # of what came last
        self._moves, self._own = moves, Line()
        self._here, self._ahead = 0.0, (-1, 0.0)  # of the pictures before a packet and behind it
        self._next: float | None = None  # when the next packet is due

    def move(self, packet: av.Packet) -> None:
        """Bring a packet's times to the line of time that the pictures are on."""
        if self._moves is None:
            self._own(packet)
            return
        if packet.pos is not None:
            while self._ahead[0] <= packet.pos:
                self._here = self._ahead[1]
                self._ahead = next(self._moves, (sys.maxsize, self._here))
        # Between the last picture of one recording and the first of the next: to which of the two
        # it belongs shows in what it follows.
        time, moved = seconds(packet, packet.dts), self._here
        if time is not None:
            due = time - moved if self._next is None else self._next
            moved = min((moved, self._ahead[1]), key=lambda m: abs(time - m - due))
            self._next = time - moved + (seconds(packet, packet.duration) or 0.0)
        move(packet, moved)

    def __call__(self, time: float | None, length: float) -> float:
        """When something begins that begins at `time` on that line and lasts for `length`."""
        end = self.end or 0.0
        time = (self.zero or 0.0) + end if time is None else time
        if self.zero is None:
            self.zero = time
        if self.end is not None and abs(time - self.zero - end) > HELD:
            self.zero = time - end
        self.end = time - self.zero + length
        return time - self.zero


def _as_it_is(track: Any, zero: float | None) -> bool:
    """Whether players take the track in an mp4 and it is there from zero on."""
    context = track.codec_context
    # AAC that brings no header (of a transport stream) is parsed as it is written, where what is
    # damaged would end the video.
    if context.name != "aac" or not context.extradata or context.profile not in _PROFILES:
        return False
    if context.sample_rate not in _RATES or not 0 < context.channels <= _CHANNELS:
        return False
    late = float((track.start_time or 0) * track.time_base) - (zero or 0.0)
    return zero is None or late < _SLACK


def _copied(source: Any, track: Any, out: Any, clock: _Clock) -> Packets:
    from .av_in import on_line

    if hasattr(out, "add_stream_from_template"):
        copy = out.add_stream_from_template(track)
    else:  # PyAV < 14
        copy = out.add_stream(template=track)
    latest = None
    for packet in on_line(source, track, clock.move):
        if packet.pts is None or packet.dts is None:
            continue
        if packet.is_discard and latest is not None:  # cut out by an edit list
            continue
        base = packet.time_base
        length = float((packet.duration or 0) * base)
        time = clock(float(packet.pts * base), length)
        if time + 2 * length < 0:  # decoders need one before zero
            continue
        shift = round((clock.zero or 0.0) / base)
        packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
        if latest is None or packet.dts > latest:  # the container refuses a clock that stands
            latest = packet.dts
            yield time, packet


def _encoded(source: Any, track: Any, out: Any, clock: _Clock, problem: Problem) -> Packets:
    import av

    from .av_in import av_frames, on_line

    def tell(kind: str, where: str) -> None:
        if clock.end is not None and clock.end >= 0:  # recordings begin within a packet
            problem(kind, f"at {clock.end:.2f} s")

    frames = av_frames(track, partial(on_line, source, track, clock.move), tell)
    first = next(frames, None)
    if first is None:
        raise ValueError("nothing of it can be decoded")
    rate = next((r for r in _RATES if r >= first.sample_rate), _RATES[-1])
    layout = "mono" if len(first.layout.channels) == 1 else "stereo"
    aac: Any = out.add_stream("aac", rate=rate, layout=layout)
    done = 0  # samples
    for samples in _joined(chain([first], frames), rate, layout, clock):
        piece = av.AudioFrame.from_ndarray(samples, "fltp", layout)
        piece.sample_rate, piece.pts, piece.time_base = rate, done, Fraction(1, rate)
        done += samples.shape[1]
        for packet in aac.encode(piece):
            yield float(packet.pts * packet.time_base), packet
    for packet in aac.encode(None):
        yield float(packet.pts * packet.time_base), packet


def _joined(frames: Any, rate: int, layout: str, clock: _Clock) -> Iterator[np.ndarray]:
    """The sound from zero on without gaps, in pieces of float32 `[channels, samples]`."""
    import av

    resampler: Any = None
    here = done = 0  # samples: where the source is, what came of it
    kind, off = None, deque[int](maxlen=_STEADY)
    for frame in frames:
        if kind != (frame.format.name, frame.layout.name, frame.sample_rate):  # programmes change
            kind = frame.format.name, frame.layout.name, frame.sample_rate
            resampler = av.AudioResampler("fltp", layout, rate)
        at = round(clock(frame.time, frame.samples / frame.sample_rate) * rate)
        if not off and not done:
            here = at
        off.append(at - here)
        if max(off) > _SLACK * rate or (
            max(off) < -_SLACK * rate and (len(off) == _STEADY or max(off) < -JUMP * rate)
        ):
            here += max(off)
            off.clear()
        for piece in resampler.resample(frame):
            samples = piece.to_ndarray()
            for begin in range(done, here, rate):
                yield np.zeros((len(samples), min(rate, here - begin)), np.float32)
            done = max(done, here)
            fresh = samples[:, done - here :]
            if fresh.shape[1]:
                yield fresh
            here += samples.shape[1]
            done = max(done, here)
