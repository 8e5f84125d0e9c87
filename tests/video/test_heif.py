"""HEIC and AVIF stills: the whole picture, upright and over black; never one of its tiles, never
its thumbnail."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from vft_lib.cli.vft import main
from vft_lib.clips.stream import encode_file
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.tokens import Tokens
from vft_lib.video.frames import VideoError, fit_frame
from vft_lib.video.heif_in import read_still
from vft_lib.video.video_in import probe, read_frames, read_image
from vft_lib.video.video_out import write_png
from video.heif import Heif, box, full
from video.test_pictures import INPUTS
from video.test_video_inputs import memory_peak

CODECS = ["hvc1", "av01"]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVT_LOG", "1")


def slope(height: int = 150, width: int = 200) -> np.ndarray:
    """No two corners are alike."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, (x + y) // 2], -1).astype(np.uint8)


def same(got: np.ndarray, expected: np.ndarray) -> bool:
    return got.shape == expected.shape and float(np.abs(got - expected.astype(float)).mean()) < 2


def upside(path: Path, **expected: object) -> np.ndarray:
    """The picture, after the facts about it were compared with what was read."""
    told: list[str] = []
    (frame,) = read_frames(path, on_problem=told.append)
    info = probe(path)
    assert not told and (info.height, info.width, 3) == frame.shape
    assert (info.frames, info.duration, info.fps) == (1, None, 1.0)
    assert {name: getattr(info, name) for name in expected} == expected
    return frame


def test_a_picture_in_tiles_is_whole_wherever_it_is_read(
    tmp_path: Path, tiny_tokenizer: Tokenizer, tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """It was its upper left tile: in `info`, `encode`, as a first frame, in the nodes."""
    path = INPUTS / "tiled.heic"
    frame = upside(path, width=1536, height=1024, has_alpha=False)
    corners = [(0, 0, 0), (255, 0, 0), (0, 255, 0), (255, 255, 0)]
    for (y, x), colour in zip([(0, 0), (0, -1), (-1, 0), (-1, -1)], corners, strict=True):
        assert np.abs(frame[y, x].astype(int) - colour).max() <= 3
    assert np.abs(np.diff(frame.astype(int), axis=0)).max() < 8, "a seam between tiles"
    assert np.abs(np.diff(frame.astype(int), axis=1)).max() < 8
    small = read_image(path, (32, 32))
    assert small[0, 0].max() < 50 and small[-1, -1, :2].min() > 190
    assert encode_file(tiny_tokenizer, path).source_size == (1024, 1536)
    assert main(["info", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["width"], facts["height"]) == (1536, 1024)
    tokens = tmp_path / "a.vft"
    which = ["--tokenizer", str(tiny_checkpoint)]
    assert main(["encode", str(path), "-o", str(tokens), *which]) == 0
    assert Tokens.load(tokens).frames == 1
    write_png(tmp_path / "a.png", frame)
    for first in (path, tmp_path / "a.png"):
        out = tmp_path / f"{first.suffix}.mp4"
        decode = ["decode", str(tokens), "-o", str(out), "--first-frame", str(first), *which]
        assert main(decode) == 0
    assert out.read_bytes() == out.with_name(".heic.mp4").read_bytes()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("turns", "degrees", "mirrored"),
    [
        ([], 0, False), (["irot", 1], 270, False), (["irot", 2], 180, False),
        (["irot", 3], 90, False), (["imir", 0], 180, True), (["imir", 1], 0, True),
        (["irot", 1, "imir", 1], 90, True), (["irot", 1, "imir", 0], 270, True),
    ],
)  # fmt: skip
def test_tiles_turned_and_mirrored_are_as_libavif_shows_them(
    tmp_path: Path, codec: str, turns: list[str | int], degrees: int, mirrored: bool
) -> None:
    heif, pixels = Heif(codec, tmp_path), slope()
    pairs = zip(turns[::2], turns[1::2], strict=True)
    properties = [box(str(name).encode(), bytes([int(value)])) for name, value in pairs]
    path = heif.write(tmp_path / "a.avif", heif.grid(pixels, 64, *properties))
    frame = upside(path, rotation=degrees, mirrored=mirrored)
    orientation = {
        (0, False): 1, (0, True): 2, (180, False): 3, (180, True): 4, (270, True): 5,
        (90, False): 6, (90, True): 7, (270, False): 8,
    }[degrees, mirrored]  # fmt: skip
    tags, plain = Image.Exif(), Image.fromarray(pixels)
    tags[274] = orientation
    plain.info["exif"] = tags.tobytes()
    plain.getexif()[274] = orientation
    assert same(frame, np.array(ImageOps.exif_transpose(plain)))
    if codec == "av01" and features.check("avif"):
        with Image.open(path) as image:
            assert same(frame, np.array(ImageOps.exif_transpose(image).convert("RGB")))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("in_tiles", [False, True])
def test_transparent_stills_are_shown_over_black(
    tmp_path: Path, codec: str, in_tiles: bool
) -> None:
    pixels, opacity = np.full((128, 128, 3), 200, np.uint8), np.zeros((128, 128, 3), np.uint8)
    opacity[:, :64], opacity[:64, 64:] = 235, 126  # 255 and 128 in the limited range
    heif = Heif(codec, tmp_path)
    names = {
        "hvc1": b"urn:mpeg:hevc:2015:auxid:1",
        "av01": b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha",
    }
    kind = full(b"auxC", 0, 0, names[codec] + b"\0")
    grey = box(b"colr", b"nclx", struct.pack(">HHHB", 1, 13, 6, 0))
    if in_tiles:
        item, mask = heif.grid(pixels, 64), heif.grid(opacity, 64, kind, grey)
    else:
        item, mask = heif.picture(pixels), heif.picture(opacity, kind, grey)
    heif.refer(b"auxl", mask, item)
    frame = upside(heif.write(tmp_path / "a.heic", item), has_alpha=True).astype(float)
    opaque, half, clear = frame[:, 4:60], frame[4:60, 70:], frame[70:, 70:]
    assert opaque.mean() == pytest.approx(200 * 235 / 255, abs=3)
    assert half.mean() == pytest.approx(200 * 126 / 255, abs=3) and clear.max() <= 2


@pytest.mark.parametrize("codec", CODECS)
def test_the_main_picture_is_shown_not_the_first_in_the_file(tmp_path: Path, codec: str) -> None:
    heif, pixels = Heif(codec, tmp_path), slope(128, 192)
    thumbnail = heif.picture(np.full((64, 64, 3), 90, np.uint8))
    item = heif.picture(pixels)
    heif.refer(b"thmb", thumbnail, item)
    assert same(upside(heif.write(tmp_path / "a.heic", item)), pixels)


@pytest.mark.parametrize("codec", CODECS)
def test_a_crop_comes_before_the_turn(tmp_path: Path, codec: str) -> None:
    heif, pixels = Heif(codec, tmp_path), slope(128, 192)
    crop = box(b"clap", struct.pack(">IIIIiIiI", 150, 1, 90, 1, 11, 1, -9, 1))
    item = heif.grid(pixels, 64, crop, box(b"irot", b"\1"))
    frame = upside(heif.write(tmp_path / "a.heic", item), rotation=270)
    assert same(frame, np.rot90(pixels[10:100, 32:182]))


def test_the_colours_that_the_file_tells_count_more_than_the_codecs(tmp_path: Path) -> None:
    heif, flat = Heif("hvc1", tmp_path), np.full((64, 64, 3), (200, 60, 30), np.uint8)
    kr, kb, rgb = 0.2126, 0.0722, flat[0, 0] / 255
    item = heif.picture(flat, box(b"colr", b"nclx", struct.pack(">HHHB", 1, 13, 1, 0)))
    got = upside(heif.write(tmp_path / "a.heic", item))[32, 32]
    y = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]  # it was written as BT.601
    cb, cr = (rgb[2] - y) / 1.772, (rgb[0] - y) / 1.402
    r, b = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    expected = 255 * np.array([r, (y - kr * r - kb * b) / (1 - kr - kb), b]).clip(0, 1)
    assert np.abs(got - expected).max() <= 3


def test_an_hdr_still_is_mapped_to_standard_range(tmp_path: Path) -> None:
    heif, told = Heif("hvc1", tmp_path), list[str]()
    item = heif.grid(np.full((128, 128, 3), 148, np.uint8), 64,
                     box(b"colr", b"nclx", struct.pack(">HHHB", 9, 16, 9, 0)))  # fmt: skip
    (frame,) = read_frames(heif.write(tmp_path / "a.heic", item), on_problem=told.append)
    assert "(PQ)" in told[0] and 223 < frame.mean() < 237  # 148 is 58 %: 203 cd/m²


def test_a_damaged_tile_is_black_and_told(tmp_path: Path) -> None:
    heif, pixels, told = Heif("hvc1", tmp_path), slope(128, 192), list[str]()
    item = heif.grid(pixels, 64)
    path = heif.write(tmp_path / "a.heic", item)
    data, third = path.read_bytes(), heif.items[2][1]
    path.write_bytes(data.replace(third, bytes(len(third))))
    (frame,) = read_frames(path, on_problem=told.append)
    assert told == ["a.heic: parts of the picture are damaged, 1 of 6 tiles."]
    assert frame[:64, 128:].max() == 0 and same(frame[64:], pixels[64:])


def test_a_large_still_is_made_smaller_while_it_is_read(tmp_path: Path) -> None:
    heif, pixels = Heif("hvc1", tmp_path), np.zeros((640, 640, 3), np.uint8)
    pixels[:320, :, 0] = pixels[:, :320, 1] = 200
    tile = heif.picture(pixels)
    side = 9 * 640  # one tile, shown 81 times: 33 million pixels
    layout = struct.pack(">BBBBHH", 0, 0, 8, 8, side, side)
    item = heif.add(b"grid", layout, full(b"ispe", 0, 0, struct.pack(">II", side, side)))
    heif.refer(b"dimg", item, *[tile] * 81)
    path = heif.write(tmp_path / "a.heic", item)
    with memory_peak() as grown:
        small = read_image(path, (90, 90))
        assert grown() < 180 << 20  # the picture itself has 100 MB
    expected = fit_frame(np.tile(pixels[::16, ::16], (9, 9, 1)), (90, 90), "crop")
    assert small.shape == (90, 90, 3) and np.abs(small.astype(int) - expected).mean() < 6


def test_kinds_of_pictures_that_are_not_read_say_so(tmp_path: Path) -> None:
    heif = Heif("hvc1", tmp_path)
    parts = [heif.picture(slope(64, 64)) for _ in range(2)]
    item = heif.add(b"iovl", bytes(40), full(b"ispe", 0, 0, struct.pack(">II", 128, 64)))
    heif.refer(b"dimg", item, *parts)
    path = heif.write(tmp_path / "a.heic", item)
    for read in (read_image, probe):
        with pytest.raises(VideoError, match="save it as JPEG or PNG"):
            read(path)


def test_other_files_are_no_stills(tmp_path: Path) -> None:
    for path in INPUTS.iterdir():
        assert (read_still(path) is not None) == (path.name == "tiled.heic")
    for data in (b"", bytes(7), b"\0\0\0\x08ftyp", bytes(1 << 16), b"\0\0\0\1ftyp" + b"\xff" * 99):
        (tmp_path / "a.heic").write_bytes(data)
        assert read_still(tmp_path / "a.heic") is None


@pytest.mark.slow
def test_random_damage_to_a_still_gives_a_picture_or_one_line(tmp_path: Path) -> None:
    heif = Heif("hvc1", tmp_path)
    mask = heif.grid(slope(128, 128), 64, full(b"auxC", 0, 0, b"urn:mpeg:hevc:2015:auxid:1\0"))
    item = heif.grid(slope(128, 128), 64, box(b"irot", b"\1"))
    heif.refer(b"auxl", mask, item)
    path = heif.write(tmp_path / "a.heic", item)
    whole, rng, read = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(400):
        data = bytearray(whole)
        head = rng.integers(2) or len(data)  # half of them in the boxes
        for at in rng.integers(0, min(len(data), 1400 if head == 1 else head), rng.integers(1, 4)):
            data[at] = rng.integers(256)
        path.write_bytes(data)
        try:
            read += next(read_frames(path, on_problem=lambda _: None)).ndim == 3
            probe(path)
        except VideoError as error:
            assert str(error).isprintable()
    assert 100 < read < 390
