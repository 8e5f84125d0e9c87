"""What videos and images have in common as sources: pictures that stay on screen for a while, how
large they may be, and which way is up."""

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
JUMP = 0.5  # s; where a clock runs back by more, recordings were joined
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
