"""Writes HEIC and AVIF files of any structure: tiles, transparency, turned and cropped."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

Box = tuple[bytes, bytes]  # kind, content
CODECS = {"hvc1": ("libx265", b"hvcC"), "av01": ("libsvtav1", b"av1C")}
OPTIONS: dict[str, dict[str, str]] = {
    "hvc1": {"x265-params": "log-level=none:bframes=0", "crf": "8"},
    "av01": {"crf": "8", "preset": "10"},
}


def box(kind: bytes, *content: bytes) -> bytes:
    data = b"".join(content)
    return struct.pack(">I4s", 8 + len(data), kind) + data


def full(kind: bytes, version: int, flags: int, *content: bytes) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags), *content)


DEPTH = full(b"pixi", 0, 0, b"\3\10\10\10")


def coded(pixels: np.ndarray, codec: str, folder: Path) -> tuple[bytes, bytes]:
    """uint8 RGB as one picture: (the box with the decoder's setup, the data); BT.601, limited."""
    encoder, setup = CODECS[codec]
    if encoder not in av.codecs_available:
        pytest.skip(f"PyAV {av.__version__} has no {encoder}")
    path = folder / "tile.mp4"
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(encoder, rate=1)
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], "yuv420p"
        stream.options = OPTIONS[codec]
        picture = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
        picture.pts, picture.time_base = 0, Fraction(1, 1)
        out.mux(stream.encode(picture))
        out.mux(stream.encode())
    data = path.read_bytes()
    at = data.index(setup) - 4
    size = int.from_bytes(data[at : at + 4], "big")
    with av.open(str(path)) as container:
        return data[at : at + size], bytes(next(container.demux(video=0)))


@dataclass
class Heif:
    """Items are added in the order of the file; `write` makes the file."""

    codec: str
    folder: Path
    items: list[tuple[bytes, bytes]] = field(default_factory=list)  # kind, data
    properties: list[bytes] = field(default_factory=list)
    of_item: list[list[int]] = field(default_factory=list)
    references: list[bytes] = field(default_factory=list)

    def add(self, kind: bytes, data: bytes, *properties: bytes) -> int:
        indices = []
        for p in properties:
            if p not in self.properties:
                self.properties.append(p)
            needed = 0x80 * (p[4:8] in (b"irot", b"imir", b"clap", b"av1C", b"hvcC"))
            indices.append(self.properties.index(p) + 1 | needed)
        self.items.append((kind, data))
        self.of_item.append(indices)
        return len(self.items)  # its id

    def picture(self, pixels: np.ndarray, *properties: bytes) -> int:
        setup, data = coded(pixels, self.codec, self.folder)
        size = full(b"ispe", 0, 0, struct.pack(">II", pixels.shape[1], pixels.shape[0]))
        return self.add(self.codec.encode(), data, size, DEPTH, setup, *properties)

    def grid(self, pixels: np.ndarray, tile: int, *properties: bytes) -> int:
        """As tiles of `tile` px, the last ones filled up with the edge."""
        h, w = pixels.shape[:2]
        rows, columns = -(-h // tile), -(-w // tile)
        padded = np.pad(pixels, [(0, rows * tile - h), (0, columns * tile - w), (0, 0)], "edge")
        places = [(r * tile, c * tile) for r in range(rows) for c in range(columns)]
        tiles = [self.picture(padded[y : y + tile, x : x + tile]) for y, x in places]
        layout = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, w, h)
        size = full(b"ispe", 0, 0, struct.pack(">II", w, h))
        item = self.add(b"grid", layout, size, DEPTH, *properties)
        self.refer(b"dimg", item, *tiles)
        return item

    def refer(self, kind: bytes, item: int, *to: int) -> None:
        self.references.append(box(kind, struct.pack(f">HH{len(to)}H", item, len(to), *to)))

    def write(self, path: Path, primary: int) -> Path:
        brand = {"hvc1": b"heic", "av01": b"avif"}[self.codec]
        kind = box(b"ftyp", brand, bytes(4), b"mif1", brand, b"miaf")
        infos = [
            full(b"infe", 2, 0, struct.pack(">HH", i, 0), name, b"\0")
            for i, (name, _) in enumerate(self.items, 1)
        ]
        associations = b"".join(
            struct.pack(">HB", i, len(of)) + bytes(of) for i, of in enumerate(self.of_item, 1)
        )

        def meta(start: int) -> bytes:
            places, at = b"", start
            for i, (_, data) in enumerate(self.items, 1):
                places += struct.pack(">HHHHII", i, 0, 0, 1, at, len(data))
                at += len(data)
            count = struct.pack(">H", len(self.items))
            return full(
                b"meta", 0, 0,
                full(b"hdlr", 0, 0, bytes(4), b"pict", bytes(13)),
                full(b"pitm", 0, 0, struct.pack(">H", primary)),
                full(b"iloc", 1, 0, b"\x44\x00", count, places),
                full(b"iinf", 0, 0, count, *infos),
                box(
                    b"iprp", box(b"ipco", *self.properties),
                    full(b"ipma", 0, 0, struct.pack(">I", len(self.items)), associations),
                ),
                full(b"iref", 0, 0, *self.references),
            )  # fmt: skip

        head = len(kind) + len(meta(0)) + 8
        path.write_bytes(kind + meta(head) + box(b"mdat", *(data for _, data in self.items)))
        return path
