"""What sources of pictures and sound have in common: pictures that stay on screen for a while, how
large they may be, which way is up, and one line of time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .frames import PathLike, VideoError

Matrix = tuple[int, int, int, int]
"""(a, b, c, d): a stored pixel (x, y) is shown at (a x + c y, b x + d y), y downwards."""

Size = tuple[int, int]  # (height, width)
Problem = Callable[[str, str], None]
"""(kind of damage, where): each kind is told once, with the first place."""

HELD = 600.0  # s; a picture on screen for longer is a damaged clock's doing
JUMP = 0.5  # s; by more no file's clock is out because pictures are reordered
_BACK = 0.05  # s; where the packets' clock runs back by more, recordings were joined
MAX_PIXELS = 1 << 26  # 8192 x 8192; a small file can claim any size
LARGE = 1 << 22  # pixels; a larger picture is made smaller as it is read, not after it


@dataclass(frozen=True)
class Shot:
    """A picture on screen from `time` (seconds since the first frame) until the next shot."""

    time: float
    duration: float  # used for the last shot only
    picture: Callable[[], np.ndarray]  # -> upright uint8 [H, W, 3]


def pyav(file: PathLike) -> Any:
    """The module `av`, imported as the first video is opened: pictures, training and generating
    do without it. Raises VideoError where it is not installed."""
    try:
        import av
    except ImportError as error:
        raise VideoError(
            f"{file} is read or written as a video, which needs PyAV: pip install av."
        ) from error
    return av


def seconds(timed: Any, time: int | None) -> float | None:
    """`time` in units of a packet's or frame's own, as seconds."""
    return None if time is None or timed.time_base is None else float(time * timed.time_base)


class Line:
    """Moves the times of a stream's packets, given in the order of the file, to one line of time:
    where the file's clock runs back (joined recordings) or leaps, they go on behind the packet
    before."""

    def __init__(self, problem: Problem = lambda kind, where: None, period: float = 0.02) -> None:
        self.moved = 0.0  # s; how far back packets are moved
        self._problem, self._period = problem, period
        self._first: float | None = None
        self._latest: float | None = None
        self._shown = False
        self._length = period

    def __call__(self, packet: Any) -> None:
        if packet.time_base is None:
            return
        shown = packet.dts is None  # then there is the time of a picture only, reordered or not
        if shown != self._shown:
            self._shown, self._latest = shown, None  # another kind of time
        back = JUMP if shown else max(2.5 * self._period, _BACK)
        time = seconds(packet, packet.pts if shown else packet.dts)
        if time is not None:
            time -= self.moved
            self._first = time if self._first is None else self._first
            if self._latest is not None and not -back <= time - self._latest < HELD:
                if time > self._latest:
                    where = f"at {self._latest - self._first:.2f} s by"
                    self._problem("the clock jumps ahead", f"{where} {time - self._latest:.0f} s")
                self.moved += time - self._latest - self._length
                time = self._latest + self._length
            length = seconds(packet, packet.duration) or 0.0
            self._latest, self._length = time, length if 0 < length < JUMP else self._period
        move(packet, self.moved)


def move(packet: Any, back: float) -> None:
    """Let it come `back` seconds earlier."""
    ticks = round(back / packet.time_base) if packet.time_base else 0
    packet.pts = None if packet.pts is None else packet.pts - ticks
    packet.dts = None if packet.dts is None else packet.dts - ticks


def check_pixels(height: int, width: int, file: Path) -> None:
    if height * width > MAX_PIXELS:
        raise VideoError(
            f"{file} is {width}x{height} px; at most {MAX_PIXELS >> 20} million pixels are read: "
            "make it smaller first."
        )


def reduction(stored: Size, size: Size | None) -> int:
    """By how much the sides of a large picture are divided as it is read: what is left has twice
    the pixels a side that `size` asks for, on either side. 1 for ordinary pictures."""
    if size is None or stored[0] * stored[1] <= LARGE:
        return 1
    return max(1, min(stored) // (2 * max(size)))


def upright(pixels: np.ndarray, matrix: Matrix) -> np.ndarray:
    a, b, c, d = matrix
    if abs(b) > abs(a):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def upright_size(stored: Size, matrix: Matrix) -> Size:
    return stored[::-1] if abs(matrix[1]) > abs(matrix[0]) else stored


def mirrored(matrix: Matrix) -> bool:
    a, b, c, d = matrix
    return a * d < b * c


def degrees(matrix: Matrix) -> int:
    """How far clockwise it turns the picture, after it was mirrored: 0, 90, 180 or 270."""
    a, b, *_ = matrix
    sign = -1 if mirrored(matrix) else 1
    return round(math.degrees(math.atan2(sign * b, sign * a)) / 90) % 4 * 90
