"""Clips out: an mp4 that appears when it is complete, with the sound of another file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..files.atomic import check_place, whole
from .frames import PathLike, Report, VideoError, check_frame
from .shots import pyav
from .sound import Packets, sound_packets
from .video_in import check_source

if TYPE_CHECKING:
    import av

# At two macroblocks a side, x264's macroblock tree reads memory that it never wrote: the same
# pictures would not give the same bytes every time.
_TINY = 32


class VideoWriter:
    """Write an mp4 (H.264, yuv420p, BT.709; MPEG-4 part 2 where libx264 is missing).

    A context manager. The file appears under its name on a clean exit only: after an error
    nothing new is left and an existing file stays as it was. `fps` in frames per second, `crf`
    from 0 (best) to 51. `audio_from`: the first sound track of that file, from its first picture
    to the end of the video (give or take a packet, about 20 ms): AAC as it is, all else encoded
    as AAC. A source without sound is fine; sound that cannot be used is told to `on_problem` and
    left out. Raises `VideoError`, or VftError for a place that cannot be written to.
    """

    def __init__(
        self,
        path: PathLike,
        fps: float | Fraction,
        *,
        audio_from: PathLike | None = None,
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
        check_place(self.path)
        self._av = pyav(self.path)
        self._codec_error: type[Exception] = self._av.error.FFmpegError
        self._crf, self._file = crf, ExitStack()
        self._audio_from = None if audio_from is None else check_source(audio_from)
        self._report, self._told = on_problem or (lambda message: None), set[str]()
        self._out: av.container.OutputContainer | None = None
        self._sound: Packets | None = None
        self._packet: tuple[float, Any] | None = None  # (seconds, the next sound packet)

    def __enter__(self) -> VideoWriter:
        return self

    def write(self, frame: np.ndarray) -> None:
        """Append uint8 `[H, W, 3]`; the first sets the size, odd sides grow by a repeated edge."""
        check_frame(frame)
        if self._out is None:
            self._size = frame.shape
            self._open()
        if frame.shape != self._size:
            raise VideoError(f"Got {frame.shape} after {self._size}; use fit_frame for one size.")
        edge = [(0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)]
        even = np.ascontiguousarray(np.pad(frame, edge, mode="edge"))
        picture = self._yuv(even)
        picture.pts, picture.time_base = self.frames, 1 / self.rate
        self.frames += 1
        self._mux(picture)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        complete = False
        try:
            if kind is None:
                if self._out is None:
                    raise VideoError(f"No frame was written to {self.path}; write at least one.")
                self._mux(None)
                with _as_video_error(self.path, self._codec_error):
                    self._out.close()
                complete = True
        finally:
            if self._sound is not None:
                self._sound.close()
            try:
                if self._out is not None:
                    self._out.close()
            except (self._codec_error, OSError):
                pass  # what went wrong first tells more
            with _as_video_error(self.path, self._codec_error):
                if complete:
                    self._file.close()  # it takes its place
                else:
                    # It is removed. Python 3.13's stack looks at the exception itself alone.
                    why = error or VideoError(f"{self.path} is not complete")
                    self._file.__exit__(kind or VideoError, why, trace)

    def _open(self) -> None:
        with _as_video_error(self.path, self._codec_error):
            h, w = (side + side % 2 for side in self._size[:2])
            temp = self._file.enter_context(whole(self.path))
            self._out = self._av.open(  # absolute: FFmpeg takes "12:30.mp4" for a protocol
                temp.absolute(), "w", "mp4", container_options={"movflags": "+faststart"}
            )
            if "libx264" in self._av.codecs_available:
                self._video: Any = self._out.add_stream("libx264", rate=self.rate)
                self._video.options = {"crf": str(self._crf)}
                if min(w, h) <= _TINY:
                    self._video.options |= {"x264-params": "mbtree=0"}
            else:
                self._video = self._out.add_stream("mpeg4", rate=self.rate)
                self._video.bit_rate = max(400_000, int(w * h * self.rate) // 4)
            from .pixels import Yuv420

            self._yuv = Yuv420()
            self._video.width, self._video.height, self._video.pix_fmt = w, h, "yuv420p"
            context = self._video.codec_context
            context.time_base, context.color_range = 1 / self.rate, 1
            context.thread_count = 1  # several encoder threads: not the same bytes every time
            context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        if self._audio_from is not None:
            # The streams of an mp4 are fixed before its first packet.
            self._sound = sound_packets(self._audio_from, self._out, self._problem)
            self._next_sound()

    def _next_sound(self) -> None:
        try:
            self._packet = next(self._sound, None) if self._sound else None
        except (self._codec_error, ValueError) as error:
            self._end_sound(error)

    def _problem(self, kind: str, where: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            self._report(f"The sound of {self._audio_from}: {kind}, {where}.")

    def _end_sound(self, error: Exception) -> None:
        """What the source's damage takes away is told; the video goes on without it."""
        self._sound = self._packet = None
        self._report(f"The sound of {self._audio_from} ends early or is left out ({error}).")

    def _mux(self, picture: av.VideoFrame | None) -> None:
        """Encode one picture (None: the end), and bring the sound as far as the video."""
        assert self._out is not None
        with _as_video_error(self.path, self._codec_error):
            self._out.mux(self._video.encode(picture))
        while self._packet is not None and self._packet[0] < self.frames / self.rate:
            try:
                self._out.mux(self._packet[1])
            except self._codec_error as error:  # a full disk shows at the next picture too
                self._end_sound(error)
                return
            self._next_sound()


@contextmanager
def _as_video_error(file: Path, codec_error: type[Exception] = OSError) -> Iterator[None]:
    try:
        yield
    except (codec_error, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VideoError(
            f"{file} cannot be written ({reason}); check the folder, the space, the frame size."
        ) from error


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
    with _as_video_error(file), whole(file) as temp:
        Image.fromarray(array).save(temp, format="PNG")
