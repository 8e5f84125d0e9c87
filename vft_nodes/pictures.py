"""ComfyUI's IMAGE and VIDEO to frames and back, a frame at a time.

A frame is uint8 `[H,W,3]`; IMAGE is float32 `[T,H,W,C]` in 0..1; VIDEO is lazy.
"""

from __future__ import annotations

import contextlib
import io as bytesio
import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..vft_lib import VftError
from ..vft_lib.video.frames import Report
from . import host

SHORTEST = 1e-3  # seconds; a clip that is cut by less than that is whole
LOWEST, HIGHEST = -0.5, 2.0  # what is still taken for an overshoot of 0..1, not another range
SLIGHT = 0.02  # an overshoot not worth a word
IN_MEMORY = 1 << 29  # bytes of frames; more of them lie in a file that is mapped into memory


def image_frames(images: Tensor, warn: Report = host.log.warning) -> Iterator[np.ndarray]:
    """The frames of an IMAGE; VftError for one that is none. Grey becomes RGB; alpha is dropped and
    values a little outside of 0..1, as sharpening makes them, are clamped: told to `warn`."""
    if images.ndim != 4 or images.shape[3] not in (1, 3, 4) or 0 in images.shape:
        raise VftError(
            f"got images of shape {list(images.shape)}; IMAGE is [frames, height, width, 3]"
        )
    if not images.is_floating_point():
        raise VftError(f"got images of {images.dtype}; IMAGE is float32, 0 to 1")
    if images.shape[3] == 4:
        warn("alpha is dropped")
    return _frames(images, warn)


def _frames(images: Tensor, warn: Report) -> Iterator[np.ndarray]:
    told = False
    for i, image in enumerate(images):
        rgb = image[..., :3]
        low, high = (float(v) for v in rgb.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise VftError(f"frame {i} holds NaN or infinity; find the node that made it")
        if low < LOWEST or high > HIGHEST:
            remedy = "divide by 255" if high > HIGHEST else "add 1 and halve it"
            raise VftError(
                f"frame {i} has values from {low:.4g} to {high:.4g}; IMAGE is 0 to 1: {remedy}"
            )
        if not told and (low < -SLIGHT or high > 1 + SLIGHT):
            told = True
            warn(f"frame {i} has values from {low:.4g} to {high:.4g}: clamped to 0 to 1")
        pixels = rgb.expand(-1, -1, 3).float().clamp(0, 1).mul(255).round()
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
    free = shutil.disk_usage(folder).free
    if 4 * size > free:  # a mapped file that finds no room would end the process
        raise VftError(
            f"{shape[0]} frames of {shape[2]}x{shape[1]} px are {4 * size / 1e9:.1f} GB in the"
            f" temp folder, {free / 1e9:.1f} are free: make room, or cut with VFT Slice Tokens"
        )
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
    """The file behind a VIDEO, to be read a frame at a time; None if it has none, or shows anything
    else than all of it: a part in time, a part of the picture, other pictures."""
    from comfy_api.latest import Input, InputImpl

    kind = type(video)
    if kind.get_stream_source is Input.Video.get_stream_source:
        return None  # made from frames: they are in memory already
    if kind.get_components is not InputImpl.VideoFromFile.get_components:
        return None  # another node pack's, which makes its pictures itself
    source = video.get_stream_source()
    if isinstance(source, bytesio.BytesIO):
        folder = host.folder("temp")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".video", delete=False) as f:
            f.write(source.getbuffer())
        source = f.name
    whole = InputImpl.VideoFromFile(source)
    # All of these are ComfyUI's words on either; its durations may count sound that goes on behind
    # the last picture.
    try:
        part = abs(video.get_duration() - whole.get_duration()) > SHORTEST
        part = part or video.get_dimensions() != whole.get_dimensions()
    except Exception:  # a damaged file: our reader takes what there is, or says what is wrong
        return Path(source)
    return None if part else Path(source)


def resampled(images: Tensor, rate: float, fps: float) -> tuple[int, Iterator[np.ndarray]]:
    """How many frames an IMAGE that plays at `rate` gives at `fps`, and the frames: what is on
    screen at i / fps."""
    if not 0.01 <= rate <= 1000:
        raise VftError(f"the video plays at {rate:g} frames per second; expected 0.01 to 1000")
    count, last = max(1, round(len(images) / rate * fps)), len(images) - 1
    shown = (min(last, int(i / fps * rate + 1e-6)) for i in range(count))
    return count, (frame for at in shown for frame in image_frames(images[at : at + 1]))


def store(frames: Iterable[np.ndarray], count: int) -> Tensor:
    """Frames, `count` of them at most, as an IMAGE."""
    kept = FrameStore(count)
    for frame in frames:
        kept.add(frame)
    return kept.image()
