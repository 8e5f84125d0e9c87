"""A procedural world of short captioned clips, deterministic from a seed.

A scene is one main object in front of up to two small ones, a two-colour background and a
camera. World coordinates span [-1, 1] across the frame (x to the right, y downwards) and time
is counted in frames, so a scene looks the same at any size and moves at the same speed for any
number of frames. All random numbers are drawn before anything is overridden or rendered, so
asking for another colour, shape or motion leaves the rest of the scene as it was.

Per-pixel arithmetic uses only operations that IEEE 754 rounds exactly (no sine, no matrix
product), which keeps a clip's bytes the same from one machine to the next.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .captions import describe

Array = npt.NDArray[Any]

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.10, 0.10),
    "orange": (1.00, 0.55, 0.05),
    "yellow": (1.00, 0.92, 0.10),
    "green": (0.10, 0.72, 0.18),
    "cyan": (0.10, 0.88, 0.92),
    "blue": (0.12, 0.28, 0.95),
    "purple": (0.58, 0.14, 0.85),
    "pink": (1.00, 0.48, 0.76),
    "white": (1.00, 1.00, 1.00),
    "brown": (0.52, 0.27, 0.08),
}
"""Object colours: name -> RGB in 0..1."""

BACKGROUND_COLORS: dict[str, tuple[float, float, float]] = {
    "black": (0.04, 0.04, 0.06),
    "dark gray": (0.20, 0.21, 0.23),
    "gray": (0.45, 0.46, 0.48),
    "silver": (0.70, 0.71, 0.73),
    "forest": (0.06, 0.27, 0.20),
    "slate": (0.32, 0.43, 0.55),
    "sand": (0.80, 0.73, 0.56),
    "sage": (0.56, 0.68, 0.54),
    "lavender": (0.68, 0.64, 0.82),
    "sky": (0.54, 0.72, 0.88),
    "plum": (0.27, 0.10, 0.30),
}
"""Background colours, muted so that each is far from every object colour (RGB in 0..1)."""

SHAPES: tuple[str, ...] = (
    "ball", "square", "triangle", "star", "ring", "cross", "heart", "diamond",
)  # fmt: skip
TEXTURES: tuple[str, ...] = ("plain", "striped", "checkered", "dotted", "shaded")
BACKGROUNDS: tuple[str, ...] = (
    "plain", "gradient", "clouds", "spotlight", "horizon", "checkerboard", "stripes",
)  # fmt: skip
MOTIONS: tuple[str, ...] = (
    "still", "move_left", "move_right", "move_up", "move_down", "move_diagonal",
    "bounce_horizontal", "bounce_vertical", "circle_clockwise", "circle_counterclockwise",
    "spin", "grow", "shrink", "pulse", "zigzag", "shake",
)  # fmt: skip
CAMERAS: tuple[str, ...] = ("static", "pan_left", "pan_right", "zoom_in", "zoom_out")

_TEXTURE_WEIGHTS = (0.32, 0.2, 0.13, 0.13, 0.22)
_BACKGROUND_WEIGHTS = (0.22, 0.24, 0.18, 0.14, 0.14, 0.04, 0.04)
# A camera move over a background that does not change under it would look like a motion of the
# object, so moving cameras get only backgrounds that show the move.
_MOVING_WEIGHTS = (0.0, 0.0, 0.45, 0.25, 0.0, 0.14, 0.16)
_CAMERA_WEIGHTS = (0.65, 0.0875, 0.0875, 0.0875, 0.0875)
_MIDDLE = 8.0  # frame at which paths and camera moves are centred: the middle of 17 frames
_BLEND = 6.0  # frames in which one act passes into the next
ACTS = (0.4, 0.3, 0.3)
"""How often a long clip has one, two or three acts."""
_NOISE = 8  # value-noise lattice points per side; the lattice repeats
_NOISE_CELL = 0.55  # world units between lattice points


@dataclass(frozen=True)
class Clip:
    """A rendered clip. `video` is uint8 [T, H, W, 3]; the names describe the main object."""

    video: npt.NDArray[np.uint8]
    caption: str
    color: str
    shape: str
    texture: str
    motion: str
    background: str
    camera: str
    n_objects: int


@dataclass(frozen=True)
class _Object:
    """One object; `radius`, `x`, `y` in world units at the middle frame, `dice` in 0..1, `then`
    the motions after the first."""

    color: str
    shape: str
    texture: str
    motion: str
    radius: float
    x: float
    y: float
    tilt: float
    dice: tuple[float, float, float, float]
    then: tuple[str, ...] = ()

    @property
    def sign(self) -> float:
        """Which way a motion that has two mirror images goes: +1 or -1."""
        return 1.0 if self.dice[3] < 0.5 else -1.0


@dataclass(frozen=True)
class _Background:
    kind: str
    colors: tuple[str, str]
    angle: float
    x: float
    y: float
    lattice: npt.NDArray[np.float32]


# --- drawing the scene ------------------------------------------------------------------------


def _pick(rng: np.random.Generator, names: tuple[str, ...], weights: tuple[float, ...] = ()) -> str:
    if not weights:
        return names[int(rng.integers(len(names)))]
    return names[int(rng.choice(len(names), p=weights))]


def _dice(rng: np.random.Generator) -> tuple[float, float, float, float]:
    a, b, c, d = (float(v) for v in rng.random(4))
    return a, b, c, d


def _draw_main(rng: np.random.Generator) -> _Object:
    return _Object(
        color=_pick(rng, tuple(COLORS)),
        shape=_pick(rng, SHAPES),
        texture=_pick(rng, TEXTURES, _TEXTURE_WEIGHTS),
        motion=_pick(rng, MOTIONS),
        radius=float(rng.uniform(0.40, 0.60)),
        x=float(rng.uniform(-0.35, 0.35)),
        y=float(rng.uniform(-0.35, 0.35)),
        tilt=float(rng.uniform(-0.22, 0.22)),
        dice=_dice(rng),
    )


def _draw_distractor(rng: np.random.Generator, side: float, taken: str) -> _Object:
    """A small object near the `side` (-1 left, 1 right), in another colour than `taken`."""
    return _Object(
        color=_pick(rng, tuple(name for name in COLORS if name != taken)),
        shape=_pick(rng, SHAPES),
        texture="plain",
        motion=_pick(rng, ("still", "sway", "bob"), (0.5, 0.25, 0.25)),
        radius=float(rng.uniform(0.11, 0.17)),
        x=side * float(rng.uniform(0.5, 0.78)),
        y=float(rng.uniform(-0.78, 0.78)),
        tilt=float(rng.uniform(-0.22, 0.22)),
        dice=_dice(rng),
    )


def _draw_background(rng: np.random.Generator, moving: bool) -> _Background:
    kind = _pick(rng, BACKGROUNDS, _MOVING_WEIGHTS if moving else _BACKGROUND_WEIGHTS)
    first = _pick(rng, tuple(BACKGROUND_COLORS))
    distance = {
        name: math.dist(BACKGROUND_COLORS[first], rgb) for name, rgb in BACKGROUND_COLORS.items()
    }
    second = _pick(rng, tuple(name for name, d in distance.items() if 0.3 < d < 1.0))
    # Stripes stay within 50 degrees of upright, so that a sideways pan moves them.
    angle = float(rng.uniform(-0.87, 0.87)) if kind == "stripes" else float(rng.uniform(0, 6.28))
    return _Background(
        kind=kind,
        colors=(first, second),
        angle=angle,
        x=float(rng.uniform(-0.5, 0.5)),
        y=float(rng.uniform(0.05, 0.55)),
        lattice=rng.random((_NOISE, _NOISE), dtype=np.float32),
    )


# --- motion -----------------------------------------------------------------------------------


def _triangle_wave(s: Array) -> Array:
    """Zigzag through -1..1 with period 1, starting at 0 and rising."""
    return 1.0 - 4.0 * np.abs((s + 0.25) % 1.0 - 0.5)


def _path(obj: _Object, frames: int) -> tuple[Array, Array, Array, Array]:
    """Centre x and y, radius (world units) and angle (radians) per frame, each float64 [T]. One
    motion goes on for as long as the clip lasts; several share it, each centred in its part."""
    t = np.arange(frames, dtype=np.float64)
    if not obj.then:
        return _act(obj, t - _MIDDLE)
    length = frames / (1 + len(obj.then))
    path = _act(obj, t - (length - 1) / 2)
    for i, motion in enumerate(obj.then, 1):
        next_act = _act(replace(obj, motion=motion), t - (i * length + (length - 1) / 2))
        into = np.clip((t - i * length) / _BLEND + 0.5, 0, 1)
        into = into * into * (3 - 2 * into)
        x, y, radius, angle = (old + into * (new - old) for old, new in zip(path, next_act))
        path = x, y, radius, angle
    return path


def _act(obj: _Object, t: Array) -> tuple[Array, Array, Array, Array]:
    """The path of the object's (first) motion, `t` frames from its middle [T]."""
    frames = len(t)
    a, b, c, _ = obj.dice
    x, y = np.full(frames, obj.x), np.full(frames, obj.y)
    scale, angle = np.ones(frames), np.full(frames, obj.tilt)
    step = (1.2 + 0.5 * a) / 16  # 0.6 to 0.85 of the frame width in 17 frames
    room = 0.95 - obj.radius
    # What leaves the frame comes back from the other side, still going the same way.
    reach = 1.3 + obj.radius

    def cross(start: float, velocity: float) -> Array:
        return (0.3 * start + velocity * t + reach) % (2 * reach) - reach

    motion = obj.motion
    if motion in ("move_left", "move_right"):
        x = cross(obj.x, step if motion == "move_right" else -step)
    elif motion in ("move_up", "move_down"):
        y = cross(obj.y, step if motion == "move_down" else -step)
    elif motion == "move_diagonal":  # always to the right; the sign says down or up
        x = cross(obj.x, 0.9 * step)
        y = cross(obj.y, 0.9 * step * obj.sign)
    elif motion == "bounce_horizontal":
        x = room * _triangle_wave(t / (11 + 5 * a) + b)
    elif motion == "bounce_vertical":  # hops off the floor along parabolas
        hop = (t / (8 + 4 * a) + b) % 1.0
        y = room - min(0.8 + 0.3 * c, 2 * room) * 4 * hop * (1 - hop)
    elif motion in ("circle_clockwise", "circle_counterclockwise"):
        turn = 2 * math.pi * (t / (14 + 6 * a) + b)
        orbit = min(0.38 + 0.17 * c, room)
        x = 0.3 * obj.x + orbit * np.cos(turn)
        y = 0.3 * obj.y + orbit * np.sin(turn) * (1 if motion == "circle_clockwise" else -1)
    elif motion == "spin":
        angle = angle + obj.sign * (0.13 + 0.13 * a) * t
    elif motion in ("grow", "shrink"):
        rate = (0.7 + 0.25 * a) / 16
        scale = np.clip(1 + (rate if motion == "grow" else -rate) * t, 0.25, 2.2)
        x, y = 0.6 * x, 0.6 * y
    elif motion == "pulse":
        scale = 1 + (0.3 + 0.1 * c) * np.sin(2 * math.pi * (t / (7 + 3 * a) + b))
    elif motion == "zigzag":
        x = cross(obj.x, step * obj.sign)
        y = 0.3 * obj.y + (0.34 + 0.1 * c) * _triangle_wave(t / (6 + 2 * a) + b)
    elif motion == "shake":
        jolt = 0.09 + 0.05 * c
        x = x + jolt * np.sin(2 * math.pi * (t / (3.2 + 0.6 * a) + b))
        y = y + 0.5 * jolt * np.sin(2 * math.pi * (t / 2.7 + c))
    elif motion == "sway":
        x = x + 0.12 * np.sin(2 * math.pi * (t / (16 + 8 * a) + b))
    elif motion == "bob":
        y = y + 0.12 * np.sin(2 * math.pi * (t / (16 + 8 * a) + b))
    return x, y, obj.radius * scale, angle


def _camera(camera: str, frames: int) -> tuple[Array, Array]:
    """Sideways offset (world units) and zoom per frame, each float64 [T]; [1] when static."""
    if camera == "static":
        return np.zeros(1), np.ones(1)
    # The camera comes to rest after 25 frames: by then it is far enough from the main object.
    t = np.minimum(np.arange(frames, dtype=np.float64) - _MIDDLE, 16.0)
    if camera.startswith("pan"):
        return t * (0.025 if camera == "pan_right" else -0.025), np.ones(frames)
    return np.zeros(frames), 1.02 ** (t if camera == "zoom_in" else -t)


# --- rendering --------------------------------------------------------------------------------


def _hypot(u: Array, v: Array) -> Array:
    length: Array = np.sqrt(u * u + v * v)
    return length


def _shape_distance(shape: str, u: Array, v: Array) -> Array:
    """Signed distance to the outline (negative inside) in units of the radius; v points up."""
    a, b = np.abs(u), np.abs(v)
    if shape == "ball":
        return _hypot(u, v) - 1.0
    if shape == "square":
        return np.maximum(a, b) - 0.84
    if shape == "triangle":
        return np.maximum(0.8660254 * a + 0.5 * v, -v) - 0.58
    if shape == "ring":
        return np.abs(_hypot(u, v) - 0.74) - 0.26
    if shape == "cross":
        return np.minimum(np.maximum(a - 1.0, b - 0.32), np.maximum(a - 0.32, b - 1.0))
    if shape == "heart":  # a square standing on its corner under two discs
        lobes = _hypot(a - 0.42, v - 0.32) - 0.594
        return np.minimum((a + np.abs(v + 0.1) - 0.84) * 0.70710678, lobes)
    if shape == "diamond":
        rhombus: Array = (a / 0.62 + b - 1.08) * 0.527
        return rhombus
    # star: fold the plane onto half of one of the five points, then measure to its edge
    kx, ky = 0.80901699, -0.58778525
    fold = 2 * np.maximum(kx * a + ky * v, 0)
    p, q = a - fold * kx, v - fold * ky
    fold = 2 * np.maximum(ky * q - kx * p, 0)
    p, q = np.abs(p + fold * kx), q - fold * ky - 1.12
    ex, ey = 0.5 * -ky, 0.5 * kx - 1.0
    h = np.clip((p * ex + q * ey) / (ex * ex + ey * ey), 0, 1.12)
    distance: Array = _hypot(p - ex * h, q - ey * h) * np.sign(q * ex - p * ey)
    return distance


def _bands(s: Array, period: float, sharp: Array | float) -> Array:
    """Smooth-edged square wave between -1 and 1; `sharp` is pixels per unit of s."""
    return np.clip((np.abs(s / period % 1.0 - 0.5) - 0.25) * (2 * period * sharp), -1, 1)


def _texture_light(texture: str, u: Array, v: Array, sharp: Array) -> Array:
    """How bright the colour is at each pixel, 0..1; a factor on the object's RGB."""
    if texture == "striped":
        return 0.76 + 0.24 * _bands(v + 0.1, 0.7, sharp)
    if texture == "checkered":
        return 0.76 + 0.24 * _bands(u, 1.2, sharp) * _bands(v, 1.2, sharp)
    if texture == "dotted":
        spot = _hypot((u / 0.75) % 1.0 - 0.5, (v / 0.75) % 1.0 - 0.5) - 0.28
        return 0.76 + 0.24 * np.clip(spot * (2 * 0.75 * sharp), -1, 1)
    return 1.0 - 0.55 * np.clip(_hypot(u + 0.4, v - 0.45) / 1.7 - 0.2, 0, 0.9)  # shaded


def _background_video(bg: _Background, x: Array, y: Array, sharp: float) -> Array:
    """The background at world coordinates x [T, 1, W], y [T, H, 1]: float32 [T, H, W, 3]."""
    across = x * np.float32(math.cos(bg.angle)) + y * np.float32(math.sin(bg.angle))
    mix = np.zeros_like(across)
    if bg.kind == "gradient":
        mix = np.clip(0.5 + across / 2.4, 0, 1)
    elif bg.kind == "clouds":
        mix = _noise(bg.lattice, x / _NOISE_CELL, y / _NOISE_CELL)
    elif bg.kind == "spotlight":
        fall = np.clip(_hypot(x - bg.x, y - bg.y + 0.3) / 1.2, 0, 1)
        mix = fall * fall * (3 - 2 * fall)
    elif bg.kind == "horizon":
        mix = np.clip(0.5 + (y - bg.y) * sharp, 0, 1) + 0 * x
    elif bg.kind == "checkerboard":
        mix = 0.5 + 0.5 * _bands(x - bg.x, 1.0, sharp) * _bands(y - bg.y, 1.0, sharp)
    elif bg.kind == "stripes":
        mix = 0.5 + 0.5 * _bands(across - bg.x, 0.9, sharp)
    first, second = (np.array(BACKGROUND_COLORS[c], np.float32) for c in bg.colors)
    return first + mix[..., None] * (second - first)


def _noise(lattice: Array, x: Array, y: Array) -> Array:
    """Smooth value noise in 0..1 at lattice coordinates x [T, 1, W] and y [T, H, 1]."""
    ix, iy = np.floor(x), np.floor(y)
    fx, fy = x - ix, y - iy
    fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
    x0, y0 = ix.astype(np.intp) % _NOISE, iy.astype(np.intp) % _NOISE
    x1, y1 = (x0 + 1) % _NOISE, (y0 + 1) % _NOISE
    top = lattice[y0, x0] + fx * (lattice[y0, x1] - lattice[y0, x0])
    bottom = lattice[y1, x0] + fx * (lattice[y1, x1] - lattice[y1, x0])
    noise: Array = np.clip((top + fy * (bottom - top)) * 1.4 - 0.2, 0, 1)
    return noise


def _paint(canvas: Array, obj: _Object, pan: Array, zoom: Array) -> None:
    """Draw `obj` over canvas, float32 [T, S, S, 3], in place."""
    frames, size = canvas.shape[:2]
    x, y, radius, angle = _path(obj, frames)
    # To pixels; only a window that holds the object is computed, the same size in every frame.
    x, y = ((x - pan) * zoom + 1) * (size / 2), (y * zoom + 1) * (size / 2)
    radius = radius * zoom * (size / 2)
    window = min(size, math.ceil(2 * 1.2 * float(radius.max())) + 2)
    offsets = np.arange(window)
    cols, rows = (
        np.clip(np.floor(c - window / 2).astype(np.intp), 0, size - window)[:, None] + offsets
        for c in (x, y)
    )
    dx = ((cols + 0.5 - x[:, None]) / radius[:, None]).astype(np.float32)[:, None, :]
    dy = ((y[:, None] - rows - 0.5) / radius[:, None]).astype(np.float32)[:, :, None]
    cos, sin = (f(angle).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    u, v = dx * cos - dy * sin, dx * sin + dy * cos
    sharp = radius.astype(np.float32)[:, None, None]
    alpha = np.clip(0.5 - _shape_distance(obj.shape, u, v) * sharp, 0, 1)[..., None]
    rgb = np.array(COLORS[obj.color], np.float32)
    paint = rgb
    if obj.texture != "plain":
        paint = _texture_light(obj.texture, u, v, sharp)[..., None] * rgb
    where = (np.arange(frames)[:, None, None], rows[:, :, None], cols[:, None, :])
    under = canvas[where]
    canvas[where] = under + alpha * (paint - under)


# --- the clip ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """Everything that was drawn for a clip, before a pixel of it is rendered."""

    main: _Object
    smaller: tuple[_Object, ...]
    background: _Background
    camera: str
    wording: int
    """Seed of the caption's wording."""

    def caption(self, rng: np.random.Generator | None = None) -> str:
        """A caption; `rng` picks another wording than the scene's own."""
        main = self.main
        big = "big" if main.radius > 0.54 else "small" if main.radius < 0.46 else ""
        return describe(
            np.random.Generator(np.random.PCG64(self.wording)) if rng is None else rng,
            color=main.color,
            shape=main.shape,
            motion=main.motion,
            texture=main.texture,
            background=self.background.kind,
            background_colors=self.background.colors,
            camera=self.camera,
            heading=_heading(main),
            size_word="" if {"grow", "shrink", "pulse"} & {main.motion, *main.then} else big,
            others=tuple((obj.color, obj.shape) for obj in self.smaller),
            then=tuple((m, _heading(replace(main, motion=m))) for m in main.then),
        )

    def render(self, frames: int, size: int) -> npt.NDArray[np.uint8]:
        """uint8 [frames, size, size, 3], made for 8 frames per second."""
        if frames < 1:
            raise ValueError(f"frames is {frames}; it must be at least 1")
        if size < 16:
            raise ValueError(f"size is {size}; it must be at least 16 pixels")
        pan, zoom = _camera(self.camera, frames)
        pixels = (np.arange(size) + 0.5) * (2 / size) - 1
        x = (pixels / zoom[:, None] + pan[:, None]).astype(np.float32)[:, None, :]
        y = (pixels / zoom[:, None]).astype(np.float32)[:, :, None]
        still = _background_video(self.background, x, y, size / 2)
        canvas = np.array(np.broadcast_to(still, (frames, size, size, 3)), np.float32, order="C")
        for obj in (*self.smaller, self.main):
            _paint(canvas, obj, pan, zoom)
        return (canvas * 255 + 0.5).astype(np.uint8)

    def mask(self, frames: int, size: int) -> npt.NDArray[np.uint8]:
        """How much of each pixel the main object covers, uint8 [frames, size, size]; 255: all."""
        canvas = np.zeros((frames, size, size, 3), np.float32)
        white = replace(self.main, color="white", texture="plain")
        _paint(canvas, white, *_camera(self.camera, frames))
        return (canvas[..., 0] * 255 + 0.5).astype(np.uint8)


def _check(what: str, name: str, allowed: tuple[str, ...]) -> None:
    if name not in allowed:
        raise ValueError(f"unknown {what} {name!r}; it must be one of: {', '.join(allowed)}")


def _heading(obj: _Object) -> str:
    forward = obj.sign > 0
    if obj.motion == "move_diagonal":
        return "down to the right" if forward else "up to the right"
    if obj.motion == "zigzag":
        return "to the right" if forward else "to the left"
    return ""


def draw_scene(
    seed: int, *, color: str | None = None, shape: str | None = None, motion: str | None = None,
    then: tuple[str, ...] = (),
) -> Scene:  # fmt: skip
    """Draw the scene of `seed` (an integer >= 0). `color`, `shape` and `motion` replace what was
    drawn for the main object and leave the rest of the scene alone, with one exception: a plain
    ball or ring that spins becomes striped, because nobody could see it spin. `then`: motions that
    follow the first, in equal parts of the clip. Raises ValueError for an unknown name or
    seed < 0."""
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be at least 0")
    rng = np.random.Generator(np.random.PCG64(seed))
    main = _draw_main(rng)
    count = int(rng.choice(3, p=(0.5, 0.35, 0.15)))
    side = 1.0 if rng.random() < 0.5 else -1.0
    smaller = [_draw_distractor(rng, s, main.color) for s in (side, -side)][:count]
    camera = _pick(rng, CAMERAS, _CAMERA_WEIGHTS)
    background = _draw_background(rng, camera != "static")

    for what, name, allowed in (
        ("color", color, tuple(COLORS)),
        ("shape", shape, SHAPES),
        ("motion", motion, MOTIONS),
        *(("motion", name, MOTIONS) for name in then),
    ):
        if name is not None:
            _check(what, name, allowed)
    main = replace(
        main, color=color or main.color, shape=shape or main.shape, motion=motion or main.motion,
        then=then,
    )  # fmt: skip
    if (
        "spin" in (main.motion, *then)
        and main.shape in ("ball", "ring")
        and main.texture == "plain"
    ):
        main = replace(main, texture="striped")
    return Scene(main, tuple(smaller), background, camera, int(rng.integers(1 << 62)))


def draw_story(seed: int) -> Scene:
    """The scene of `seed` with one to three acts (`ACTS`), for clips of about ten seconds; its
    first act is :func:`draw_scene`'s motion."""
    scene = draw_scene(seed)
    rng = np.random.default_rng((1, seed))
    motions = [scene.main.motion]
    for _ in range(int(rng.choice(len(ACTS), p=ACTS))):
        motions.append(_pick(rng, tuple(m for m in MOTIONS if m != motions[-1])))
    return draw_scene(seed, then=tuple(motions[1:]))


def make_clip(
    seed: int,
    *,
    frames: int = 17,
    size: int = 64,
    color: str | None = None,
    shape: str | None = None,
    motion: str | None = None,
    then: tuple[str, ...] = (),
) -> Clip:
    """Draw, render and caption the scene of `seed`; see :func:`draw_scene`. Raises ValueError for
    an unknown name, frames < 1, size < 16 or seed < 0."""
    scene = draw_scene(seed, color=color, shape=shape, motion=motion, then=then)
    main = scene.main
    return Clip(
        video=scene.render(frames, size),
        caption=scene.caption(),
        color=main.color,
        shape=main.shape,
        texture=main.texture,
        motion=main.motion,
        background=scene.background.kind,
        camera=scene.camera,
        n_objects=1 + len(scene.smaller),
    )
