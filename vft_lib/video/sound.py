"""The sound of a file for an mp4 beside its pictures: AAC as it is, all else encoded as AAC.

One zero for both: the time of the first picture that can be shown. Sound before it is cut; sound
that begins later, or pauses, is preceded by silence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .shots import HELD, JUMP, Problem, pyav

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
    from .av_in import open_av, picture_zeros

    with open_av(file) as source, closing(picture_zeros(file)) as zeros:
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
        clock = _Clock(zeros)
        if _as_it_is(track, clock.zero):
            yield from _copied(source, track, out, clock)
        else:
            yield from _encoded(source, track, out, clock, problem)


class _Clock:
    """A file's times -> seconds since the first picture. Where its clock runs back (joined
    recordings) or far ahead, sound goes on where the pictures do."""

    def __init__(self, zeros: Iterator[float]) -> None:
        self._zeros = zeros
        self.zero = next(zeros, None)  # None: no pictures; the sound's own beginning
        self._pictures = self.zero is not None
        self.end: float | None = None  # of what came last

    def __call__(self, time: float | None, length: float) -> float:
        """When something begins that begins at `time` in the file and lasts for `length`."""
        end = self.end or 0.0
        time = (self.zero or 0.0) + end if time is None else time
        if self.zero is None:
            self.zero = time
        if self.end is not None and time - self.zero < end - JUMP:
            self.zero = next(self._zeros, self.zero if self._pictures else time - end)
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
    if hasattr(out, "add_stream_from_template"):
        copy = out.add_stream_from_template(track)
    else:  # PyAV < 14
        copy = out.add_stream(template=track)
    latest = None
    for packet in source.demux(track):
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

    from .av_in import av_frames

    def tell(kind: str, where: str) -> None:
        if clock.end is not None and clock.end >= 0:  # recordings begin within a packet
            problem(kind, f"at {clock.end:.2f} s")

    frames = av_frames(source, track, tell)
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
