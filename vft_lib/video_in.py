"""Clips in, one frame at a time.

Videos go through PyAV; stills and animated GIF, WebP and PNG go through Pillow, which knows their
frame durations. Either way a source is a stream of `_Shot`s, which `read_frames` samples by time;
only a few frames are held at once. Transparency is composited over black; rotation, mirroring and
non-square pixels are undone. Not done: HDR tone mapping, deinterlacing, the alpha of VP8/VP9 WebM.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import Colorspace
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from .frames import PathLike, Report, VideoError, fit_frame, fit_size

Matrix = tuple[int, int, int, int]

_STILLS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow also claims raw MPEG
_ANIMATED = ("GIF", "WEBP", "PNG")
_TEXT_ART = ("tty", "bin", "xbin", "adf", "idf")  # FFmpeg renders any .txt as a "video"
_EARLY = 1.001e-3  # s; a frame counts as shown this much early: Matroska and FLV round to 1 ms
_IMAGE_ERRORS = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class VideoInfo:
    """What a clip holds, as displayed.

    `width`, `height` in pixels, upright and with square pixels. `fps` is the average (1.0 for a
    still). `frames` is the container's own count, None if it keeps none. `duration` in seconds,
    None for a still or where unknown. `rotation` is how far the stored picture is turned
    clockwise for display: 0, 90, 180 or 270.
    """

    width: int
    height: int
    fps: float
    frames: int | None
    duration: float | None
    rotation: int
    has_audio: bool
    has_alpha: bool


@dataclass(frozen=True)
class _Shot:
    """A picture on screen from `time` (seconds since the first frame) until the next shot."""

    time: float
    duration: float  # used for the last shot only
    picture: Callable[[], np.ndarray]  # -> upright uint8 [H, W, 3]


def probe(path: PathLike) -> VideoInfo:
    """Read a clip's facts (decodes one frame; all frames of an animated image).

    Raises `VideoError` as `read_frames` does.
    """
    file = check_source(path)
    image = _open_image(file)
    if image is not None:
        alpha = _has_alpha(image)  # of the first frame
        with closing(_image_shots(image, file)) as source:
            first = next(source)
            turn = {3: 180, 4: 180, 5: 90, 6: 90, 7: 270, 8: 270}.get(
                image.getexif().get(ExifTags.Base.Orientation, 1), 0
            )
            ends = [shot.time + shot.duration for shot in chain([first], source)]
        h, w = first.picture().shape[:2]
        fps = len(ends) / ends[-1] if ends[-1] else 1.0
        return VideoInfo(w, h, fps, len(ends), ends[-1] or None, turn, False, alpha)
    with open_av(file) as container:
        stream = _video_stream(container, file)
        frame = next(_av_frames(container, stream), None)
        if frame is None:
            raise _no_picture(file)
        duration = None
        if stream.duration and stream.time_base:
            duration = float(stream.duration * stream.time_base)
        elif container.duration:
            duration = container.duration / av.time_base
        a, b, _, _ = matrix = _display_matrix(frame)
        stored = np.empty((frame.height, _square_width(frame, stream), 0))
        h, w = _upright(stored, matrix).shape[:2]
        return VideoInfo(
            width=w,
            height=h,
            fps=_rate(stream),
            frames=stream.frames or None,
            duration=duration,
            rotation=round(math.degrees(math.atan2(b, a)) / 90) % 4 * 90,
            has_audio=bool(container.streams.audio),
            has_alpha=_has_alpha(frame),
        )


def read_frames(
    path: PathLike,
    *,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    fit: str = "crop",
    max_frames: int | None = None,
    start: float = 0.0,
    on_problem: Report | None = None,
) -> Generator[np.ndarray, None, None]:
    """Stream the frames of a video, an animated image or a still (a clip of one frame).

    `fps` None: every decoded frame from the one on screen at `start` (seconds after the first
    frame) on. `fps` F: a constant rate; frame i is what is on screen at `start + i / F`, and
    `max(1, round(duration * F))` frames come, whatever the source's timing. `size` (h, w) with
    `fit`, see `fit_frame`; without it every frame gets the first one's size. Damage that can be
    skipped is reported, each kind once, through `on_problem`.

    Yields uint8 `[H, W, 3]`, each array the caller's own.
    Raises `VideoError`: at the call for arguments and missing, empty or unreadable paths; at the
    first frame for a file without a decodable picture or a `start` past its end.
    """
    if fps is not None and not 0 < fps <= 480:
        raise VideoError(f"Got fps={fps}; give a rate above 0 and up to 480, or None for all.")
    if max_frames is not None and max_frames < 1:
        raise VideoError(f"Got max_frames={max_frames}; give 1 or more, or None for all.")
    if not 0 <= start < math.inf:
        raise VideoError(f"Got start={start}; give seconds from 0 up.")
    fit_size((1, 1), size or (1, 1), fit)
    file, told = check_source(path), set[str]()

    def report(message: str) -> None:
        if on_problem is not None and message not in told:
            told.add(message)
            on_problem(f"{file.name}: {message}")

    def frames() -> Generator[np.ndarray, None, None]:
        image = _open_image(file)
        source = _image_shots(image, file, report) if image else _av_shots(file, start, report)
        target, shown = size, None
        picture: np.ndarray = np.empty(0)
        with closing(source) as shots:
            for shot in islice(_sample(_spans(shots), fps, start), max_frames):
                if shot is not shown:
                    shown, picture = shot, shot.picture()
                    target = target or (picture.shape[0], picture.shape[1])
                    picture = fit_frame(picture, target, fit)
                yield picture.copy()  # the same picture may come again

    return frames()


def _spans(shots: Iterable[_Shot]) -> Iterator[tuple[_Shot, float, bool]]:
    """(shot, the time it leaves the screen, whether it is the last)."""
    previous = None
    for shot in shots:
        if previous is not None:
            yield previous, shot.time, False
        previous = shot
    if previous is not None:
        yield previous, previous.time + previous.duration, True


def _sample(
    spans: Iterable[tuple[_Shot, float, bool]], fps: float | None, start: float
) -> Iterator[_Shot]:
    count = 0  # outputs decided; the newest waits until it is sure to lie within the rounded length
    waiting: _Shot | None = None
    for shot, end, last in spans:
        if last and end <= start and start > 0:
            raise VideoError(f"start={start:g} s is past the clip's end at {end:.2f} s; lower it.")
        if fps is None:
            if end > start + _EARLY or last or start == 0:
                yield shot
            continue
        while start + count / fps < end - _EARLY or (last and count == 0):
            if waiting is not None:
                yield waiting
            waiting, count = shot, count + 1
        if last and waiting is not None:
            total = max(1, math.floor((end - start) * fps + 0.5))
            yield from [waiting] * (total - (count - 1))


def check_source(path: PathLike) -> Path:
    file = Path(path)
    if file.is_dir():
        raise VideoError(f"{file} is a folder; give one video or image file.")
    if not file.is_file():
        raise VideoError(f"There is no file {file}; check the path.")
    if not os.access(file, os.R_OK):
        raise VideoError(f"{file} may not be read; check its permissions.")
    if not file.stat().st_size:
        raise VideoError(f"{file} is empty (0 bytes); copy or download it again.")
    return file


def _no_picture(file: Path) -> VideoError:
    return VideoError(f"No frame of {file} can be decoded; copy it again or convert it to mp4.")


def _rate(stream: Any) -> float:
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and 0.01 < rate <= 1000:
            return float(rate)
    return 25.0  # no container says otherwise; FFmpeg's own default


# PyAV


def open_av(file: Path) -> av.container.InputContainer:
    # A playlist may name other files and addresses; only local ones are opened. "replace": tags
    # in a legacy encoding must not make a clip unreadable.
    options = {"protocol_whitelist": "file"}
    try:
        container = av.open(str(file.resolve()), "r", options=options, metadata_errors="replace")
    except (FFmpegError, ValueError) as error:
        raise VideoError(
            f"{file} cannot be read as video or image ({getattr(error, 'strerror', error)}); "
            "check that it is complete, or convert it to mp4."
        ) from error
    if container.format.name in _TEXT_ART:
        container.close()
        raise VideoError(f"{file} is not a video; give a video or image file.")
    return container


def _video_stream(container: av.container.InputContainer, file: Path) -> Any:
    for stream in container.streams.video:
        disposition = getattr(stream, "disposition", None)
        if getattr(disposition, "value", 0) & 0x400:  # attached picture: an album cover
            continue
        context = stream.codec_context
        if context is None:
            raise VideoError(f"{file} uses a codec without a decoder here; convert it to mp4.")
        # Frame threads each hold pictures: a few are fast enough and stay small at 1080p.
        context.thread_type, context.thread_count = "AUTO", min(4, os.cpu_count() or 1)
        return stream
    what = "only sound" if container.streams.audio else "no video"
    raise VideoError(f"{file} holds {what}; give a file with a picture.")


def _av_frames(
    container: av.container.InputContainer, stream: Any, report: Report = lambda message: None
) -> Iterator[av.VideoFrame]:
    failures = 0
    while failures < 8:  # demuxing goes on behind a damaged stretch, but not forever
        try:
            for packet in container.demux(stream):
                try:
                    yield from packet.decode()
                    failures = 0
                except FFmpegError:
                    report("damaged video data was skipped.")
            return
        except FFmpegError as error:
            failures += 1
            report(f"the file is damaged or cut off ({error.strerror}).")


def _seconds(frame: av.VideoFrame) -> float | None:
    if frame.pts is None or frame.time_base is None:
        return None
    return float(frame.pts * frame.time_base)


def _av_shots(
    file: Path, start: float, report: Report, seek: bool = True
) -> Generator[_Shot, None, None]:
    with open_av(file) as container:
        stream = _video_stream(container, file)
        period = 1 / _rate(stream)
        frames = _av_frames(container, stream, report)
        frame = next(frames, None)
        if frame is None:
            raise _no_picture(file)
        zero = _seconds(frame) or 0.0
        # Once for the stream: PyAV ties a frame whose side data was read into a reference cycle,
        # and at 1080p hundreds of megabytes pile up before the collector comes by.
        matrix = _display_matrix(frame)
        if seek and start > 1.0:  # nearer ones are decoded through
            try:
                container.seek(int((zero + start) / stream.time_base), stream=stream)
                frames = _av_frames(container, stream, report)
                frame = next(frames, None)
            except FFmpegError:
                frame = None
            landed = None if frame is None else _seconds(frame)
            if landed is None or landed > zero + start:
                yield from _av_shots(file, start, report, seek=False)
                return
        time = -period
        while frame is not None:
            stamp, previous = _seconds(frame), time
            time = previous + period if stamp is None else stamp - zero
            if time < previous:  # the clock jumped back (joined recordings): go on from here
                zero -= previous + period - time
                time = previous + period
            length = getattr(frame, "duration", None)  # PyAV >= 15
            duration = float(length * frame.time_base) if length and frame.time_base else period
            if frame.is_corrupt and time >= start:
                report("damaged video data was concealed.")
            yield _Shot(
                time, duration, partial(_picture, frame, _square_width(frame, stream), matrix)
            )
            frame = next(frames, None)
        # A container's length may be that of somewhat longer sound.
        own, whole = stream.duration, (container.duration or 0) / av.time_base
        if time + duration + 0.5 < (own * stream.time_base if own else 0.9 * whole):
            report(f"the picture ends at {time + duration:.2f} s, earlier than the file says.")


def _display_matrix(frame: av.VideoFrame) -> Matrix:
    """(a, b, c, d): a stored pixel (x, y) is shown at (a x + c y, b x + d y), y downwards."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    return a, b, c, d


def _upright(pixels: np.ndarray, matrix: Matrix) -> np.ndarray:
    a, b, c, d = matrix
    if abs(b) > abs(a):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _square_width(frame: av.VideoFrame, stream: Any) -> int:
    aspect = stream.sample_aspect_ratio or 1
    return round(frame.width * aspect) if 0.1 < aspect < 10 else frame.width


def _has_alpha(picture: Any) -> bool:
    if isinstance(picture, Image.Image):
        return "A" in picture.getbands() or "transparency" in picture.info
    return picture.format.has_palette or any(c.is_alpha for c in picture.format.components)


def _picture(frame: av.VideoFrame, width: int, matrix: Matrix) -> np.ndarray:
    alpha, name = _has_alpha(frame), frame.format.name
    space = {1: "ITU709", 9: "BT2020", 10: "BT2020"}.get(frame.colorspace, "ITU601")
    if frame.colorspace == 2 and max(frame.width, frame.height) >= 1280:  # untagged HD
        space = "ITU709"
    full = frame.color_range == 2 or name.startswith(("yuvj", "pal8")) or frame.format.is_rgb
    full = full or (frame.color_range == 0 and name.startswith(("gray", "ya")))
    try:
        pixels = frame.reformat(
            format="rgba" if alpha else "rgb24",
            src_colorspace=space if hasattr(Colorspace, space) else "ITU709",
            dst_colorspace="FCC",  # unused for RGB; PyAV < 17 ignores the source's if they agree
            src_color_range=2 if full else 1,
            dst_color_range=2,
        ).to_ndarray()
    except (FFmpegError, ValueError) as error:
        raise VideoError(f"Pixel format {name} cannot be read; convert to yuv420p.") from error
    if alpha:
        pixels = ((pixels[..., :3].astype(np.uint16) * pixels[..., 3:] + 127) // 255).astype("u1")
    pixels = fit_frame(pixels, (frame.height, width), "stretch")
    return np.ascontiguousarray(_upright(pixels, matrix))


# Pillow


def _open_image(file: Path) -> Image.Image | None:
    try:
        return Image.open(file, formats=_STILLS)
    except UnidentifiedImageError:
        return None
    except _IMAGE_ERRORS as error:
        raise VideoError(f"{file} cannot be read ({error}); save the image again.") from error


def _image_shots(
    image: Image.Image, file: Path, report: Report = lambda message: None
) -> Generator[_Shot, None, None]:
    with image:
        try:
            count = getattr(image, "n_frames", 1) if image.format in _ANIMATED else 1
        except (EOFError, *_IMAGE_ERRORS):
            count = 1
        clock = 0  # ms
        for index in range(count):
            try:
                image.seek(index)
                pixels = _pixels(image)
            except (EOFError, *_IMAGE_ERRORS) as error:
                if index == 0:
                    raise VideoError(f"{file} is damaged ({error}); save it again.") from error
                report(f"the file is damaged or cut off ({error}).")
                return
            shown = round(image.info.get("duration") or 0)
            # Browsers take 10 ms or less, which older tools write for "no delay", as 100 ms.
            shown = 0 if count == 1 else shown if shown > 10 else 100
            yield _Shot(clock / 1000, shown / 1000, partial(np.array, pixels))
            clock += shown


def _pixels(image: Image.Image) -> np.ndarray:
    """The current frame, upright, over black: uint8 `[H, W, 3]`."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16-bit grey, which Pillow's conversion would clip
        grey = (np.asarray(upright).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if not _has_alpha(upright):
        return np.array(upright.convert("RGB"))
    black = Image.new("RGBA", upright.size, (0, 0, 0, 255))
    return np.array(Image.alpha_composite(black, upright.convert("RGBA")).convert("RGB"))


def read_image(
    path: PathLike, size: tuple[int, int] | None = None, fit: str = "crop"
) -> np.ndarray:
    """A still (or the first frame of a clip) as uint8 `[H, W, 3]`. Raises `VideoError`."""
    return next(read_frames(path, size=size, fit=fit, max_frames=1))
