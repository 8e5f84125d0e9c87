"""Clips in and out, one frame at a time.

A frame is a numpy array, uint8 RGB `[H, W, 3]`. Videos go through PyAV; stills and animated
GIF, WebP and PNG go through Pillow, which knows their frame durations. Either way a source is a
stream of `_Shot`s, which `read_frames` samples by time; only a few frames are held at once.
Transparency is composited over black; rotation, mirroring and non-square pixels are undone. Not
done: HDR tone mapping, deinterlacing, the alpha of VP8/VP9 WebM.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import Colorspace
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from .errors import VftError

if TYPE_CHECKING:
    import torch

FITS = ("crop", "pad", "stretch")
PathLike = str | os.PathLike[str]
Report = Callable[[str], None]

_STILLS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow also claims raw MPEG
_ANIMATED = ("GIF", "WEBP", "PNG")
_TEXT_ART = ("tty", "bin", "xbin", "adf", "idf")  # FFmpeg renders any .txt as a "video"
_COPIED_AUDIO = ("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac")  # players take these in mp4
_EARLY = 1.001e-3  # s; a frame counts as shown this much early: Matroska and FLV round to 1 ms
_IMAGE_ERRORS = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)


class VideoError(VftError):
    """A clip cannot be read or written; one line with the reason and the remedy."""


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


# --- geometry ---------------------------------------------------------------------------------


def fit_size(src_size: tuple[int, int], size: tuple[int, int], fit: str) -> tuple[int, int]:
    """The (h, w) a picture of `src_size` (H, W) is resized to before it is cropped or padded."""
    (src_h, src_w), (h, w) = src_size, size
    if fit not in FITS:
        raise VideoError(f"Got fit={fit!r}; choose one of {', '.join(FITS)}.")
    if min(src_h, src_w, h, w) < 1:
        raise VideoError(f"Got sizes {src_size} and {size}; both need at least 1 pixel a side.")
    if fit == "stretch":
        return h, w
    scale = (max if fit == "crop" else min)(h / src_h, w / src_w)
    return max(1, round(src_h * scale)), max(1, round(src_w * scale))


def unfit_box(
    src_size: tuple[int, int], size: tuple[int, int], fit: str
) -> tuple[int, int, int, int]:
    """Where the real picture lies in a fitted frame: `frame[top:bottom, left:right]`.

    Returns (top, left, bottom, right): the inside of the bars for "pad", else the whole frame.
    """
    h, w = fit_size(src_size, size, fit)
    if fit != "pad":
        return 0, 0, size[0], size[1]
    top, left = (size[0] - h) // 2, (size[1] - w) // 2
    return top, left, top + h, left + w


def fit_frame(frame: np.ndarray, size: tuple[int, int], fit: str) -> np.ndarray:
    """Bring uint8 `[H, W, 3]` to uint8 `[h, w, 3]`; bicubic, antialiased.

    "crop": the short side fits, the centre is kept. "pad": the long side fits, black bars.
    "stretch": direct. Returns `frame` itself where nothing changes.
    """
    _check_frame(frame)
    h, w = size
    rh, rw = fit_size(frame.shape[:2], size, fit)
    if frame.shape[:2] == (rh, rw) == (h, w):
        return frame
    resized = np.array(Image.fromarray(frame).resize((rw, rh), Image.Resampling.BICUBIC))
    if fit != "pad":
        top, left = (rh - h) // 2, (rw - w) // 2
        return resized[top : top + h, left : left + w].copy()
    out = np.zeros((h, w, 3), np.uint8)
    top, left, bottom, right = unfit_box(frame.shape[:2], size, fit)
    out[top:bottom, left:right] = resized
    return out


# --- reading ----------------------------------------------------------------------------------


def probe(path: PathLike) -> VideoInfo:
    """Read a clip's facts (decodes one frame; all frames of an animated image).

    Raises `VideoError` as `read_frames` does.
    """
    file = _check_source(path)
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
    with _open_av(file) as container:
        stream = _video_stream(container, file)
        frame = next(_av_frames(container, stream), None)
        if frame is None:
            raise _no_picture(file)
        duration = None
        if stream.duration and stream.time_base:
            duration = float(stream.duration * stream.time_base)
        elif container.duration:
            duration = container.duration / av.time_base
        h, w = _upright(np.empty((frame.height, _square_width(frame, stream), 0)), frame).shape[:2]
        a, b, _, _ = _display_matrix(frame)
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
    file, told = _check_source(path), set[str]()

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


def _check_source(path: PathLike) -> Path:
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


def _open_av(file: Path) -> av.container.InputContainer:
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
    with _open_av(file) as container:
        stream = _video_stream(container, file)
        period = 1 / _rate(stream)
        frames = _av_frames(container, stream, report)
        frame = next(frames, None)
        if frame is None:
            raise _no_picture(file)
        zero = _seconds(frame) or 0.0
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
            yield _Shot(time, duration, partial(_picture, frame, _square_width(frame, stream)))
            frame = next(frames, None)
        # A container's length may be that of somewhat longer sound.
        own, whole = stream.duration, (container.duration or 0) / av.time_base
        if time + duration + 0.5 < (own * stream.time_base if own else 0.9 * whole):
            report(f"the picture ends at {time + duration:.2f} s, earlier than the file says.")


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """(a, b, c, d): a stored pixel (x, y) is shown at (a x + c y, b x + d y), y downwards."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    return a, b, c, d


def _upright(pixels: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    a, b, c, d = _display_matrix(frame)
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


def _picture(frame: av.VideoFrame, width: int) -> np.ndarray:
    alpha, name = _has_alpha(frame), frame.format.name
    matrix = {1: "ITU709", 9: "BT2020", 10: "BT2020"}.get(frame.colorspace, "ITU601")
    if frame.colorspace == 2 and max(frame.width, frame.height) >= 1280:  # untagged HD
        matrix = "ITU709"
    full = frame.color_range == 2 or name.startswith(("yuvj", "pal8")) or frame.format.is_rgb
    full = full or (frame.color_range == 0 and name.startswith(("gray", "ya")))
    try:
        pixels = frame.reformat(
            format="rgba" if alpha else "rgb24",
            src_colorspace=matrix if hasattr(Colorspace, matrix) else "ITU709",
            dst_colorspace="FCC",  # unused for RGB; PyAV < 17 ignores the source's if they agree
            src_color_range=2 if full else 1,
            dst_color_range=2,
        ).to_ndarray()
    except (FFmpegError, ValueError) as error:
        raise VideoError(f"Pixel format {name} cannot be read; convert to yuv420p.") from error
    if alpha:
        pixels = ((pixels[..., :3].astype(np.uint16) * pixels[..., 3:] + 127) // 255).astype("u1")
    pixels = fit_frame(pixels, (frame.height, width), "stretch")
    return np.ascontiguousarray(_upright(pixels, frame))


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


# --- writing ----------------------------------------------------------------------------------


def _temp_name(file: Path, suffix: str) -> Path:
    if file.is_dir() or not file.parent.is_dir():
        raise VideoError(f"{file} cannot be written: give a file name in an existing folder.")
    return file.with_name(f".{file.name}.{os.getpid()}.tmp{suffix}")


def _check_frame(frame: np.ndarray) -> None:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        raise VideoError(f"Got a frame of {frame.dtype} {list(frame.shape)}; give uint8 [H, W, 3].")


class VideoWriter:
    """Write an mp4 (H.264, yuv420p, BT.709; MPEG-4 part 2 where libx264 is missing).

    A context manager. The file appears under its name on a clean exit only: after an error
    nothing new is left and an existing file stays as it was. `fps` in frames per second, `crf`
    from 0 (best) to 51. `audio_from`: the first sound track of that file, from `audio_start`
    seconds to the end of the video (give or take a packet, about 20 ms), copied where mp4 players
    take it, else as AAC. A source without sound is fine; sound that cannot be used is told to
    `on_problem` and left out. Raises `VideoError`.
    """

    def __init__(
        self,
        path: PathLike,
        fps: float | Fraction,
        *,
        audio_from: PathLike | None = None,
        audio_start: float = 0.0,
        crf: int = 18,
        on_problem: Report | None = None,
    ) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in (".mp4", ".m4v"):
            raise VideoError(f"{self.path} cannot be written: name the video *.mp4.")
        if not 0.01 <= fps <= 1000 or not 0 <= crf <= 51:
            raise VideoError(f"Got fps={fps}, crf={crf}; give fps in 0.01..1000, crf in 0..51.")
        self.rate = Fraction(fps if isinstance(fps, Fraction) else float(fps)).limit_denominator(
            1001
        )
        self.frames = 0  # written so far
        self._crf, self._temp = crf, _temp_name(self.path, ".mp4")
        self._audio_from = None if audio_from is None else _check_source(audio_from)
        self._audio_start, self._report = audio_start, on_problem or (lambda message: None)
        self._out: av.container.OutputContainer | None = None
        self._sound: Generator[tuple[float, Any], None, None] | None = None
        self._packet: tuple[float, Any] | None = None  # (seconds, the next sound packet)

    def __enter__(self) -> VideoWriter:
        return self

    def write(self, frame: np.ndarray) -> None:
        """Append uint8 `[H, W, 3]`; the first sets the size, odd sides grow by a repeated edge."""
        _check_frame(frame)
        if self._out is None:
            self._size = frame.shape
            self._open()
        if frame.shape != self._size:
            raise VideoError(f"Got {frame.shape} after {self._size}; use fit_frame for one size.")
        edge = [(0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)]
        even = np.ascontiguousarray(np.pad(frame, edge, mode="edge"))
        picture = av.VideoFrame.from_ndarray(even, format="rgb24").reformat(
            format="yuv420p", dst_colorspace="ITU709", src_color_range=2, dst_color_range=1
        )
        picture.pts, picture.time_base = self.frames, 1 / self.rate
        self.frames += 1
        self._mux(picture)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                if self._out is None:
                    raise VideoError(f"No frame was written to {self.path}; write at least one.")
                self._mux(None)
                with _as_video_error(self.path):
                    self._out.close()
                    os.replace(self._temp, self.path)
        finally:
            if self._sound is not None:
                self._sound.close()
            try:
                if self._out is not None:
                    self._out.close()
            except (FFmpegError, OSError):
                pass  # what went wrong first tells more
            self._temp.unlink(missing_ok=True)

    def _open(self) -> None:
        with _as_video_error(self.path):
            h, w = (side + side % 2 for side in self._size[:2])
            self._out = av.open(self._temp, "w", "mp4", options={"movflags": "+faststart"})
            if "libx264" in av.codecs_available:
                self._video: Any = self._out.add_stream("libx264", rate=self.rate)
                self._video.options = {"crf": str(self._crf)}
            else:
                self._video = self._out.add_stream("mpeg4", rate=self.rate)
                self._video.bit_rate = max(400_000, int(w * h * self.rate) // 4)
            self._video.width, self._video.height, self._video.pix_fmt = w, h, "yuv420p"
            context = self._video.codec_context
            context.time_base, context.color_range = 1 / self.rate, 1
            context.thread_count = 1  # several encoder threads: not the same bytes every time
            context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        if self._audio_from is not None:
            # The streams of an mp4 are fixed before its first packet.
            self._sound = _sound(self._audio_from, self._out, self._audio_start)
            self._next_sound()

    def _next_sound(self) -> None:
        try:
            self._packet = next(self._sound, None) if self._sound else None
        except (FFmpegError, ValueError) as error:
            self._packet = None
            self._report(f"The sound of {self._audio_from} ends early or is left out ({error}).")

    def _mux(self, picture: av.VideoFrame | None) -> None:
        """Encode one picture (None: the end), and bring the sound as far as the video."""
        assert self._out is not None
        with _as_video_error(self.path):
            self._out.mux(self._video.encode(picture))
            while self._packet is not None and self._packet[0] < self.frames / self.rate:
                self._out.mux(self._packet[1])
                self._next_sound()


@contextmanager
def _as_video_error(file: Path) -> Iterator[None]:
    try:
        yield
    except (FFmpegError, OSError) as error:
        reason = error.strerror or error
        raise VideoError(
            f"{file} cannot be written ({reason}); check the folder, the space, the frame size."
        ) from error


def _sound(
    file: Path, out: av.container.OutputContainer, start: float
) -> Generator[tuple[float, Any], None, None]:
    """Add a sound stream to `out`, then yield (seconds, packet) from `start` of `file` on."""
    with _open_av(file) as source:
        if not source.streams.audio:
            return
        track: Any = source.streams.audio[0]
        clock: Any = source.streams.video[0] if source.streams.video else track
        zero = start + float((clock.start_time or 0) * (clock.time_base or 0))
        if start > 1:
            source.seek(int(zero * av.time_base))
        if track.codec_context.name.removesuffix("float") in _COPIED_AUDIO:
            container: Any = out
            if hasattr(container, "add_stream_from_template"):
                copy = container.add_stream_from_template(track)
            else:  # PyAV < 14
                copy = container.add_stream(template=track)
            shift, latest = round(zero / track.time_base), -1
            for packet in source.demux(track):
                if packet.pts is None or packet.dts is None or packet.pts < shift:
                    continue
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                if packet.dts > latest:  # the container refuses a clock that stands or runs back
                    latest = packet.dts
                    yield float(packet.pts * track.time_base), packet
            return
        rate = min(48000, track.codec_context.sample_rate)
        layout = "mono" if track.codec_context.channels == 1 else "stereo"
        aac: Any = out.add_stream("aac", rate=rate, layout=layout)
        resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
        at = None  # in samples
        for frame in source.decode(track):
            time = (frame.time or 0.0) - zero
            if time < -1e-3:
                continue
            at = round(time * rate) if at is None else at
            for piece in resampler.resample(frame):
                piece.pts, piece.time_base = at, Fraction(1, rate)
                at += piece.samples
                for packet in aac.encode(piece):
                    yield float(packet.pts * packet.time_base), packet
        for packet in aac.encode(None):
            yield float(packet.pts * packet.time_base), packet


def write_video(
    path: PathLike, frames: Iterable[np.ndarray], fps: float | Fraction, **options: Any
) -> int:
    """Write all frames; `options` are `VideoWriter`'s. Returns how many were written."""
    with VideoWriter(path, fps, **options) as writer:
        for frame in frames:
            writer.write(frame)
    return writer.frames


def write_png(path: PathLike, array: np.ndarray) -> None:
    """Write uint8 `[H, W]`, `[H, W, 3]` or `[H, W, 4]` as a PNG, complete or not at all."""
    if (
        array.dtype != np.uint8
        or array.ndim not in (2, 3)
        or array.shape[2:] not in ((), (3,), (4,))
    ):
        raise VideoError(f"Got {array.dtype} {list(array.shape)}; give uint8 [H, W] or [H, W, 3].")
    file = Path(path)
    temp = _temp_name(file, ".png")
    try:
        with _as_video_error(file):
            Image.fromarray(array).save(temp, format="PNG")
            os.replace(temp, file)
    finally:
        temp.unlink(missing_ok=True)


# --- tensors ----------------------------------------------------------------------------------


def to_tensor(frames: Iterable[np.ndarray]) -> torch.Tensor:
    """Frames of one size, uint8 `[H, W, 3]`, as float32 `[3, T, H, W]` in [-1, 1]."""
    import torch

    clip = list(frames)
    if not clip or any(frame.shape != clip[0].shape for frame in clip):
        raise VideoError(f"Got {len(clip)} frames; give one or more, all of one size.")
    for frame in clip[:1]:
        _check_frame(frame)
    video = torch.from_numpy(np.stack(clip)).permute(3, 0, 1, 2)  # (3, T, H, W)
    return video.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1.0)


def to_frames(video: torch.Tensor) -> Iterator[np.ndarray]:
    """`[3, T, H, W]` in [-1, 1], any float dtype, as uint8 `[H, W, 3]`; clamps, then rounds."""
    if video.ndim != 4 or video.shape[0] != 3 or not video.is_floating_point():
        raise VideoError(f"Got {video.dtype} {list(video.shape)}; give float [3, T, H, W].")
    for frame in video.unbind(1):
        pixels = frame.detach().float().clamp(-1, 1).add(1).mul(127.5).round()
        yield pixels.byte().permute(1, 2, 0).contiguous().cpu().numpy()
