"""Pictures of clips as people have them: the colours, the way up, HDR, fields, transparency, and
how many there are. `inputs/` holds clips that were read wrongly."""

from __future__ import annotations

import struct
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import moving_picture
from PIL import Image

from vft_lib.footage.real import MARGIN, RealClips
from vft_lib.video.video_in import probe, read_frames
from vft_lib.video.video_out import write_video
from video.test_video_io import COLOR, corner_names, corners, encode, flat, indices, turned

INPUTS = Path(__file__).parent / "inputs"
HELD = {"bt709": (0.2126, 0.0722), "bt601": (0.299, 0.114), "bt2020": (0.2627, 0.0593)}  # Kr, Kb
CODES = {"bt709": 1, "bt601": 6, "bt2020": 9}


def told_frames(path: Path) -> tuple[list[np.ndarray], list[str]]:
    told: list[str] = []
    return list(read_frames(path, on_problem=told.append)), told


def yuv(rgb: np.ndarray, matrix: str, full: bool, bits: int) -> list[np.ndarray]:
    """RGB of 0..1 as Y, Cb, Cr by ITU-R BT.709, BT.601 or BT.2020."""
    kr, kb = HELD[matrix]
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / 2 / (1 - kb), (r - y) / 2 / (1 - kr)
    if full:
        top = (1 << bits) - 1
        planes = [top * y, top * cb + (1 << bits - 1), top * cr + (1 << bits - 1)]
    else:
        scale = 1 << bits - 8
        planes = [scale * (16 + 219 * y), scale * (128 + 224 * cb), scale * (128 + 224 * cr)]
    return [
        np.round(p).clip(0, (1 << bits) - 1).astype("<u2" if bits > 8 else "u1") for p in planes
    ]


def lossless(
    path: Path, rgb: np.ndarray, *, matrix: str = "bt709", full: bool = False, bits: int = 8,
    trc: int = 2, primaries: int = 2,
) -> Path:  # fmt: skip
    """Two frames of RGB 0..1 `[H, W, 3]`, as FFV1 of yuv444p."""
    form = "yuv444p" if bits == 8 else f"yuv444p{bits}le"
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = *rgb.shape[:2], form
        context = stream.codec_context
        context.colorspace, context.color_range = CODES[matrix], 2 if full else 1
        context.color_trc, context.color_primaries = trc, primaries
        for i in range(2):
            frame = av.VideoFrame(rgb.shape[1], rgb.shape[0], form)
            for plane, values in zip(frame.planes, yuv(rgb, matrix, full, bits), strict=True):
                rows = np.zeros((plane.height, plane.line_size // values.itemsize), values.dtype)
                rows[:, : plane.width] = values
                plane.update(rows.tobytes())
            frame.colorspace, frame.color_range = CODES[matrix], 2 if full else 1
            frame.pts, frame.time_base = i, Fraction(1, 10)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


# --- colours ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bt709-tv", "bt709-pc", "smpte170m-tv", "smpte170m-pc"])
def test_flat_colours_of_each_matrix_and_range_are_exact(kind: str) -> None:
    frames, told = told_frames(INPUTS / f"matrix-{kind}.mp4")
    assert not told and all(np.abs(f.astype(int) - COLOR).max() <= 2 for f in frames)


@pytest.mark.parametrize("bits", [8, 10, 12])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", ["bt709", "bt601", "bt2020"])
def test_every_matrix_range_and_depth_is_exact_bt2020_was_read_as_bt709(
    tmp_path: Path, matrix: str, full: bool, bits: int
) -> None:
    rgb = np.broadcast_to(COLOR / 255, (16, 24, 3))
    frames, told = told_frames(
        lossless(tmp_path / "a.mkv", rgb, matrix=matrix, full=full, bits=bits)
    )
    assert not told and np.abs(frames[0].astype(int) - COLOR).max() <= 1


def test_colours_do_not_drift_however_often_a_clip_is_saved_and_loaded(tmp_path: Path) -> None:
    """They darkened by 1.3 levels each time. A training set is read in the same way."""
    clip = list(moving_picture(8, 80, 80))
    frames = clip
    for i in range(8):
        path = tmp_path / f"{i}.mp4"
        write_video(path, frames, 8, crf=4)
        frames = list(read_frames(path))
    drift = np.mean(frames, (0, 1, 2)) - np.mean(clip, (0, 1, 2))
    assert np.abs(drift).max() < 0.2, drift
    side = int(64 * MARGIN)
    (tmp_path / "real").mkdir()
    path.rename(tmp_path / "real" / path.name)
    (seen,) = RealClips.load(tmp_path / "real", 64, tmp_path / "cache.npz").clips.values()
    assert seen.shape == (8, side, side, 3)
    assert np.abs(seen.mean((0, 1, 2)) - np.mean(clip, (0, 1, 2))).max() < 0.2


# --- high dynamic range -----------------------------------------------------------------------


def pq(light: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084 of cd/m²."""
    p = (np.asarray(light) / 1e4) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * p) / (1 + 2392 / 128 * p)) ** (2523 / 32)


def hlg(light: np.ndarray) -> np.ndarray:
    """ITU-R BT.2100, what a screen of 1000 cd/m² shows as `light`."""
    shown = np.asarray(light) / 1000
    luminance = shown @ [0.2627, 0.678, 0.0593]
    scene = shown * np.where(luminance > 0, luminance, 1)[..., None] ** (1 / 1.2 - 1)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(
        scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c
    )


TO_BT2020 = np.array(  # ITU-R BT.2087
    [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
)
ENCODE = {16: pq, 18: hlg}


@pytest.mark.parametrize("trc", [16, 18])
@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("full", [False, True])
def test_hdr_becomes_what_an_ordinary_screen_shows(
    tmp_path: Path, trc: int, bits: int, full: bool
) -> None:
    """It was read as if it were BT.709: flat and pale."""
    patches = np.array(  # BT.709 light, cd/m²
        [[0, 0, 0], [5, 5, 5], [20, 20, 20], [60, 60, 60], [203, 203, 203], [1000, 1000, 1000],
         [60, 0, 0], [0, 60, 0], [0, 0, 60], [40, 12, 4]], float,
    )  # fmt: skip
    signal = ENCODE[trc](patches @ TO_BT2020.T)
    rgb = np.repeat(np.repeat(signal[None], 16, 0), 8, 1)
    path = lossless(
        tmp_path / "a.mkv", rgb, matrix="bt2020", full=full, bits=bits, trc=trc, primaries=9
    )
    frames, told = told_frames(path)
    got = frames[0][8, 4::8].astype(float)
    expected = 255 * (patches / 203).clip(0, 1) ** (1 / 2.4)  # ITU-R BT.1886
    slack = 3 if bits == 10 else 9  # 8 bits are coarse in the dark
    plain = [0, 1, 2, 3, 9]
    assert np.abs(got - expected)[plain].max() <= slack
    for patch, channel in ((6, 0), (7, 1), (8, 2)):  # no other channel is seen
        assert np.abs(got - expected)[patch, channel] <= slack
        assert np.delete(got[patch], channel).max() <= 4 * slack + 8
    assert 205 < got[4].min() <= got[4].max() < 245 and got[5].min() >= 254
    assert len(told) == 1 and {16: "(PQ)", 18: "(HLG)"}[trc] in told[0]


@pytest.mark.parametrize("name", ["hlg", "pq"])
def test_hdr_clips_say_that_they_are(name: str) -> None:
    frames, told = told_frames(INPUTS / f"{name}.mp4")
    assert len(frames) == 9 and frames[0].min() == 255
    assert [name.upper() in t for t in told] == [True]


def test_colours_that_are_not_known_are_told(tmp_path: Path) -> None:
    options = {"x265-params": "log-level=none"}
    path = encode(tmp_path / "a.mp4", [flat(9, 64, 96)] * 3, codec="libx265", options=options)
    assert not told_frames(path)[1]
    path.write_bytes(path.read_bytes().replace(b"hev1", b"dvh1").replace(b"hvc1", b"dvh1"))
    assert "colours are off (Dolby Vision" in told_frames(path)[1][0]


# --- fields -----------------------------------------------------------------------------------


def combing(frame: np.ndarray) -> float:
    """How much neighbouring rows differ more than rows of one field."""
    rows = frame.astype(float).mean(-1)
    return float(np.abs(np.diff(rows, axis=0)).mean() - np.abs(rows[2:] - rows[:-2]).mean() / 2)


def fields(count: int, height: int = 96, width: int = 128) -> list[np.ndarray]:
    """A bar that is 8 px further to the right in the lower field."""
    frames = []
    for i in range(count):
        frame = np.full((height, width, 3), 40, np.uint8)
        for field in (0, 1):
            at = (16 * i + 8 * field) % (width - 24)
            frame[field::2, at : at + 24] = 210
        frames.append(frame)
    return frames


def interlaced(
    path: Path, frames: list[np.ndarray], codec: str, options: dict[str, str], first: str
) -> Path:
    """`first`: tff or bff, which field is shown first."""
    graph = av.filter.Graph()
    h, w = frames[0].shape[:2]
    source = graph.add("buffer", f"video_size={w}x{h}:pix_fmt=yuv420p:time_base=1/25")
    field, sink = graph.add("setfield", first), graph.add("buffersink")
    source.link_to(field)
    field.link_to(sink)
    graph.configure()
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt, stream.options = h, w, "yuv420p", options
        for i, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p")
            picture.pts, picture.time_base = i, Fraction(1, 25)
            source.push(picture)
            out.mux(stream.encode(sink.pull()))
        out.mux(stream.encode())
    return path


X264, MPEG2 = {"x264-params": "tff=1", "crf": "10"}, {"flags": "+ildct+ilme", "b": "8M"}


@pytest.mark.parametrize("first", ["tff", "bff"])
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("mbaff.mp4", "libx264", X264), ("mbaff.ts", "libx264", X264),
        ("raw.h264", "libx264", X264), ("dvd.mpg", "mpeg2video", MPEG2),
    ],
)  # fmt: skip
def test_interlaced_frames_are_made_whole(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], first: str
) -> None:
    stored = fields(9)
    path = interlaced(tmp_path / name, stored, codec, options, first)
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
        assert all(f.interlaced_frame for f in decoded), "else this tests nothing"
        assert min(combing(f.to_ndarray(format="rgb24")) for f in decoded) > 15
    frames, told = told_frames(path)
    assert len(frames) == len(decoded) == 9 and not told
    assert max(combing(f) for f in frames) < 1
    row = 40 + (first == "bff")
    for frame, source in zip(frames, stored, strict=True):  # the first field's moment
        assert np.abs(frame[40:56].mean((0, 2)) - source[row].mean(-1)).mean() < 8
    sampled = list(read_frames(path, fps=25))
    assert len(sampled) == 9 and all(map(np.array_equal, sampled, frames))
    at = next(read_frames(path, start=0.24))
    assert np.abs(at.astype(int) - frames[6]).mean() < 1


def test_an_interlaced_recording_of_a_camera_is_wide_and_whole() -> None:
    frames, told = told_frames(INPUTS / "interlaced-51.mts")  # of 72x48, with pixels of 4:3
    assert [f.shape for f in frames] == [(48, 96, 3)] * 25 and not told


def test_fields_of_hevc_are_pictures_of_their_own(tmp_path: Path) -> None:
    """They come one by one, half as high; they were shown twice as wide as they should."""
    pictures = [corners(64, 128)] * 12
    options = {"x265-params": "interlace=tff:log-level=none"}
    path = encode(tmp_path / "a.mp4", pictures, codec="libx265", options=options, rate=50)
    frames, told = told_frames(path)
    assert [f.shape for f in frames] == [(64, 64, 3)] * 12 and not told
    assert {corner_names(f) for f in frames} == {"rgbk"} and probe(path).width == 64


def test_progressive_frames_are_not_touched(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", fields(5), options={"crf": "10"}, rate=25)
    frames, _ = told_frames(path)
    assert min(combing(f) for f in frames) > 8


# --- transparency -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "options"), [("libvpx-vp9", {}), ("libvpx", {"auto-alt-ref": "0"})]
)
def test_transparent_webm_is_shown_over_black(
    tmp_path: Path, codec: str, options: dict[str, str]
) -> None:
    frame = np.full((64, 64, 4), 200, np.uint8)
    frame[:, :32, 3], frame[:, 32:, 3] = 255, 100
    path = tmp_path / "a.webm"
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuva420p"
        stream.options, stream.metadata["alpha_mode"] = options, "1"
        for i in range(20):
            picture = av.VideoFrame.from_ndarray(frame, format="rgba").reformat(format="yuva420p")
            picture.pts, picture.time_base = i, Fraction(1, 10)
            out.mux(stream.encode(picture))
        out.mux(stream.encode())
    frames, told = told_frames(path)
    assert probe(path).has_alpha and len(frames) == 20 and not told
    for got in (*frames, next(read_frames(path, start=1.5))):
        assert got[:, 4:28].mean() == pytest.approx(200, abs=4)
        assert got[:, 36:60].mean() == pytest.approx(200 * 100 / 255, abs=4)


def test_a_fully_transparent_clip_is_black_not_red() -> None:
    frames, told = told_frames(INPUTS / "alpha-vp9.webm")
    assert len(frames) == 15 and max(f.max() for f in frames) == 0 and not told
    assert probe(INPUTS / "alpha-vp9.webm").has_alpha


def test_transparency_that_cannot_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(av, "codecs_available", {"vp9"})  # a build without Google's decoders
    frames, told = told_frames(INPUTS / "alpha-vp9.webm")
    assert len(frames) == 15
    assert told == ["alpha-vp9.webm: its transparency cannot be read, in all frames."]


def test_transparency_of_hevc_is_told() -> None:
    """Red, half of it transparent (x265 with an alpha layer, as QuickTime's): opaque in silence."""
    frames, told = told_frames(INPUTS / "alpha-hevc.mov")
    assert len(frames) == 10 and not probe(INPUTS / "alpha-hevc.mov").has_alpha
    assert np.abs(np.stack(frames).mean((0, 1, 2)) - (254, 0, 0)).max() < 3
    assert told == ["alpha-hevc.mov: its transparency cannot be read, in all frames."]


# --- which of several streams -----------------------------------------------------------------


def test_an_animated_avif_moves() -> None:
    """It begins with a still, which was all that was read."""
    path = INPUTS / "animated.avif"
    frames, told = told_frames(path)
    assert len(frames) == probe(path).frames == 10 and not told
    assert probe(path).duration == pytest.approx(1.0)
    assert np.abs(frames[9].astype(int) - frames[0]).mean() > 1


def test_of_several_pictures_the_default_one_is_read(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as out:
        streams: list[Any] = [out.add_stream("libx264", rate=10) for _ in range(2)]
        if not hasattr(streams[0], "disposition"):
            pytest.skip("this PyAV knows no default stream")
        default = av.stream.Disposition.default.value  # PyAV 14 and 16 take no name for it
        streams[0].disposition, streams[1].disposition = 0, default
        for stream in streams:
            stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for i in range(4):
            for stream, shade in zip(streams, (3, 20), strict=True):
                picture = av.VideoFrame.from_ndarray(flat(shade), "rgb24")
                picture.pts, picture.time_base = i, Fraction(1, 10)
                out.mux(stream.encode(picture))
        for stream in streams:
            out.mux(stream.encode())
    assert indices(read_frames(tmp_path / "a.mkv")) == [20] * 4


# --- the way up -------------------------------------------------------------------------------

TURNS = {  # matrix: (degrees, mirrored, what is seen of red green / blue black)
    (1, 0, 0, 1): (0, False, "rgbk"), (0, 1, -1, 0): (90, False, "brkg"),
    (-1, 0, 0, -1): (180, False, "kbgr"), (0, -1, 1, 0): (270, False, "gkrb"),
    (-1, 0, 0, 1): (0, True, "grkb"), (0, -1, -1, 0): (90, True, "kgbr"),
    (1, 0, 0, -1): (180, True, "bkrg"), (0, 1, 1, 0): (270, True, "rbgk"),
}  # fmt: skip


@pytest.mark.parametrize("exif", [False, True])
@pytest.mark.parametrize("matrix", TURNS)
def test_turned_and_mirrored_clips_are_upright_whatever_else_their_frames_carry(
    tmp_path: Path, matrix: tuple[int, int, int, int], exif: bool
) -> None:
    """The rotation was lost where a frame carries side data without a name in PyAV (EXIF in PyAV
    17 and 18), and mirrored clips were said to be turned by 180 degrees."""
    plain, tags = tmp_path / "plain.mov", Image.Exif()
    tags[271] = "Maker"
    jpeg = BytesIO()
    Image.fromarray(corners()).save(jpeg, "JPEG", quality=95, **({"exif": tags} if exif else {}))
    with av.open(str(plain), "w") as out:
        stream: Any = out.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuvj420p"
        for i in range(3):
            packet = av.Packet(jpeg.getvalue())
            packet.stream, packet.pts, packet.dts = stream, i, i
            packet.time_base = Fraction(1, 10)
            out.mux(packet)
    path = turned(plain, tmp_path / "turned.mov", matrix)
    degrees, mirrored, names = TURNS[matrix]
    info = probe(path)
    assert (info.rotation, info.mirrored) == (degrees, mirrored)
    frames, told = told_frames(path)
    assert [corner_names(f) for f in frames] == [names] * 3 and not told
    assert frames[0].shape[:2] == (info.height, info.width)


def test_the_rotation_beside_exif_is_kept() -> None:
    path = INPUTS / "rotated-exif.mov"
    frames, _ = told_frames(path)
    assert {f.shape for f in frames} == {(128, 96, 3)} and len(frames) == 5
    info = probe(path)
    assert (info.width, info.height, info.rotation, info.mirrored) == (96, 128, 270, False)


# --- how many ---------------------------------------------------------------------------------


def hidden(path: Path, first: int, ticks: int) -> Path:
    """Have the edit list of an mp4 show `ticks` from `first` on (of 1/1000 s and of the media)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 4
    struct.pack_into(">IIIi", data, at, 0, 1, ticks, first)
    path.write_bytes(data)
    return path


def test_frames_that_an_edit_list_hides_are_not_counted(tmp_path: Path) -> None:
    path = INPUTS / "edit-list.mp4"
    assert probe(path).frames == len(list(read_frames(path))) == 43
    plain = encode(tmp_path / "a.mp4", [flat(i) for i in range(30)], rate=10)
    assert probe(plain).frames == 30
    with av.open(str(plain)) as container:
        tick = round(1 / container.streams.video[0].time_base) // 10
        shift = container.streams.video[0].start_time
    cut = hidden(plain, 7 * tick + 2 * tick, 1500)  # two frames are the B-frames' delay
    assert shift == 0 and indices(read_frames(cut)) == list(range(7, 22))
    assert probe(cut).frames == 15
