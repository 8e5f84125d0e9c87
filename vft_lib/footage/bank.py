"""Windows of real footage, cut and varied on the device that trains on them.

All frames lie in one buffer of pixels. A window is a path of a small camera over them: it pans,
zooms and turns, most of all over stills; some windows have a second one in front, behind a moving
edge, so that things cover one another. Four look-ups a pixel, no picture leaves the device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import VftError

Picture = npt.NDArray[np.uint8]
Uniform = Callable[..., Tensor]
"""(low, high, *shape) -> uniform numbers of that shape, by default one for each window."""


@dataclass(frozen=True)
class Variation:
    """How windows differ from what was recorded. Shares are of windows; `zoom`: source pixels a
    pixel of the window, in units of (short side / size); `color`: change of brightness, contrast
    and the balance of channels."""

    still_share: float = 0.35
    zoom: tuple[float, float] = (0.7, 1.0)
    mirrored: float = 0.5
    backwards: float = 0.25
    moving_camera: float = 0.3  # of clips; stills always move
    layered: float = 0.2
    color: float = 0.12


USUAL = Variation()


class ClipBank:
    """Clips `[T,H,W,3]` and stills `[H,W,3]`, uint8 of any size, by name, kept on `device`."""

    def __init__(
        self, clips: Mapping[str, Picture], stills: Mapping[str, Picture],
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        if not clips and not stills:
            raise VftError("got no clips and no stills to train on")
        pictures = [clips[name] for name in sorted(clips)]
        pictures += [stills[name][None] for name in sorted(stills)]
        self.clips, self.stills = len(clips), len(stills)
        shapes = np.array([p.shape[:3] for p in pictures], np.int64)  # (N, 3): T, H, W
        starts = np.concatenate([[0], shapes.prod(1).cumsum()])
        self.pixels = torch.empty(int(starts[-1]), 3, dtype=torch.uint8, device=device)
        for picture, start, end in zip(pictures, starts, starts[1:]):
            flat = np.ascontiguousarray(picture).reshape(-1, 3)
            self.pixels[start:end] = torch.from_numpy(flat).to(device)
        self.device = self.pixels.device
        self.shapes = torch.from_numpy(shapes).to(device)
        self.starts = torch.from_numpy(starts[:-1]).to(device)
        # Long clips hold more, but not in proportion.
        length = torch.from_numpy(shapes[:, 0]).float().sqrt()
        self.weights = length.to(device)

    def mark(self) -> str:
        """16 hex digits that name these pictures: others have another mark."""
        found = hashlib.sha256(self.shapes.cpu().numpy().tobytes())
        found.update(self.pixels.cpu().numpy().data)
        return found.hexdigest()[:16]

    def draw(
        self, generator: torch.Generator, batch: int, frames: int, size: int,
        crop: int | None = None, vary: Variation = USUAL,
    ) -> Tensor:  # fmt: skip
        """Windows `[B,3,T,size,size]` float32 in [-1,1] (of `crop` px out of that, if given).
        `generator` is on this bank's device, where nothing waits for the host."""
        g, device = generator, self.device

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(shape or (batch,), generator=g, device=device)

        still = uniform(0, 1) < (vary.still_share if self.clips else 1.0)
        if not self.stills:
            still = torch.zeros_like(still)
        pools = []
        for low, high in ((0, self.clips), (self.clips, self.clips + self.stills)):
            weights = self.weights[low:high] if high > low else self.weights
            chosen = torch.multinomial(weights, batch, replacement=True, generator=g)
            pools.append(low + chosen if high > low else chosen)
        which = torch.where(still, pools[1], pools[0])
        length, height, width = self.shapes[which].unbind(1)
        index = self._times(length, frames, uniform, vary)
        y, x = _path(still, height, width, frames, size, crop or size, uniform, vary)
        video = self._look_up(self.starts[which], index, height, width, y, x)  # (B, T, S, S, 3)
        video = self._layered(video, uniform, vary)
        video = _colored(video, uniform, vary)
        return video.permute(0, 4, 1, 2, 3)

    def _times(self, length: Tensor, frames: int, uniform: Uniform, vary: Variation) -> Tensor:
        """Which frame of its clip each of a window is: `[B,T]`."""
        last = length - 1
        stride = torch.where((uniform(0, 1) < 0.35) & (length > 2 * frames), 2, 1)
        room = (last - (frames - 1) * stride).clamp_min(0)
        start = (uniform(0, 1) * (room + 1)).long().clamp(max=room)
        step = torch.arange(frames, device=self.device)
        step = torch.where((uniform(0, 1) < vary.backwards)[:, None], frames - 1 - step, step)
        index = start[:, None] + stride[:, None] * step
        # A clip shorter than the window plays forth and back.
        index = index % (2 * last).clamp_min(1)[:, None]
        return torch.where(index > last[:, None], 2 * last[:, None] - index, index)

    def _look_up(
        self, start: Tensor, index: Tensor, height: Tensor, width: Tensor, y: Tensor, x: Tensor
    ) -> Tensor:
        """Bilinear: positions y, x `[B,T,S,S]` in pixels -> float32 `[B,T,S,S,3]` in [-1,1]."""
        h, w = height.view(-1, 1, 1, 1), width.view(-1, 1, 1, 1)
        y, x = _reflected(y, h), _reflected(x, w)
        y0, x0 = y.floor().long(), x.floor().long()
        y0, x0 = y0.clamp_min(0).minimum(h - 1), x0.clamp_min(0).minimum(w - 1)
        y1, x1 = (y0 + 1).minimum(h - 1), (x0 + 1).minimum(w - 1)
        fy, fx = (y - y0).clamp(0, 1)[..., None], (x - x0).clamp(0, 1)[..., None]
        base = (start[:, None] + index * (height * width)[:, None])[..., None, None]

        def at(row: Tensor, column: Tensor) -> Tensor:
            return self.pixels[base + row * w + column].float()

        top = torch.lerp(at(y0, x0), at(y0, x1), fx)
        return torch.lerp(top, torch.lerp(at(y1, x0), at(y1, x1), fx), fy) / 127.5 - 1

    def _layered(self, video: Tensor, uniform: Uniform, vary: Variation) -> Tensor:
        """A share of the windows gets its neighbour in front, where a moving mask says so."""
        b, t, s = video.shape[:3]
        if b < 2 or vary.layered <= 0:
            return video
        noise = uniform(-1, 1, b, 1, 5, 5)
        line = torch.linspace(-0.6, 0.6, s, device=video.device)
        grid = torch.stack(torch.meshgrid(line, line, indexing="ij")[::-1], -1)  # (S, S, 2): x, y
        ramp = torch.linspace(-1, 1, t, device=video.device).view(1, t, 1, 1, 1)
        grid = grid + ramp * uniform(-0.4, 0.4, b, 1, 1, 1, 2)
        field = F.grid_sample(
            noise, grid.flatten(1, 2), mode="bicubic", padding_mode="border", align_corners=True
        )  # (B, 1, T*S, S)
        sharp = 0.5 * s * uniform(0.1, 0.5, b, 1, 1, 1)
        mask = torch.sigmoid((field - 0.25) * sharp).view(b, t, s, s, 1)
        mask = mask * (uniform(0, 1) < vary.layered).view(b, 1, 1, 1, 1)
        return torch.lerp(video, video.roll(1, 0), mask)


def _path(
    still: Tensor, height: Tensor, width: Tensor, frames: int, size: int, crop: int,
    uniform: Uniform, vary: Variation,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Where the camera looks: y, x `[B,T,crop,crop]` in pixels of the source."""
    b, device = len(still), still.device
    short = height.minimum(width).float()
    low, high = vary.zoom
    scale = short / size * uniform(low, high)  # source pixels a pixel
    side = scale * size
    moves = still | (uniform(0, 1) < vary.moving_camera)
    strength = torch.where(still, 1.0, 0.35) * moves
    time = torch.linspace(-0.5, 0.5, frames, device=device)
    ease = torch.where((uniform(0, 1) < 0.5)[:, None], time, 0.5 * torch.sin(math.pi * time))
    zoom = torch.exp(uniform(-0.35, 0.35) * strength)[:, None] ** ease
    turn = (uniform(-0.35, 0.35) * strength * (uniform(0, 1) < 0.4))[:, None] * ease
    drift = uniform(-0.35, 0.35, 2, b) * strength
    room = [(extent.float() - side).clamp_min(0) for extent in (height, width)]
    center = [
        side / 2 + uniform(0, 1) * r - 0.5 for r in room
    ]  # fmt: skip
    span = torch.arange(size, device=device) - (size - 1) / 2
    if crop < size:
        corner = (uniform(0, 1, 2, b) * (size - crop + 1)).long()
        part = torch.arange(crop, device=device)
        rows, columns = (span[c[:, None] + part] for c in corner)  # (B, crop)
    else:
        rows = columns = span.expand(b, -1)
    columns = columns * torch.where(uniform(0, 1) < vary.mirrored, -1.0, 1.0)[:, None]
    s = (scale[:, None] * zoom)[..., None, None]  # (B, T, 1, 1)
    cos, sin = turn.cos()[..., None, None], turn.sin()[..., None, None]
    v, u = rows[:, None, :, None], columns[:, None, None, :]
    cy, cx = (
        (c[:, None] + (d * side)[:, None] * ease)[..., None, None] for c, d in zip(center, drift)
    )
    return cy + s * (cos * v + sin * u), cx + s * (cos * u - sin * v)


def _reflected(x: Tensor, size: Tensor) -> Tensor:
    """Positions outside of 0..size-1 come back from the border."""
    last = (size - 1).clamp_min(1).float()
    x = x.abs() % (2 * last)
    return torch.where(x > last, 2 * last - x, x)


def _colored(video: Tensor, uniform: Uniform, vary: Variation) -> Tensor:
    """Brightness, contrast and balance changed alike in all frames; `[B,T,H,W,3]` in [-1,1]."""
    b = len(video)
    c = vary.color
    gain = (1 + uniform(-c, c, b, 1, 1, 1, 1)) * (1 + uniform(-c / 3, c / 3, b, 1, 1, 1, 3))
    return (video * gain + uniform(-c, c, b, 1, 1, 1, 1)).clamp(-1, 1)
