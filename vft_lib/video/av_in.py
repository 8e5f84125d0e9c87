"""Videos through PyAV: their pictures, their clock, and what to do about damage."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.sidedata.sidedata import Type

from .frames import VideoError, fit_frame
from .pixels import Chain, Converter, deinterlaced
from .shots import (
    JUMP,
    MAX_PIXELS,
    Line,
    Matrix,
    Problem,
    Shot,
    Size,
    check_pixels,
    seconds,
    upright,
)

# Of FFmpeg's formats, those that hold pictures or sound themselves. Playlists, lists of files and
# patterns (hls, dash, concat, image2 ...) would read what a stranger's file names; and FFmpeg
# renders any .txt as a "video".
_FORMATS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h261,h263,h264,hevc,vvc,obu,ivf,av1,vc1,"
    "flv,live_flv,asf,ogg,mxf,mjpeg,nut,rm,dv,gxf,swf,wtv,amv,bink,smk,flic,roq,yuv4mpegpipe,dirac,"
    "gif,apng,jpegxl_anim,jpegxl_pipe,j2k_pipe,exr_pipe,dpx_pipe,qoi_pipe,hdr_pipe,psd_pipe,"
    "pam_pipe,pbm_pipe,pgm_pipe,ppm_pipe,sgi_pipe,sunrast_pipe,pcx_pipe,dds_pipe,"
    "mp3,aac,ac3,eac3,flac,wav,w64,aiff,au,caf,amr,ape,wv,tta,dts,truehd,opus"
)
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
# Recordings joined byte by byte are single files of these formats, whose clock runs back then: a
# time is found by reading up to it (hundreds of megabytes a second).
_JOINED = ("mpeg", "mpegts")
# The message alpha_channel_info (165) of ITU-T H.265, F.14, in a unit of type 39.
_ALPHA = re.compile(rb"\x4e[\x01\x09]\xa5")
_FAILURES = 8  # in a row: demuxing goes on behind a damaged stretch, but not forever


def open_av(file: Path) -> av.container.InputContainer:
    try:
        # "replace": tags in a legacy encoding must not make a clip unreadable.
        # Not `options`: PyAV < 17 hands those to the streams it knows at first and frees them for
        # all that it finds, which ends the process (MPEG program streams).
        name = str(file.resolve())
        return av.open(name, "r", container_options=_OPTIONS, metadata_errors="replace")
    except (FFmpegError, ValueError) as error:
        raise VideoError(
            f"{file} cannot be read as video or image ({getattr(error, 'strerror', error)}); "
            "check that it is complete, or convert it to mp4."
        ) from error


def no_picture(file: Path) -> VideoError:
    return VideoError(f"No frame of {file} can be decoded; copy it again or convert it to mp4.")


def frame_rate(stream: Any) -> float:
    """Frames per second, on average."""
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and 0.01 <= rate <= 1000:
            return float(rate)
    return 25.0  # no container says otherwise; FFmpeg's own default


def _marks(stream: Any) -> int:
    """Its disposition, in FFmpeg's bits."""
    return int(getattr(getattr(stream, "disposition", None), "value", 0))  # PyAV >= 13


def video_stream(container: av.container.InputContainer, file: Path) -> Any:
    """The stream of pictures that players show, ready to be decoded: the first that is not an album
    cover, is marked as default, and moves (an animated AVIF begins with a still)."""

    def rank(stream: Any) -> tuple[bool, bool, bool]:
        return stream.codec_context is None, not _marks(stream) & 1, stream.frames == 1

    streams = [s for s in container.streams.video if not _marks(s) & 0x400]  # attached pictures
    for stream in sorted(streams, key=rank)[:1]:
        context = stream.codec_context
        if context is None:
            raise VideoError(f"{file} uses a codec without a decoder here; convert it to mp4.")
        check_pixels(stream.height, stream.width, file)
        context.options = {"max_pixels": str(MAX_PIXELS)}  # the pictures may say otherwise
        # Frame threads each hold pictures: a few are fast enough and stay small at 1080p.
        context.thread_type, context.thread_count = "AUTO", min(4, os.cpu_count() or 1)
        return stream
    what = "only sound" if container.streams.audio else "no video"
    raise VideoError(f"{file} holds {what}; give a file with a picture.")


def av_frames(
    stream: Any,
    packets: Callable[[], Iterator[Any]],
    problem: Problem = lambda kind, where: None,
    where: Any = lambda: "",
) -> Iterator[Any]:
    """The frames of pictures or sound that can be decoded; damage is told to `problem`. `packets`
    gives the stream's packets, and after a failure those behind it."""
    failures, decode = 0, _decoder(stream, problem)
    while failures < _FAILURES:
        try:
            for packet in packets():
                try:
                    yield from decode(packet)
                    failures = 0
                except FFmpegError:
                    problem(f"damaged {stream.type} data was skipped", where())
            return
        except FFmpegError as error:
            failures += 1
            problem(f"the file is damaged or cut off ({error.strerror})", where())


def _decoder(stream: Any, problem: Problem) -> Callable[[Any], list[Any]]:
    """What makes frames of a packet. WebM holds transparency as a second picture beside the first,
    which only Google's own decoders of VP8 and VP9 read; HEVC as a second layer, which FFmpeg reads
    only for who asks in a way that PyAV does not have."""
    if stream.codec_context.name == "hevc" and _ALPHA.search(stream.codec_context.extradata or b""):
        problem("its transparency cannot be read", "in all frames")
    metadata = {key.lower(): value for key, value in stream.metadata.items()}
    names = {"vp8": "libvpx", "vp9": "libvpx-vp9", "av1": "none", "libdav1d": "none"}
    name = names.get(stream.codec_context.name)
    if metadata.get("alpha_mode") != "1" or name is None:
        return stream.decode
    if name not in av.codecs_available:
        problem("its transparency cannot be read", "in all frames")
        return stream.decode
    context: Any = av.CodecContext.create(name, "r")
    context.options, context.thread_count = {"max_pixels": str(MAX_PIXELS)}, 1
    return context.decode


def on_line(
    container: av.container.InputContainer, stream: Any, line: Callable[[av.Packet], None]
) -> Iterator[av.Packet]:
    """The stream's packets from where the container is, moved by `line`."""
    for packet in container.demux(stream):
        line(packet)
        yield packet


def _from_key(packets: Iterator[av.Packet], time: float) -> Iterator[av.Packet]:
    """Those from the last key frame at `time` or before it on."""
    held: list[av.Packet] = []
    for packet in packets:
        shown = seconds(packet, packet.pts)
        if packet.is_keyframe and shown is not None and shown <= time:
            held = []
        held.append(packet)
        if (seconds(packet, packet.dts) or -math.inf) > time:
            break
    yield from held
    yield from packets


class Clock:
    """The times of frames in seconds since the first one; they do not run back."""

    def __init__(self, zero: float, period: float) -> None:
        self.zero, self.period, self.time = zero, period, -period
        self._latest, self._faults = [-math.inf] * 2, [0, 0]  # of pts and dts

    def __call__(self, frame: av.VideoFrame) -> float:
        stamp = self._stamp(frame)
        # Decoders mix the frames on either side of a joint.
        self.time = max(self.time, self.time + self.period if stamp is None else stamp - self.zero)
        return self.time

    def _stamp(self, frame: av.VideoFrame) -> float | None:
        """In seconds. AVI keeps no times of reordered frames: those that FFmpeg guesses run back
        again and again. Then the packets' are taken, as its own programs do."""
        times = seconds(frame, frame.pts), seconds(frame, frame.dts)
        for i, time in enumerate(times):
            if time is not None:
                self._faults[i] += 0 <= self._latest[i] - time < JUMP
                self._latest[i] = time
        packets = self._faults[0] > self._faults[1] and self._latest[1] > -math.inf
        return times[packets]


def picture_zero(file: Path) -> float | None:
    """The time, in seconds on the file's clock, that is zero to :func:`av_shots`: of the first
    picture that can be shown. None for a file without pictures."""
    with open_av(file) as container:
        try:
            stream = video_stream(container, file)
        except VideoError:
            return None
        line = Line(period=1 / frame_rate(stream))
        first = next(av_frames(stream, partial(on_line, container, stream, line)), None)
        return None if first is None else _zero(first, stream)


def picture_moves(file: Path) -> Generator[tuple[int, float], None, None]:
    """(where a packet of the pictures begins in the file, by how many seconds :func:`av_shots`
    moves it back), in order."""
    with open_av(file) as container:
        if "mp4" in container.format.name:  # it has one clock, and pieces in any order
            return
        stream = video_stream(container, file)
        line = Line(period=1 / frame_rate(stream))
        with contextlib.suppress(FFmpegError):
            for packet in on_line(container, stream, line):
                if packet.pos is not None:
                    yield packet.pos, line.moved


def av_shots(
    file: Path, start: float, problem: Problem, size: Size | None = None, seek: bool = True
) -> Generator[Shot, None, None]:
    """The shots of a video from the one on screen at `start` on, or from somewhat before. Large
    pictures come smaller, yet larger than `size`."""
    with open_av(file) as container:
        stream = video_stream(container, file)
        clock = Clock(0.0, period := 1 / frame_rate(stream))
        packets = partial(on_line, container, stream, Line(problem, period))

        def near() -> str:
            """Where we are: decoders hold a few frames back."""
            time = max(0.0, clock.time)
            return f"near frame {round(time / period)} ({time:.2f} s)"

        # Fields of HEVC come one by one, as pictures of half the height.
        whole = iter if stream.codec_context.name == "hevc" else deinterlaced
        frames = whole(av_frames(stream, packets, problem, near))
        frame = next(frames, None)
        if frame is None:
            raise no_picture(file)
        clock.zero = zero = _zero(frame, stream)
        # Once for the stream: PyAV ties a frame whose side data was read into a reference cycle,
        # and at 1080p hundreds of megabytes pile up before the collector comes by.
        matrix, convert = display_matrix(frame), Converter(stream.codec_context, problem, size)
        if seek and start > 1.0:  # nearer ones are decoded through
            try:
                if container.format.name in _JOINED:
                    frames = av_frames(
                        stream, lambda: _from_key(packets(), zero + start), problem, near
                    )
                else:
                    container.seek(int((zero + start) / stream.time_base), stream=stream)
                    packets = partial(on_line, container, stream, Line(problem, period))
                    frames = av_frames(stream, packets, problem, near)
                frames = whole(frames)
                frame = next(frames, None)
            except FFmpegError:
                frame = None
            landed = None if frame is None else seconds(frame, frame.pts)
            if landed is None or landed > zero + start:
                yield from av_shots(file, start, problem, size, seek=False)
                return
        while frame is not None:
            time = clock(frame)
            length = getattr(frame, "duration", None)  # PyAV >= 15
            duration = float(length * frame.time_base) if length and frame.time_base else period
            if frame.is_corrupt and time >= start:
                problem("damaged video data was concealed", near())
            width = square_width(frame, stream)
            yield Shot(time, duration, partial(_picture, frame, convert, width, matrix))
            frame = next(frames, None)
        # Less what comes before the first key frame. A container's length may be that of somewhat
        # longer sound.
        hidden = max(0.0, zero - float((stream.start_time or 0) * stream.time_base))
        own, length = stream.duration, (container.duration or 0) / av.time_base
        if time + duration + hidden + 0.5 < (own * stream.time_base if own else 0.9 * length):
            problem("the picture ends earlier than the file says", f"at {time + duration:.2f} s")


def _zero(first: av.VideoFrame, stream: Any) -> float:
    stamp = seconds(first, first.pts)
    return float((stream.start_time or 0) * stream.time_base) if stamp is None else stamp


def frame_count(container: av.container.InputContainer, stream: Any) -> int | None:
    """How many frames are shown, None if the container keeps no count. Where an mp4's edit list
    hides some of those that are stored, this reads through the file."""
    stored = stream.frames if stream.frames > 0 else None
    if stored and stream.duration and stream.average_rate:
        shown = float(stream.duration * stream.time_base * stream.average_rate)
        if abs(stored - shown) > 0.5 and "mp4" in container.format.name:
            with contextlib.suppress(FFmpegError):  # a damaged file
                container.seek(0)
                return sum(1 for p in container.demux(stream) if p.size and not p.is_discard)
    return stored


def display_matrix(frame: av.VideoFrame) -> Matrix:
    try:
        data: Any = _side_data(frame).get("DISPLAYMATRIX")
        a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    except (FFmpegError, ValueError, TypeError):  # none, or too short
        return 1, 0, 0, 1
    return a, b, c, d


def _side_data(frame: av.VideoFrame) -> Any:
    try:
        return frame.side_data
    except ValueError:  # beside data of a kind without a name in PyAV, all of it is out of reach
        named = {int(kind.value) for kind in list[Any](Type)}
        strange = [("sidedata", f"delete:{n}") for n in range(max(named) + 8) if n not in named]
        return next(Chain(frame, *strange).push(frame)).side_data


def square_width(frame: av.VideoFrame, stream: Any) -> int:
    """The frame's width in square pixels."""
    aspect = stream.sample_aspect_ratio or 1
    if stream.codec_context.name == "hevc" and frame.interlaced_frame:  # a field
        aspect /= 2
    width = round(frame.width * aspect) if 0.1 < aspect < 10 else frame.width
    return width if width * frame.height <= MAX_PIXELS else frame.width


def _picture(frame: av.VideoFrame, convert: Converter, width: int, matrix: Matrix) -> np.ndarray:
    pixels = convert(frame)
    factor = max(1, frame.height // pixels.shape[0])
    pixels = fit_frame(pixels, (pixels.shape[0], max(1, width // factor)), "stretch")
    return np.ascontiguousarray(upright(pixels, matrix))
