"""Pictures with the statistics of natural ones, for all that a few hundred clips do not hold.

Noise whose power falls as 1/f² (Field 1987) has the soft, scale-free look of clouds and ground;
dead leaves (Lee, Mumford and Huang 2001), opaque discs whose radii follow a power law, have edges
and occlusion at every scale.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]


def textures(count: int, size: int, seed: int = 0) -> dict[str, Picture]:
    """`count` pictures uint8 `[size,size,3]` by name, every second one dead leaves."""
    found = {}
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        kind = ("noise", "leaves")[i % 2]
        found[f"{kind}-{i}"] = _noise(rng, size) if i % 2 == 0 else _leaves(rng, size)
    return found


def _noise(rng: np.random.Generator, size: int) -> Picture:
    """Three channels of 1/f noise, mixed so that colours vary less than brightness."""
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    f[0, 0] = 1.0
    slope = rng.uniform(0.9, 1.6)  # of the amplitude
    spectrum = np.fft.rfft2(rng.standard_normal((3, size, size))) / f**slope
    spectrum[:, 0, 0] = 0
    planes = np.fft.irfft2(spectrum, s=(size, size))
    planes /= planes.std((1, 2), keepdims=True)
    mixed = planes[:1] + rng.uniform(0.1, 0.6) * planes[[1, 2, 1]] * [[[1]], [[1]], [[-1]]]
    level = rng.uniform(0.25, 0.75, (3, 1, 1))
    picture = level + rng.uniform(0.08, 0.25) * mixed
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)


def _leaves(rng: np.random.Generator, size: int) -> Picture:
    """Discs and half-planes of discs, shaded, the largest painted first."""
    picture = np.empty((size, size, 3), np.float32)
    picture[:] = rng.uniform(0.1, 0.9, 3)
    palette = rng.uniform(0, 1, (int(rng.integers(3, 9)), 3)) * 0.8 + 0.1
    smallest, largest = 0.015 * size, 0.4 * size
    u = rng.uniform(0, 1, 220)
    # p(r) ~ r^-3 between the two.
    radii = (smallest**-2 + u * (largest**-2 - smallest**-2)) ** -0.5
    for r in np.sort(radii)[::-1]:
        cx, cy = rng.uniform(-r, size + r, 2)
        x0, x1 = max(0, int(cx - r) - 1), min(size, int(cx + r) + 2)
        y0, y1 = max(0, int(cy - r) - 1), min(size, int(cy + r) + 2)
        if x0 >= x1 or y0 >= y1:
            continue
        dx, dy = np.arange(x0, x1) - cx, np.arange(y0, y1)[:, None] - cy
        cover = np.clip(r - np.hypot(dx, dy) + 0.5, 0, 1).astype(np.float32)[..., None]
        slope = rng.normal(0, 0.25, 2) / r
        light = 1 + (dx * slope[0] + dy * slope[1]).astype(np.float32)[..., None]
        color = palette[rng.integers(len(palette))] + rng.normal(0, 0.06, 3)
        part = picture[y0:y1, x0:x1]
        part += cover * (light * color.astype(np.float32) - part)
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
