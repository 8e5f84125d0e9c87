"""HEIC and AVIF stills, which phones store as a grid of tiles (ISO/IEC 23008-12), with transparency
as a second picture. The file is read here, its coded pictures are decoded by FFmpeg's decoders:
FFmpeg's own reader gives the tiles without their places, and none before FFmpeg 7."""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from PIL import Image

from .frames import VideoError
from .pixels import Converter
from .shots import Matrix, Problem, Shot, Size, check_pixels, reduction, upright

_META = 1 << 22  # bytes; that of a picture of 300 tiles has 10,000
_CODED = 1 << 30  # bytes of all tiles together
_BOXES = 64  # at the top of a file: there are about four
_DECODERS = {  # by kind of item: the decoder, the property with its setup
    b"hvc1": ("hevc", b"hvcC"), b"hev1": ("hevc", b"hvcC"), b"av01": ("libdav1d", b"av1C"),
    b"avc1": ("h264", b"avcC"), b"jpeg": ("mjpeg", b"jpgC"),
}  # fmt: skip
Box = tuple[bytes, bytes]  # kind, content
_UPRIGHT: Matrix = (1, 0, 0, 1)
_COUNTERCLOCKWISE: tuple[Matrix, ...] = (_UPRIGHT, (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))


@dataclass(frozen=True)
class Coded:
    """A picture as a decoder takes it: the decoder's name, its setup, and where the data is: in the
    file (offset, length), or here."""

    decoder: str
    setup: bytes
    extents: tuple[tuple[int, int], ...]
    data: bytes = b""


@dataclass(frozen=True)
class Still:
    """A picture of `size` made of `tiles` of `tile_size` in rows of `columns`; of it the `crop`
    (top, left, height, width) is shown, turned by `matrix`. `colour`: transfer, primaries and
    matrix of H.273 and whether the range is full, if the file tells beside the coded pictures."""

    size: Size
    tiles: tuple[Coded, ...]
    tile_size: Size
    columns: int
    crop: tuple[int, int, int, int]
    matrix: Matrix = _UPRIGHT
    colour: tuple[int, int, int, bool] | None = None
    alpha: Still | None = None


def read_still(file: Path) -> Still | None:
    """What the main picture of a HEIF file is made of; None for files of another kind, those with a
    track of pictures included. Raises VideoError for kinds of pictures that are not read."""
    meta = _meta(file)
    if meta is None:
        return None
    try:
        if dict(_boxes(meta[4:]))[b"hdlr"][8:12] != b"pict":
            return None
        items = _Items(meta)
        return items.still(items.primary, file)
    except (struct.error, LookupError, ValueError, ArithmeticError) as error:
        raise VideoError(
            f"{file} is damaged or of a kind of HEIF that is not read; save it as JPEG or PNG."
        ) from error


def still_shots(
    still: Still, file: Path, problem: Problem, size: Size | None = None
) -> Generator[Shot, None, None]:
    """The picture, with a duration of 0; a large one comes smaller, yet larger than `size`. Tiles
    that cannot be decoded stay black and are told."""
    pixels = _assembled(still, file, problem)
    if still.alpha is not None:
        opacity = _assembled(still.alpha, file, problem)[: len(pixels), : pixels.shape[1], :1]
        for top in range(0, len(opacity), 256):  # little memory beside the picture
            rows = pixels[top : top + 256, : opacity.shape[1]]
            shown = (rows.astype(np.uint16) * opacity[top : top + 256][: len(rows)] + 127) // 255
            rows[:] = shown.astype(np.uint8)
    top, left, height, width = still.crop
    pixels = pixels[top : top + height, left : left + width]
    factor = reduction((height, width), size)
    if factor > 1:  # in bands, to need no second picture of that size
        bands = (Image.fromarray(pixels[y : y + factor]) for y in range(0, height, factor))
        pixels = np.concatenate([np.array(band.reduce(factor)) for band in bands])
    yield Shot(0.0, 0.0, partial(np.array, upright(pixels, still.matrix)))


def _assembled(still: Still, file: Path, problem: Problem) -> np.ndarray:
    pixels = np.zeros((*still.size, 3), np.uint8)
    transfer, primaries, matrix, full = still.colour or (2, 2, 2, False)
    told = SimpleNamespace(color_trc=transfer, color_primaries=primaries)
    convert, missing = Converter(told, problem, None), 0
    for index, tile in enumerate(still.tiles):
        frame = _decoded(tile, still.tile_size, file)
        if frame is None:
            missing += 1
            continue
        if matrix != 2:  # it counts more than what the codec says
            frame.colorspace, frame.color_range = matrix, 2 if full else 1
        part = convert(frame)[: still.tile_size[0], : still.tile_size[1]]
        top = index // still.columns * still.tile_size[0]
        left = index % still.columns * still.tile_size[1]
        space = pixels[top : top + part.shape[0], left : left + part.shape[1]]
        space[:] = part[: space.shape[0], : space.shape[1]]
    if missing == len(still.tiles):
        raise VideoError(
            f"No picture of {file} can be decoded: it is damaged, or needs a newer PyAV (pip"
            " install -U av); or save it as JPEG or PNG."
        )
    if missing:
        problem("parts of the picture are damaged", f"{missing} of {len(still.tiles)} tiles")
    return pixels


def _decoded(tile: Coded, size: Size, file: Path) -> Any:
    """Its frame, None if it cannot be decoded."""
    data = tile.data
    with file.open("rb") as f:
        for offset, length in tile.extents:
            f.seek(offset)
            data += f.read(length)
    try:
        context: Any = av.CodecContext.create(tile.decoder, "r")
        context.thread_type, context.thread_count = "NONE", 1
        # What is coded is larger by a block at most.
        context.options = {"max_pixels": str((size[0] + 128) * (size[1] + 128))}
        if tile.setup:
            context.extradata = tile.setup
        packet = av.Packet(data)
        return next(iter([*context.decode(packet), *context.decode(None)]), None)
    except (FFmpegError, ValueError):
        return None


# --- boxes ------------------------------------------------------------------------------------


def _meta(file: Path) -> bytes | None:
    """The content of the box that describes the items of a file of stills."""
    found = None
    with file.open("rb") as f:
        for count in range(_BOXES):
            head = f.read(8)
            size, kind, used = int.from_bytes(head[:4], "big"), head[4:], 8
            if size == 1:
                size, used = int.from_bytes(f.read(8), "big"), 16
            if (count == 0 and kind != b"ftyp") or kind == b"moov":
                return None
            size = size or _META + used  # 0: up to the end of the file
            if len(head) < 8 or not used <= size < 1 << 62:
                break
            if kind == b"meta" and size - used <= _META:
                found = f.read(size - used)
            else:
                f.seek(size - used, 1)
    return found


def _boxes(data: bytes) -> Iterator[Box]:
    """Boxes that lie one behind the other."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        size = size or len(data) - at
        if size < 8 or at + size > len(data):
            raise ValueError("a box is cut off")
        yield kind, data[at + 8 : at + size]
        at += size


class _Reader:
    """Big-endian numbers, one after the other."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def __call__(self, size: int) -> int:
        self.at += size
        if self.at > len(self.data):
            raise ValueError("a box is cut off")
        return int.from_bytes(self.data[self.at - size : self.at], "big")


class _Items:
    """The items of a file: their types, properties and references."""

    def __init__(self, meta: bytes) -> None:
        self.boxes = dict(_boxes(meta[4:]))
        read = _Reader(self.boxes[b"pitm"])
        self.primary = read(4 if read(4) >> 24 else 2)
        self.kinds = dict(self._types())
        self.references = list(self._references())
        self.places = dict(self._places())
        properties = dict(_boxes(self.boxes[b"iprp"]))
        self.properties = list(_boxes(properties[b"ipco"]))
        self.of_item = dict(self._associations(properties[b"ipma"]))

    def still(self, item: int, file: Path, alpha: bool = False) -> Still:
        facts = self._facts(item)
        size = tile_size = self._extent(facts)
        tiles: tuple[int, ...] = (item,)
        columns = 1
        if self.kinds[item] == b"grid":
            rows, columns, size = self._grid(item, file)
            tiles = next(to for name, of, to in self.references if (name, of) == (b"dimg", item))
            first = self._facts(tiles[0])
            facts, tile_size = facts + first, self._extent(first)
            for count, whole, part in zip((rows, columns), size, tile_size, strict=True):
                if not (count - 1) * part < whole <= count * part:
                    raise ValueError("tiles do not cover the picture")
            if len(tiles) != rows * columns:
                raise ValueError("tiles are missing")
        check_pixels(*size, file)
        coded = {tile: self._coded(tile) for tile in tiles}
        if sum(length for c in coded.values() for _, length in c.extents) > _CODED:
            raise ValueError("too much data")
        crop, matrix = self._shown(self._facts(item), size)
        masks = [of for name, of, to in self.references if name == b"auxl" and item in to]
        masks = [m for m in masks if self._is_alpha(m) and not alpha]
        return Still(
            size, tuple(coded[tile] for tile in tiles), tile_size, columns, crop, matrix,
            self._colour(facts), self.still(masks[0], file, alpha=True) if masks else None,
        )  # fmt: skip

    def _facts(self, item: int) -> list[Box]:
        return [self.properties[i - 1] for i in self.of_item.get(item, ()) if i]

    def _coded(self, item: int) -> Coded:
        decoder, name = _DECODERS[self.kinds[item]]  # KeyError: another derived picture
        setup = dict(self._facts(item)).get(name, b"")
        return Coded(decoder, setup, *self.places[item])

    def _is_alpha(self, item: int) -> bool:
        names = [data[4:].split(b"\0")[0] for kind, data in self._facts(item) if kind == b"auxC"]
        return any(n.endswith((b":alpha", b":hevc:2015:auxid:1")) for n in names)

    def _types(self) -> Iterator[tuple[int, bytes]]:
        content = self.boxes[b"iinf"]
        for kind, entry in _boxes(content[8 if content[0] else 6 :]):
            if kind == b"infe" and entry[0] >= 2:
                at = 4 + (2 if entry[0] == 2 else 4)
                yield int.from_bytes(entry[4:at], "big"), entry[at + 2 : at + 6]

    def _references(self) -> Iterator[tuple[bytes, int, tuple[int, ...]]]:
        content = self.boxes.get(b"iref", bytes(4))
        for kind, entry in _boxes(content[4:]):
            read, size = _Reader(entry), 4 if content[0] else 2
            yield kind, read(size), tuple(read(size) for _ in range(read(2)))

    @staticmethod
    def _associations(content: bytes) -> Iterator[tuple[int, list[int]]]:
        """(item, indices of its properties from 1 on)."""
        read = _Reader(content)
        flags = read(4)
        for _ in range(read(4)):
            item = read(4 if flags >> 24 else 2)
            wide = flags & 1
            yield item, [read(2) & 0x7FFF if wide else read(1) & 0x7F for _ in range(read(1))]

    @staticmethod
    def _extent(facts: list[Box]) -> Size:
        width, height = struct.unpack_from(">II", dict(facts)[b"ispe"], 4)
        if not width * height:
            raise ValueError("an empty picture")
        return height, width

    def _grid(self, item: int, file: Path) -> tuple[int, int, Size]:
        """(rows, columns, size)."""
        extents, data = self.places[item]
        if extents:
            with file.open("rb") as f:
                f.seek(extents[0][0])
                data = f.read(min(extents[0][1], 16))
        read = _Reader(data)
        read(1)
        length = 4 if read(1) & 1 else 2
        rows, columns, width, height = read(1) + 1, read(1) + 1, read(length), read(length)
        return rows, columns, (height, width)

    def _places(self) -> Iterator[tuple[int, tuple[tuple[tuple[int, int], ...], bytes]]]:
        """(item, where in the file its data is, the data that is in this box)."""
        read, inside = _Reader(self.boxes[b"iloc"]), self.boxes.get(b"idat", b"")
        version = read(4) >> 24
        sizes = read(2)
        offset, length, base, index = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
        for _ in range(read(4 if version == 2 else 2)):
            item, method = read(4 if version == 2 else 2), read(2) & 15 if version else 0
            read(2)
            start, extents = read(base), []
            for _ in range(read(2)):
                if version:
                    read(index)
                extents.append((start + read(offset), read(length) or _CODED))
            if method == 0:
                yield item, (tuple(extents), b"")
            elif method == 1:
                yield item, ((), b"".join(inside[at : at + size] for at, size in extents))

    @staticmethod
    def _shown(facts: list[Box], size: Size) -> tuple[tuple[int, int, int, int], Matrix]:
        """What is left of the picture, and how it is turned."""
        crop, turned = (0, 0, *size), _UPRIGHT
        for kind, content in facts:
            if kind == b"clap" and turned == _UPRIGHT:
                crop = _aperture(content, size)
            elif kind == b"irot":
                turned = _after(turned, _COUNTERCLOCKWISE[content[0] & 3])
            elif kind == b"imir":
                turned = _after(turned, (-1, 0, 0, 1) if content[0] & 1 else (1, 0, 0, -1))
        return crop, turned

    @staticmethod
    def _colour(facts: list[Box]) -> tuple[int, int, int, bool] | None:
        for kind, content in facts:
            if kind == b"colr" and content[:4] == b"nclx":
                primaries, transfer, matrix = struct.unpack_from(">HHH", content, 4)
                return transfer, primaries, matrix, bool(content[10] & 128)
        return None


def _aperture(content: bytes, size: Size) -> tuple[int, int, int, int]:
    """The clean aperture: its size, and its centre's distance from the picture's."""
    w, w_part, h, h_part, x, x_part, y, y_part = struct.unpack_from(">IIIIiIiI", content)
    height, width = round(h / h_part), round(w / w_part)
    top = round((size[0] - height) / 2 + y / y_part)
    left = round((size[1] - width) / 2 + x / x_part)
    if top < 0 or left < 0 or not (0 < height <= size[0] - top and 0 < width <= size[1] - left):
        raise ValueError("a crop beyond the picture")
    return top, left, height, width


def _after(first: Matrix, then: Matrix) -> Matrix:
    (a, b, c, d), (e, f, g, h) = first, then
    return a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h
