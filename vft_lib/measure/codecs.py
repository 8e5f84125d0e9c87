"""What an ordinary video codec makes of a clip at a given number of bytes.

H.264 (x264) and AV1 (SVT-AV1 or libaom, whichever PyAV brings), each at slow settings. Bytes are
those of the raw stream, without a container, and without what a decoder does not need: x264's own
note of its settings, AV1's temporal delimiters. What is counted is what is decoded. RGB becomes
YUV 4:2:0 and RGB again by the same exact conversion as in the clips that the program writes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from ..errors import VftError
from ..video.frames import fit_frame


@dataclass(frozen=True)
class Codec:
    """`scale`: the quality factors from the best to the worst, which gives the fewest bytes.
    `least`: the smallest side of a picture in pixels that it takes."""

    name: str
    encoder: str
    decoder: str
    scale: range
    options: dict[str, str]
    least: int

    @property
    def line(self) -> str:
        """Which encoder, and how it was set."""
        options = ", ".join(f"{k} {v}" for k, v in self.options.items())
        return f"{self.encoder} ({options})"


@dataclass(frozen=True)
class Coded:
    """A clip after a codec: `frames` as they are decoded, `bytes` of the stream, the quality factor
    and the `side` of the pictures in it, enlarged again in `frames`."""

    frames: list[np.ndarray]
    bytes: int
    factor: int
    side: int


H264 = Codec(
    "H.264", "libx264", "h264", range(10, 52),
    {"preset": "veryslow", "tune": "psnr", "x264-params": "keyint=infinite:threads=1"}, 16,
)  # fmt: skip
AV1 = (
    Codec(
        "AV1", "libsvtav1", "libdav1d", range(10, 64),
        {"preset": "4", "svtav1-params": "lp=1:keyint=-1"}, 64,
    ),
    Codec("AV1", "libaom-av1", "libdav1d", range(10, 64), {"cpu-used": "3", "b": "0"}, 16),
)  # fmt: skip


# px; up to this side x264's macroblock tree reads memory that it never wrote: now and then the same
# frames give another stream. (Without it, 0.3 dB at equal bytes are lost at most.)
UNSTEADY = 64


def available() -> list[Codec]:
    """H.264 and AV1, as far as PyAV is there and can encode and decode them."""
    try:
        from av import codecs_available as here
    except ImportError:
        return []
    found = [c for c in (H264, *AV1) if c.encoder in here and c.decoder in here]
    return [c for i, c in enumerate(found) if c.name not in {x.name for x in found[:i]}]


@dataclass
class Encoded:
    """One clip of square frames, uint8 `[S,S,3]`, at any number of bytes: what has been tried is
    kept, as the search for several numbers tries much the same."""

    codec: Codec
    frames: Sequence[np.ndarray]
    fps: float
    tried: dict[tuple[int, int], list[bytes]] = field(default_factory=dict)
    found: dict[tuple[int, int], Coded] = field(default_factory=dict)

    def at(self, limit: int) -> Coded:
        """The largest pictures (whole, half or a quarter of the side) whose stream fits `limit`
        bytes, at the best quality that fits; or the smallest stream there is, if none fits. For
        the same stream the same object is returned."""
        scale = self.codec.scale
        least = {s: self._bytes(s, scale[-1]) for s in self._sides()}
        side = next(
            (s for s, size in least.items() if size <= limit), min(least, key=least.__getitem__)
        )
        low, high = 0, len(scale) - 1  # scale[high] fits, or is the last resort
        while low < high:
            middle = (low + high) // 2
            if self._bytes(side, scale[middle]) <= limit:
                high = middle
            else:
                low = middle + 1
        if (side, scale[high]) not in self.found:
            self.found[side, scale[high]] = self._coded(side, scale[high])
        return self.found[side, scale[high]]

    def _coded(self, side: int, factor: int) -> Coded:
        packets, full = self._packets(side, factor), self.frames[0].shape[:2]
        frames = [fit_frame(f, full, "stretch") for f in _decode(self.codec, packets)]
        if len(frames) != len(self.frames):
            raise VftError(f"{self.codec.name}: {len(frames)} of {len(self.frames)} frames decoded")
        return Coded(frames, sum(map(len, packets)), factor, side)

    def _sides(self) -> list[int]:
        side = self.frames[0].shape[0]
        return [s for s in (side, side // 2, side // 4) if s >= self.codec.least or s == side]

    def _bytes(self, side: int, factor: int) -> int:
        return sum(map(len, self._packets(side, factor)))

    def _packets(self, side: int, factor: int) -> list[bytes]:
        if (side, factor) not in self.tried:
            small = [fit_frame(f, (side, side), "stretch") for f in self.frames]
            self.tried[side, factor] = _encode(self.codec, small, factor, self.fps)
        return self.tried[side, factor]


def _encode(codec: Codec, frames: Sequence[np.ndarray], factor: int, fps: float) -> list[bytes]:
    import av

    from ..video.pixels import Yuv420

    os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 else prints its settings for every clip
    rate = Fraction(fps).limit_denominator(1000)
    context: Any = av.CodecContext.create(codec.encoder, "w")
    context.height, context.width = frames[0].shape[:2]
    context.pix_fmt, context.time_base, context.framerate = "yuv420p", 1 / rate, rate
    context.thread_count = 1  # as many as there are would change the bytes
    context.options = {"crf": str(factor), **codec.options}
    if codec.encoder == "libx264" and context.width <= UNSTEADY:
        context.options |= {"x264-params": codec.options["x264-params"] + ":mbtree=0"}
    packets, yuv = [], Yuv420()
    for i, pixels in enumerate(frames):
        frame = yuv(pixels)
        frame.pts, frame.time_base = i, 1 / rate
        packets += context.encode(frame)
    packets += context.encode(None)
    needed = _needed_h264 if codec.decoder == "h264" else _needed_av1
    return [needed(bytes(p)) for p in packets]


def _decode(codec: Codec, packets: Sequence[bytes]) -> list[np.ndarray]:
    import av

    from ..video.pixels import Converter

    context: Any = av.CodecContext.create(codec.decoder, "r")
    frames = [f for p in packets for f in context.decode(av.Packet(p))] + context.decode(None)
    rgb = Converter(context, lambda kind, where: None, None)
    for frame in frames:
        frame.colorspace = 1  # BT.709: the stream, which saves the bytes, does not say so
    return [rgb(frame) for frame in frames]


def _needed_h264(packet: bytes) -> bytes:
    """Without supplemental information and delimiters: types 6 and 9 of ITU-T H.264, table 7-1."""
    units = re.split(b"\x00\x00\x00?\x01", packet)[1:]
    return b"".join(b"\x00\x00\x01" + u for u in units if u[0] & 31 not in (6, 9))


def _needed_av1(packet: bytes) -> bytes:
    """Without temporal delimiters, OBU type 2 (AV1 specification, 5.3 and 6.2.2)."""
    out, at = b"", 0
    while at < len(packet):
        start, header = at, packet[at]
        at += 2 if header & 4 else 1  # an extension follows
        size = shift = 0
        while True:  # LEB128
            byte = packet[at]
            size, shift, at = size | (byte & 127) << shift, shift + 7, at + 1
            if byte < 128:
                break
        at += size
        if header >> 3 & 15 != 2:
            out += packet[start:at]
    return out
