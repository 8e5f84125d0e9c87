"""Single frames: bringing pictures to the model's size and back, and to tensors.

A frame is a numpy array, uint8 RGB `[H, W, 3]`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..errors import VftError

if TYPE_CHECKING:
    import torch

_STRIP = 16  # of a picture so many times as long as wide only the middle is looked at
FITS = ("crop", "pad", "stretch")
PathLike = str | os.PathLike[str]
Report = Callable[[str], None]


class VideoError(VftError):
    """A clip cannot be read or written; one line with the reason and the remedy."""


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
    check_frame(frame)
    h, w = size
    rh, rw = fit_size(frame.shape[:2], size, fit)
    if fit == "crop" and max(rh, rw) > _STRIP * max(h, w):  # enlarged whole it could be gigabytes
        src_h, src_w = frame.shape[:2]
        keep_h = min(src_h, math.ceil(src_h / rh * _STRIP * h))
        keep_w = min(src_w, math.ceil(src_w / rw * _STRIP * w))
        top, left = (src_h - keep_h) // 2, (src_w - keep_w) // 2
        frame = np.ascontiguousarray(frame[top : top + keep_h, left : left + keep_w])
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


def check_frame(frame: np.ndarray) -> None:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        raise VideoError(f"Got a frame of {frame.dtype} {list(frame.shape)}; give uint8 [H, W, 3].")


def to_tensor(frames: Iterable[np.ndarray]) -> torch.Tensor:
    """Frames of one size, uint8 `[H, W, 3]`, as float32 `[3, T, H, W]` in [-1, 1]."""
    import torch

    clip = list(frames)
    if not clip or any(frame.shape != clip[0].shape for frame in clip):
        raise VideoError(f"Got {len(clip)} frames; give one or more, all of one size.")
    for frame in clip[:1]:
        check_frame(frame)
    video = torch.from_numpy(np.stack(clip)).permute(3, 0, 1, 2)  # (3, T, H, W)
    return video.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1.0)


def to_frames(video: torch.Tensor) -> Iterator[np.ndarray]:
    """`[3, T, H, W]` in [-1, 1], any float dtype, as uint8 `[H, W, 3]`; clamps, then rounds."""
    if video.ndim != 4 or video.shape[0] != 3 or not video.is_floating_point():
        raise VideoError(f"Got {video.dtype} {list(video.shape)}; give float [3, T, H, W].")
    for frame in video.unbind(1):
        pixels = frame.detach().float().clamp(-1, 1).add(1).mul(127.5).round()
        yield pixels.byte().permute(1, 2, 0).contiguous().cpu().numpy()
