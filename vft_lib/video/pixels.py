"""A decoder's pictures as RGB: interlacing, matrix and range, high dynamic range, transparency.

Through FFmpeg's own filters, which do the same under every PyAV.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.filter import Graph

from .frames import VideoError
from .shots import Problem, Size, reduction
from .tonemap import TRANSFERS, to_sdr

# Without these swscale rounds down and pictures darken by a level each time they are saved.
_EXACT = "accurate_rnd+full_chroma_int"
_MATRICES = {  # by the number of ITU-T H.273
    1: "bt709", 4: "fcc", 5: "smpte170m", 6: "smpte170m", 7: "smpte240m", 9: "bt2020", 10: "bt2020",
}  # fmt: skip
_UNKNOWN = {8: "YCgCo", 11: "YDzDx", 13: "chromaticity-derived", 14: "ICtCp", 15: "IPT-C2"}
_DOLBY = ("dvh1", "dvhe", "dav1", "dva1", "dvav")  # tags of tracks in an mp4


class Chain:
    """FFmpeg's filters, (name, arguments) each, for frames of the size and format of `frame`.
    Raises FFmpegError or ValueError where they do not take such frames."""

    def __init__(self, frame: av.VideoFrame, *filters: tuple[str, str]) -> None:
        self._graph = Graph()
        size = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}"
        self._source = last = self._graph.add("buffer", f"{size}:time_base={frame.time_base or 1}")
        for name, arguments in filters:
            after = self._graph.add(name, arguments)
            last.link_to(after)
            last = after
        self._sink = self._graph.add("buffersink")
        last.link_to(self._sink)
        self._graph.configure()

    def push(self, frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
        """Gives `frame` (None: there are no more), yields what comes out."""
        self._source.push(frame)
        while True:
            try:
                out: Any = self._sink.pull()
            except (BlockingIOError, EOFError):  # wants more; has ended
                return
            yield out


def _kind(frame: av.VideoFrame) -> tuple[Any, ...]:
    return frame.width, frame.height, frame.format.name


def deinterlaced(frames: Iterable[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """As many frames at the same times, those that are stored as two fields made whole pictures of
    one moment (the first field's, by FFmpeg's bwdif). Holds one frame back where there are such."""
    chain, kind, timed = None, None, deque[bool]()

    def out(frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
        assert chain is not None
        for whole in chain.push(frame):
            whole.pts = whole.pts if timed.popleft() else None
            yield whole

    for frame in frames:
        if chain is not None and kind != _kind(frame):
            yield from out(None)
            chain = None
        if chain is None and frame.interlaced_frame:
            with suppress(FFmpegError, ValueError):  # of 3 lines or fewer; of an exotic format
                chain, kind = Chain(frame, ("bwdif", "send_frame:auto:interlaced")), _kind(frame)
        if chain is None:
            yield frame
        else:
            timed.append(frame.pts is not None)
            yield from out(frame)
    if chain is not None:
        yield from out(None)


def has_alpha(frame: av.VideoFrame) -> bool:
    return frame.format.has_palette or any(c.is_alpha for c in frame.format.components)


class Converter:
    """Frames of one stream as uint8 RGB `[h, w, 3]`, as they are stored, over black where they are
    transparent; large ones come smaller, yet larger than `size`. `context` is the stream's, which
    says what frames do not; what cannot be shown as it should be is told to `problem`. Raises
    VideoError for a pixel format that cannot be read."""

    def __init__(self, context: Any, problem: Problem, size: Size | None) -> None:
        self._context, self._problem, self._size = context, problem, size
        self._chain: Chain | None = None
        self._key: Any = None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        alpha, transfer = has_alpha(frame), self._told(frame, "color_trc")
        if transfer in TRANSFERS:
            self._problem(
                f"its high dynamic range ({TRANSFERS[transfer]}) is mapped to the standard one",
                "in all frames",
            )
            form, depth = ("rgba64le" if alpha else "rgb48le"), "<u2"
        else:
            form, depth = ("rgba" if alpha else "rgb24"), "u1"
        image = self._scaled(frame, form)
        plane: Any = image.planes[0]
        channels = 4 if alpha else 3
        rows = np.frombuffer(plane, depth).reshape(image.height, -1)
        pixels = rows[:, : image.width * channels].reshape(image.height, image.width, channels)
        opacity = pixels[..., 3:]
        if transfer in TRANSFERS:
            rgb = to_sdr(pixels[..., :3], transfer, self._told(frame, "color_primaries"))
            opacity = (opacity >> 8).astype("u1")
        else:
            rgb = pixels[..., :3]
        if alpha:
            rgb = ((rgb.astype(np.uint16) * opacity + 127) // 255).astype("u1")
        return np.ascontiguousarray(rgb)

    def _told(self, frame: av.VideoFrame, name: str) -> int:
        value = getattr(frame, name, 2)  # PyAV >= 17; 2: not said
        return int(getattr(self._context, name, 2) if value == 2 else value)

    def _scaled(self, frame: av.VideoFrame, form: str) -> av.VideoFrame:
        name, matrix = frame.format.name, _MATRICES.get(frame.colorspace, "smpte170m")
        if frame.colorspace == 2 and max(frame.width, frame.height) >= 1280:  # untagged HD
            matrix = "bt709"
        unknown = _UNKNOWN.get(frame.colorspace)
        if frame.colorspace == 2 and getattr(self._context, "codec_tag", "") in _DOLBY:
            unknown = "Dolby Vision without a base that others can show"
        if unknown and not frame.format.is_rgb:
            self._problem(f"colours are off ({unknown})", "in all frames")
        full = frame.color_range == 2 or name.startswith(("yuvj", "pal8")) or frame.format.is_rgb
        full = full or (frame.color_range == 0 and name.startswith(("gray", "ya")))
        factor = reduction((frame.height, frame.width), self._size)
        h, w = frame.height // factor, frame.width // factor
        scale = (
            f"w={w}:h={h}:in_color_matrix={matrix}:in_range={'pc' if full else 'tv'}:out_range=pc"
            f":flags={'area' if factor > 1 else 'bicubic'}+{_EXACT}"
        )
        key = (*_kind(frame), scale, form)
        try:
            if self._chain is None or self._key != key:
                self._chain, self._key = Chain(frame, ("scale", scale), ("format", form)), key
            return next(self._chain.push(frame))
        except (FFmpegError, ValueError, StopIteration) as error:
            self._chain = None
            raise VideoError(f"Pixel format {name} cannot be read; convert to yuv420p.") from error


class Yuv420:
    """uint8 RGB `[H, W, 3]` of even sides as frames of yuv420p, BT.709 in its limited range."""

    def __init__(self) -> None:
        self._chain: Chain | None = None

    def __call__(self, pixels: np.ndarray) -> av.VideoFrame:
        frame: Any = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        if self._chain is None:
            scale = f"in_range=pc:out_color_matrix=bt709:out_range=tv:flags=bicubic+{_EXACT}"
            self._chain = Chain(frame, ("scale", scale), ("format", "yuv420p"))
        return next(self._chain.push(frame))
