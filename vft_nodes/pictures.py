"""ComfyUI's IMAGE and VIDEO to frames and back, a frame at a time.

A frame is uint8 `[H,W,3]`; IMAGE is float32 `[T,H,W,C]` in 0..1; VIDEO is lazy.
"""

from __future__ import annotations

import contextlib
import io as bytesio
import math
import tempfile
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..vft_lib import VftError
from . import host

SHORTEST = 1e-3  # seconds; a clip that is cut by less than that is whole
IN_MEMORY = 1 << 29  # bytes of frames; more of them lie in a file that is mapped into memory


def image_frames(images: Tensor) -> Iterator[np.ndarray]:
    """The frames of an IMAGE; VftError for one that is none, alpha is dropped."""
    if images.ndim != 4 or images.shape[3] not in (1, 3, 4) or 0 in images.shape:
        raise VftError(
            f"got images of shape {list(images.shape)}; IMAGE is [frames, height, width, 3]"
        )
    for i, image in enumerate(images):
        if not torch.isfinite(image).all():
            raise VftError(f"frame {i} holds NaN or infinity; find the node that made it")
        pixels = image[..., :3].expand(-1, -1, 3).float().clamp(0, 1).mul(255).round()
        yield pixels.byte().cpu().numpy()


class FrameStore:
    """Frames that come one by one, as an IMAGE. Beyond 512 MB they lie in a file of ComfyUI's temp
    folder that is mapped into memory: memory does not grow with the clip."""

    def __init__(self, count: int) -> None:
        self.count, self.done = count, 0
        self.images = torch.empty(0)

    def add(self, frame: np.ndarray) -> None:
        if not self.done:
            self.images = _allocate((self.count, *frame.shape))
        self.images[self.done] = torch.from_numpy(frame).float().div_(255)
        self.done += 1

    def image(self) -> Tensor:
        """`[T,H,W,3]`, all frames that came."""
        return self.images[: self.done]


def _allocate(shape: tuple[int, ...]) -> Tensor:
    size = math.prod(shape)
    if 4 * size <= IN_MEMORY:
        return torch.empty(shape)
    folder = host.folder("temp")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".frames", delete=False) as f:
        f.truncate(4 * size)
    mapped = torch.from_file(f.name, shared=True, size=size, dtype=torch.float32).view(shape)
    with contextlib.suppress(OSError):  # Windows: it stays until ComfyUI empties the folder
        Path(f.name).unlink()  # the mapping lives on
    return mapped


def make_video(images: Tensor, fps: float, audio: Any = None) -> Any:
    """A VIDEO of an IMAGE and, where given, an AUDIO."""
    from comfy_api.latest import InputImpl, Types

    rate = Fraction(fps).limit_denominator(1001)
    return InputImpl.VideoFromComponents(
        Types.VideoComponents(images=images, audio=audio, frame_rate=rate)
    )


def video_file(video: Any) -> Path | None:
    """The file behind a VIDEO, to be read a frame at a time; None if it has none, or shows only a
    part of it."""
    from comfy_api.latest import Input, InputImpl

    if type(video).get_stream_source is Input.Video.get_stream_source:
        return None  # made from frames: they are in memory already
    source = video.get_stream_source()
    if isinstance(source, bytesio.BytesIO):
        folder = host.folder("temp")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".video", delete=False) as f:
            f.write(source.getbuffer())
        source = f.name
    # Both durations are ComfyUI's, which may count sound that goes on behind the last picture.
    whole = InputImpl.VideoFromFile(source).get_duration()
    return None if abs(video.get_duration() - whole) > SHORTEST else Path(source)


def resampled(images: Tensor, rate: float, fps: float) -> tuple[int, Iterator[np.ndarray]]:
    """How many frames an IMAGE that plays at `rate` gives at `fps`, and the frames: what is on
    screen at i / fps."""
    count, last = max(1, round(len(images) / rate * fps)), len(images) - 1
    shown = (min(last, int(i / fps * rate + 1e-6)) for i in range(count))
    return count, (frame for at in shown for frame in image_frames(images[at : at + 1]))


def store(frames: Iterable[np.ndarray], count: int) -> Tensor:
    """Frames, `count` of them at most, as an IMAGE."""
    kept = FrameStore(count)
    for frame in frames:
        kept.add(frame)
    return kept.image()
