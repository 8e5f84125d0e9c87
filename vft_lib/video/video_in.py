"""Clips in, one frame at a time: any video, animated image or still.

A source is a stream of shots (`av_in.py` for videos, `image_in.py` for images, `heif_in.py` for
HEIC and AVIF), which `read_frames` samples by time; only a few frames are held at once, and large
ones are made smaller as they are read. Transparency is composited over black; rotation,
mirroring and non-square pixels are undone; interlaced frames are made whole; high dynamic range is
mapped to the standard one.
"""

from __future__ import annotations

import logging
import math
import os
import stat
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from ..errors import one_line
from . import image_in
from .frames import PathLike, Report, VideoError, fit_frame, fit_size
from .shots import HELD, Problem, Shot, degrees, mirrored, pyav, upright_size

_EARLY = 1.001e-3  # s; a frame counts as shown this much early: Matroska and FLV round to 1 ms
_HOP = 1.0  # s; what it is held for then
_LATEST = 1e7  # s; a `start` that no clip reaches

log = logging.getLogger("videoflextok")


@dataclass(frozen=True)
class VideoInfo:
    """What a clip holds, as displayed.

    `width`, `height` in pixels, upright and with square pixels. `fps` is the average (1.0 for a
    still). `frames` is the container's own count, None if it keeps none. `duration` in seconds,
    None for a still or where unknown. For display the stored picture is mirrored, left to right,
    where `mirrored` says so, and then turned clockwise by `rotation`: 0, 90, 180 or 270.
    """

    width: int
    height: int
    fps: float
    frames: int | None
    duration: float | None
    rotation: int
    has_audio: bool
    has_alpha: bool
    mirrored: bool = False


def probe(path: PathLike) -> VideoInfo:
    """Read a clip's facts (decodes one frame; all frames of an animated image).

    Raises `VideoError` as `read_frames` does.
    """
    file = check_source(path)
    image = image_in.open_image(file)
    if image is not None:
        alpha, matrix = image_in.has_alpha(image), image_in.orientation(image)  # of the first frame
        h, w = upright_size((image.height, image.width), matrix)
        with closing(image_in.image_shots(image, file, _nothing, (1, 1))) as source:
            ends = [shot.time + shot.duration for shot in source]
        fps = len(ends) / ends[-1] if ends[-1] else 1.0
        return VideoInfo(
            w, h, fps, len(ends), ends[-1] or None, degrees(matrix), False, alpha, mirrored(matrix)
        )
    av = pyav(file)
    from . import av_in, heif_in
    from .pixels import has_alpha

    still = heif_in.read_still(file)
    if still is not None:
        with closing(heif_in.still_shots(still, file, _nothing)) as source:
            h, w = next(source).picture().shape[:2]
        turn, alpha = still.matrix, still.alpha is not None
        return VideoInfo(w, h, 1.0, 1, None, degrees(turn), False, alpha, mirrored(turn))
    with av_in.open_av(file) as container:
        stream = av_in.video_stream(container, file)
        frame = next(av_in.av_frames(stream, partial(container.demux, stream)), None)
        if frame is None:
            raise av_in.no_picture(file)
        duration = (container.duration or 0) / av.time_base
        if stream.duration and stream.time_base:
            duration = float(stream.duration * stream.time_base)
        matrix = av_in.display_matrix(frame)
        h, w = upright_size((frame.height, av_in.square_width(frame, stream)), matrix)
        return VideoInfo(
            width=w,
            height=h,
            fps=av_in.frame_rate(stream),
            frames=av_in.frame_count(container, stream),
            duration=duration if duration > 0 else None,
            rotation=degrees(matrix),
            has_audio=bool(container.streams.audio),
            has_alpha=has_alpha(frame),
            mirrored=mirrored(matrix),
        )


def shown_size(path: PathLike) -> tuple[int, int]:
    """(height, width) of a clip as :func:`probe` tells it, without decoding an animated image."""
    file = check_source(path)
    image = image_in.open_image(file)
    if image is None:
        info = probe(file)
        return info.height, info.width
    with closing(image):
        return upright_size((image.height, image.width), image_in.orientation(image))


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
    `max(1, round(duration * F))` frames come, whatever the source's timing; a picture stays for
    ten minutes at most. `size` (h, w) with `fit`, see `fit_frame`; without it every frame gets the
    first one's size.

    What can be decoded comes; damage is told to `on_problem`, by default as a logged warning: each
    kind once, with the frame and time where it was first met.

    Yields uint8 `[H, W, 3]`, each array the caller's own.
    Raises `VideoError`: at the call for arguments and missing, empty or unreadable paths; at the
    first frame for a file without a decodable picture or a `start` past its end.
    """
    if fps is not None and not 0 < fps <= 480:
        raise VideoError(f"Got fps={fps}; give a rate above 0 and up to 480, or None for all.")
    if max_frames is not None and max_frames < 1:
        raise VideoError(f"Got max_frames={max_frames}; give 1 or more, or None for all.")
    if not 0 <= start <= _LATEST:
        raise VideoError(f"Got start={start}; give seconds from 0 up.")
    fit_size((1, 1), size or (1, 1), fit)
    file, told = check_source(path), set[str]()

    def problem(kind: str, where: str) -> None:
        if kind not in told:
            told.add(kind)
            (on_problem or log.warning)(one_line(f"{file.name}: {kind}, {where}."))

    def frames() -> Generator[np.ndarray, None, None]:
        image = image_in.open_image(file)
        if image is not None:
            source = image_in.image_shots(image, file, problem, size)
        else:
            pyav(file)
            from .av_in import av_shots
            from .heif_in import read_still, still_shots

            still = read_still(file)
            if still is not None:
                source = still_shots(still, file, problem, size)
            else:
                source = av_shots(file, start, problem, size)
        target, shown = size, None
        picture: np.ndarray = np.empty(0)
        with closing(source) as shots:
            for shot in islice(_sample(_spans(shots, problem), fps, start), max_frames):
                if shot is not shown:
                    try:
                        fresh = shot.picture()
                    except VideoError as error:
                        if shown is None:
                            raise
                        problem(f"the picture before is held ({error})", f"at {shot.time:.2f} s")
                    else:
                        target = target or (fresh.shape[0], fresh.shape[1])
                        picture = fit_frame(fresh, target, fit)
                    shown = shot
                yield picture.copy()  # the same picture may come again

    return frames()


def _nothing(kind: str, where: str) -> None:
    pass


def _spans(shots: Iterable[Shot], problem: Problem) -> Iterator[tuple[Shot, float, bool]]:
    """(shot, the time it leaves the screen, whether it is the last)."""
    previous, lost = None, 0.0
    for shot in shots:
        if previous is not None:
            gap = shot.time - previous.time
            if gap > HELD:
                problem("the clock jumps ahead", f"at {previous.time:.2f} s by {gap:.0f} s")
                lost += gap - min(previous.duration, _HOP)
            yield previous, shot.time - lost, False
        previous = shot
    if previous is not None:
        held = previous.duration if previous.duration <= HELD else _HOP
        yield previous, previous.time - lost + held, True


def _sample(
    spans: Iterable[tuple[Shot, float, bool]], fps: float | None, start: float
) -> Iterator[Shot]:
    count = 0  # outputs decided; the newest waits until it is sure to lie within the rounded length
    waiting: Shot | None = None
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
    """`path`, or VideoError if it is not a file that can be read."""
    file = Path(path)
    if not os.fspath(path):
        raise VideoError("Got an empty file name; give one video or image file.")
    try:
        facts = file.stat()
        if stat.S_ISDIR(facts.st_mode):
            raise VideoError(f"{file} is a folder; give one video or image file.")
        if not stat.S_ISREG(facts.st_mode):  # opening a pipe would wait for its other end
            raise VideoError(f"{file} is a pipe or a device; give one video or image file.")
        file.open("rb").close()
    except PermissionError as error:
        raise VideoError(f"{file} may not be read; check its permissions.") from error
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a null byte
        if isinstance(error, VideoError):
            raise
        raise VideoError(f"There is no file {file}; check the path.") from error
    except OSError as error:
        raise VideoError(f"{file} cannot be read ({error.strerror}); check the path.") from error
    if not facts.st_size:
        raise VideoError(f"{file} is empty (0 bytes); copy or download it again.")
    return file


def read_image(
    path: PathLike, size: tuple[int, int] | None = None, fit: str = "crop"
) -> np.ndarray:
    """A still (or the first frame of a clip) as uint8 `[H, W, 3]`. Raises `VideoError`."""
    return next(read_frames(path, size=size, fit=fit, max_frames=1))
