"""Clips in and out, with real files written by PyAV and Pillow."""

from __future__ import annotations

import itertools
import os
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from vft_lib.errors import VftError
from vft_lib.files import atomic
from vft_lib.video.frames import VideoError, fit_frame, fit_size, to_frames, to_tensor, unfit_box
from vft_lib.video.video_in import probe, read_frames, read_image
from vft_lib.video.video_out import VideoWriter, write_png, write_video

STEP = 8  # brightness per frame index: far above the codec's error


def flat(index: int, height: int = 32, width: int = 48) -> np.ndarray:
    return np.full((height, width, 3), index * STEP, np.uint8)


def indices(frames: Iterator[np.ndarray]) -> list[int]:
    """The frame indices written as brightness by `flat`."""
    return [round(float(frame.mean()) / STEP) for frame in frames]


def corners(height: int = 32, width: int = 48) -> np.ndarray:
    """Red top left, green top right, blue bottom left, black bottom right."""
    frame = np.zeros((height, width, 3), np.uint8)
    h, w = height // 2, width // 2
    frame[:h, :w, 0] = frame[:h, w:, 1] = frame[h:, :w, 2] = 255
    return frame


def corner_names(frame: np.ndarray) -> str:
    h, w = frame.shape[0] // 4, frame.shape[1] // 4
    points = (frame[y, x].astype(int) for y in (h, -h) for x in (w, -w))
    return "".join("rgb"[int(p.argmax())] if p.max() > 128 else "k" for p in points)


def encode(
    path: Path,
    frames: list[np.ndarray],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: int | Fraction = 30,
    pts: list[int] | None = None,
    sound: tuple[str, int, float] | None = None,  # codec, rate, seconds
    options: dict[str, str] | None = None,
    **context: Any,
) -> Path:
    """A file made without the code under test; `pts` in milliseconds."""
    with av.open(str(path), "w") as out:
        stream: Any = None
        if frames:
            stream = out.add_stream(codec, rate=rate)
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt, stream.options = pix_fmt, options or {}
            for name, value in context.items():
                setattr(stream.codec_context, name, value)
            if pts is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
        track: Any = out.add_stream(sound[0], rate=sound[1]) if sound else None
        for i, frame in enumerate(frames):
            rgb = "rgba" if frame.shape[2] == 4 else "rgb24"
            picture = av.VideoFrame.from_ndarray(frame, format=rgb).reformat(format=pix_fmt)
            picture.pts = i if pts is None else pts[i]
            picture.time_base = 1 / Fraction(rate) if pts is None else Fraction(1, 1000)
            out.mux(stream.encode(picture))
        if stream:
            out.mux(stream.encode())
        if sound:
            wave = np.sin(np.arange(int(sound[1] * sound[2])) * 0.06).astype(np.float32) * 0.5
            size = track.codec_context.frame_size or 1024
            for at in range(0, len(wave) - size + 1, size):
                piece = av.AudioFrame.from_ndarray(wave[None, at : at + size], "fltp", "mono")
                piece.sample_rate, piece.pts = sound[1], at
                for part in av.AudioResampler(
                    track.codec_context.format, track.codec_context.layout, sound[1]
                ).resample(piece):
                    out.mux(track.encode(part))
            out.mux(track.encode())
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One second, 30 frames at 30 fps, brightness = index, with B-frames."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return encode(path, [flat(i) for i in range(30)])


@pytest.fixture(scope="module")
def talkie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("talkie") / "talkie.mp4"
    return encode(path, [flat(i) for i in range(20)], rate=10, sound=("aac", 44100, 2.0))


def sound_seconds(path: Path) -> float:
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return 0.0
        frames = list(container.decode(container.streams.audio[0]))
        return sum(frame.samples / frame.sample_rate for frame in frames)


# --- geometry ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fit", "size", "resized", "box"),
    [
        ("crop", (32, 32), (32, 64), (0, 0, 32, 32)),
        ("pad", (32, 32), (16, 32), (8, 0, 24, 32)),
        ("stretch", (32, 32), (32, 32), (0, 0, 32, 32)),
        ("pad", (31, 20), (10, 20), (10, 0, 20, 20)),
    ],
)
def test_fit_sizes_and_boxes(
    fit: str, size: tuple[int, int], resized: tuple[int, int], box: tuple[int, ...]
) -> None:
    assert fit_size((50, 100), size, fit) == resized
    assert unfit_box((50, 100), size, fit) == box
    out = fit_frame(np.full((50, 100, 3), 200, np.uint8), size, fit)
    top, left, bottom, right = box
    assert out.shape == (*size, 3) and out.dtype == np.uint8 and out.flags.writeable
    assert (out[top:bottom, left:right] == 200).all()
    assert int((out > 0).sum()) == 3 * (bottom - top) * (right - left)  # the bars are black


def test_crop_keeps_the_centre_and_pad_keeps_everything() -> None:
    frame = np.zeros((20, 60, 3), np.uint8)
    frame[:, 20:40] = 255
    assert fit_frame(frame, (20, 20), "crop").min() == 255
    assert fit_frame(frame, (20, 60), "pad") is frame
    with pytest.raises(VideoError, match="crop, pad, stretch"):
        fit_frame(frame, (8, 8), "squash")
    with pytest.raises(VideoError, match="uint8"):
        fit_frame(frame.astype(np.float32), (8, 8), "crop")


# --- time -------------------------------------------------------------------------------------


def test_every_frame_comes_back_in_order_b_frames_included(clip: Path) -> None:
    assert indices(read_frames(clip)) == list(range(30))


def test_probe_tells_what_the_file_holds(clip: Path, talkie: Path) -> None:
    info = probe(clip)
    assert (info.width, info.height, info.fps, info.frames) == (48, 32, 30.0, 30)
    assert info.duration == pytest.approx(1.0)
    assert (info.rotation, info.has_audio, info.has_alpha) == (0, False, False)
    assert probe(talkie).has_audio


def test_30_to_8_fps_shows_the_frame_on_screen(clip: Path) -> None:
    expected = [i * 30 // 8 for i in range(8)]
    assert indices(read_frames(clip, fps=8)) == expected
    assert indices(read_frames(clip, fps=8, max_frames=3)) == expected[:3]


def test_upsampling_repeats_frames_and_repeats_are_the_callers_own(clip: Path) -> None:
    frames = read_frames(clip, fps=60)
    seen = []
    for frame in frames:
        seen.append(round(float(frame.mean()) / STEP))
        frame[:] = 0  # must not show in the repeat
    assert seen == [i // 2 for i in range(60)]


@pytest.mark.parametrize("fps", [0.3, 1, 7, 29.97, 100])
def test_the_number_of_frames_is_the_rounded_duration(clip: Path, fps: float) -> None:
    assert len(list(read_frames(clip, fps=fps))) == max(1, round(fps))


def test_variable_frame_rate_is_sampled_by_time_not_by_count(tmp_path: Path) -> None:
    pts = [0, 100, 200, 1200, 1300, 2300]  # ms; frames 2 and 4 stay for a second
    path = encode(tmp_path / "vfr.mkv", [flat(i) for i in range(6)], pts=pts, options={"bf": "0"})
    got = indices(read_frames(path, fps=10, max_frames=23))
    assert got == [0, 1] + [2] * 10 + [3] + [4] * 10


def test_milliseconds_of_matroska_do_not_double_and_drop_frames(tmp_path: Path) -> None:
    frames = [flat(i) for i in range(24)]  # Matroska stores 33, 67, 100 ms
    path = encode(tmp_path / "ms.mkv", frames)
    assert indices(read_frames(path, fps=30)) == list(range(24))


@pytest.mark.parametrize("start", [0.1, 0.5, 1.4, 1.9])
def test_start_begins_with_the_frame_on_screen_there(talkie: Path, start: float) -> None:
    first = int(start * 10 + 1e-6)
    assert indices(read_frames(talkie, start=start)) == list(range(first, 20))
    assert indices(read_frames(talkie, fps=5, start=start))[0] == first
    with pytest.raises(VideoError, match="past"):
        next(read_frames(talkie, start=2.5))


def test_start_survives_a_file_without_an_index(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.ts", [flat(i) for i in range(25)], rate=10, options={"g": "5"})
    assert indices(read_frames(path, start=1.6)) == list(range(16, 25))


def test_a_raw_stream_without_timestamps_plays_at_its_rate(tmp_path: Path) -> None:
    path = encode(tmp_path / "raw.h264", [flat(i) for i in range(25)], rate=25)
    assert indices(read_frames(path)) == list(range(25))
    assert len(list(read_frames(path, fps=5))) == 5


# --- pictures ---------------------------------------------------------------------------------


def turned(path: Path, out: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Set the display matrix (a, b, c, d) in the track header of an mp4."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0
    a, b, c, d = (v << 16 for v in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    out.write_bytes(data)
    return out


@pytest.mark.parametrize(
    ("matrix", "degrees", "names", "size"),
    [
        ((1, 0, 0, 1), 0, "rgbk", (32, 48)),
        ((0, 1, -1, 0), 90, "brkg", (48, 32)),
        ((-1, 0, 0, -1), 180, "kbgr", (32, 48)),
        ((0, -1, 1, 0), 270, "gkrb", (48, 32)),
        ((-1, 0, 0, 1), None, "grkb", (32, 48)),  # mirrored, as by a front camera
    ],
)
def test_rotated_phone_video_comes_out_upright(
    tmp_path: Path,
    matrix: tuple[int, int, int, int],
    degrees: int | None,
    names: str,
    size: tuple[int, int],
) -> None:
    plain = encode(tmp_path / "plain.mp4", [corners()] * 3)
    path = turned(plain, tmp_path / "turned.mp4", matrix)
    frames = list(read_frames(path))
    assert {frame.shape for frame in frames} == {(*size, 3)}
    assert [corner_names(frame) for frame in frames] == [names] * 3
    info = probe(path)
    assert (info.height, info.width) == size
    assert degrees is None or info.rotation == degrees


def test_non_square_pixels_are_widened(tmp_path: Path) -> None:
    path = encode(tmp_path / "sar.mp4", [flat(5)] * 2, sample_aspect_ratio=Fraction(4, 3))
    assert next(read_frames(path)).shape == (32, 64, 3)
    assert probe(path).width == 64


COLOR = np.array([200, 60, 30])


@pytest.mark.parametrize(
    ("pix_fmt", "colorspace", "color_range", "yuv"),
    [  # BT.709, BT.601, BT.2020 by their definitions
        ("yuv420p", 1, 1, (91, 101, 191)),
        ("yuv420p", 1, 2, (88, 97, 199)),
        ("yuv420p", 6, 1, (100, 94, 192)),
        ("yuv420p10le", 1, 1, (91, 101, 191)),
        ("yuvj420p", 6, 2, (98, 89, 200)),
    ],
)
def test_colours_follow_the_files_matrix_and_range(
    tmp_path: Path, pix_fmt: str, colorspace: int, color_range: int, yuv: tuple[int, int, int]
) -> None:
    picture = av.VideoFrame(32, 32, pix_fmt)
    for plane, value in zip(picture.planes, yuv, strict=True):
        wide = "10" in pix_fmt
        cells = np.full(
            plane.buffer_size // (1 + wide), value << 2 * wide, np.uint16 if wide else "u1"
        )
        plane.update(cells.tobytes())
    picture.colorspace, picture.color_range, picture.pts = colorspace, color_range, 0
    path = tmp_path / "colour.mkv"
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("mjpeg" if pix_fmt == "yuvj420p" else "ffv1", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = pix_fmt
        stream.codec_context.colorspace = colorspace
        stream.codec_context.color_range = color_range
        out.mux(stream.encode(picture))
        out.mux(stream.encode())
    got = next(read_frames(path))[16, 16].astype(int)
    assert np.abs(got - COLOR).max() <= 3


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "suffix"),
    [
        ("ffv1", "gray", ".mkv"),
        ("qtrle", "rgb24", ".mov"),
        ("ffv1", "bgr0", ".mkv"),
        ("ffv1", "gray16le", ".mkv"),
        ("libx264rgb", "rgb24", ".mkv"),
    ],
)
def test_grey_and_rgb_video_keeps_its_levels(
    tmp_path: Path, codec: str, pix_fmt: str, suffix: str
) -> None:
    path = encode(
        tmp_path / f"a{suffix}", [flat(i) for i in (0, 15, 31)], codec=codec, pix_fmt=pix_fmt
    )
    means = [float(frame.mean()) for frame in read_frames(path)]
    assert means == pytest.approx([0, 120, 248], abs=2)


@pytest.mark.parametrize(
    ("codec", "pix_fmt"), [("qtrle", "argb"), ("png", "rgba"), ("prores_ks", "yuva444p10le")]
)
def test_transparent_video_is_shown_over_black(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    frame = np.full((32, 32, 4), 200, np.uint8)
    frame[:, :16, 3], frame[:, 16:, 3] = 255, 0
    path = encode(tmp_path / "a.mov", [frame] * 2, codec=codec, pix_fmt=pix_fmt)
    got = next(read_frames(path))
    assert got[:, 2:14].mean() == pytest.approx(200, abs=3) and got[:, 18:30].max() <= 3
    assert probe(path).has_alpha


def test_palette_video_keeps_its_colours(tmp_path: Path) -> None:
    Image.fromarray(corners()).quantize(4).save(tmp_path / "still.png")
    path = tmp_path / "a.mov"
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("png", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "pal8"
        packet = av.Packet((tmp_path / "still.png").read_bytes())
        packet.stream, packet.pts, packet.dts = stream, 0, 0
        packet.time_base = Fraction(1, 10)
        out.mux(packet)
    assert corner_names(next(read_frames(path))) == "rgbk"


def test_a_change_of_size_in_mid_stream_keeps_the_first_size(tmp_path: Path) -> None:
    a = encode(tmp_path / "a.ts", [flat(9)] * 4).read_bytes()
    b = encode(tmp_path / "b.ts", [flat(9, 64, 64)] * 4).read_bytes()
    joined = tmp_path / "joined.ts"
    joined.write_bytes(a + b)
    frames = list(read_frames(joined))
    assert len(frames) == 8 and {frame.shape for frame in frames} == {(32, 48, 3)}
    assert len(list(read_frames(joined, fps=30))) == 8  # and the clock does not run back


def test_jpegs_one_after_the_other_are_a_clip(tmp_path: Path) -> None:
    """Webcams write such streams; only the first picture came."""
    path = encode(tmp_path / "a.mjpeg", [flat(i) for i in range(9)], codec="mjpeg",
                  pix_fmt="yuvj420p", rate=25)  # fmt: skip
    assert indices(read_frames(path)) == list(range(9))
    assert probe(path).fps == 25
    Image.fromarray(flat(5)).save(path, "JPEG")
    assert indices(read_frames(path)) == [5]


# --- images -----------------------------------------------------------------------------------


def test_a_clip_that_cannot_be_ended_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stack(ExitStack):
        """Python 3.13's, which looks at the exception alone."""

        def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
            return bool(super().__exit__(error and kind, error, error and trace))

    path = tmp_path / "a.mp4"
    write_video(path, [flat(9)] * 3, 8.0)
    before = path.read_bytes()
    monkeypatch.setattr("vft_lib.video.video_out.ExitStack", Stack)
    with pytest.raises(VideoError, match="disk is full"), VideoWriter(path, 8.0) as writer:
        writer.write(flat(1))
        mux = writer._mux

        def full(picture: Any) -> None:
            if picture is None:
                raise VideoError("disk is full")
            mux(picture)

        monkeypatch.setattr(writer, "_mux", full)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_colon_in_a_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video("12:30.mp4", [flat(9)] * 3, 8.0)
    assert probe("12:30.mp4").frames == 3


def test_stills_are_clips_of_one_frame_at_any_rate(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "webp", "bmp"):
        path = tmp_path / f"still.{suffix}"
        Image.fromarray(flat(12)).save(path)
        for fps in (None, 8):
            frames = list(read_frames(path, fps=fps))
            assert len(frames) == 1 and np.abs(frames[0].astype(int) - 96).max() <= 2
        info = probe(path)
        assert (info.frames, info.duration, info.fps, info.has_alpha) == (1, None, 1.0, False)
    assert read_image(path, (16, 16)).shape == (16, 16, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "CMYK", "1"])
def test_png_modes_become_rgb_over_black(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        Image.fromarray(np.full((8, 8), 200 << 8, np.uint16)).save(path)
    elif mode in ("RGBA", "LA"):
        Image.new("RGBA", (8, 8), (255, 255, 255, 200)).convert(mode).save(path)
    elif mode == "P":
        image = Image.new("P", (8, 8), 1)
        image.putpalette([0, 0, 0, 200, 200, 200])
        image.putpixel((0, 0), 0)
        image.save(path, transparency=0)
        assert probe(path).has_alpha and not read_image(path)[0, 0].any()
    elif mode == "CMYK":
        Image.new("CMYK", (8, 8), (55, 55, 55, 0)).save(path)
    else:
        Image.new("1", (8, 8), 1).save(path)
    got = read_image(path)
    assert got.shape == (8, 8, 3)
    assert got[4, 4].tolist() == pytest.approx([255 if mode == "1" else 200] * 3, abs=2)


def test_photo_with_exif_orientation_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn 90 degrees clockwise
    Image.fromarray(corners()).save(tmp_path / "a.jpg", exif=exif, quality=95)
    frame = read_image(tmp_path / "a.jpg")
    assert frame.shape == (48, 32, 3) and corner_names(frame) == "brkg"
    assert probe(tmp_path / "a.jpg").rotation == 90


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animated_image_durations_are_timestamps(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"anim.{suffix}"
    images = [Image.fromarray(flat(i)) for i in (4, 12, 20)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=[100, 300, 200])
    assert indices(read_frames(path)) == [4, 12, 20]
    assert indices(read_frames(path, fps=10)) == [4, 12, 12, 12, 20, 20]
    assert indices(read_frames(path, fps=10, start=0.3)) == [12, 20, 20]
    info = probe(path)
    assert (info.frames, info.duration, info.fps) == (3, pytest.approx(0.6), pytest.approx(5.0))


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_transparent_animation_is_shown_over_black(tmp_path: Path, suffix: str) -> None:
    images = []
    for i in range(3):
        pixels = np.full((32, 32, 4), 240, np.uint8)
        pixels[:, :, 3] = 0
        pixels[:, 8 * i : 8 * i + 8, 3] = 255
        images.append(Image.fromarray(pixels))
    path = tmp_path / f"a.{suffix}"
    images[0].save(path, save_all=True, append_images=images[1:], duration=80, disposal=2)
    for i, frame in enumerate(read_frames(path)):
        assert abs(float(frame[:, 8 * i + 2 : 8 * i + 6].mean()) - 240) < 6
        frame[:, 8 * i : 8 * i + 8] = 0
        assert frame.max() < 12
    if suffix == "gif":  # the WebP encoder found the areas opaque
        assert probe(path).has_alpha


def test_gif_without_delay_plays_at_ten_frames_a_second_as_in_browsers(tmp_path: Path) -> None:
    images = [Image.fromarray(flat(i)) for i in range(5)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=0)
    assert probe(tmp_path / "a.gif").duration == pytest.approx(0.5)


# --- trouble ----------------------------------------------------------------------------------


def test_files_that_are_no_clip_say_why_in_one_line(tmp_path: Path, clip: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "garbage.mp4").write_bytes(rng.bytes(5000))
    (tmp_path / "notes.txt").write_text("shopping list\n" * 50)
    (tmp_path / "zeros.png").write_bytes(bytes(3000))
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "header.mp4").write_bytes(clip.read_bytes()[:300])
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "stub.png").write_bytes(data[:20])
    encode(tmp_path / "sound.m4a", [], sound=("aac", 44100, 0.5))
    cases = {
        "garbage.mp4": "convert", "notes.txt": "video", "zeros.png": "mp4", "empty.mp4": "empty",
        "header.mp4": "complete", "cut.png": "damaged", "stub.png": "stub",
        "sound.m4a": "only sound", "absent.mp4": "no file", ".": "folder",
    }  # fmt: skip
    for name, reason in cases.items():
        for use in (lambda p: next(read_frames(p)), probe):
            with pytest.raises(VideoError, match=reason) as caught:
                use(tmp_path / name)
            assert "\n" not in str(caught.value), name


@pytest.mark.skipif(not hasattr(av.stream, "Disposition"), reason="PyAV < 14 does not tell")
def test_a_song_with_a_cover_picture_is_not_a_video(tmp_path: Path) -> None:
    song = encode(tmp_path / "song.mp3", [], sound=("libmp3lame", 44100, 0.5)).read_bytes()
    Image.fromarray(flat(9)).save(tmp_path / "cover.png")
    cover = (tmp_path / "cover.png").read_bytes()
    body = b"\0image/png\0\x03\0" + cover
    frame = b"APIC" + struct.pack(">I", len(body)) + b"\0\0" + body
    size = bytes((len(frame) >> shift) & 127 for shift in (21, 14, 7, 0))
    song = song[10 + int.from_bytes(song[6:10], "big") :] if song[:3] == b"ID3" else song
    (tmp_path / "song.mp3").write_bytes(b"ID3\x03\0\0" + size + frame + song)
    with pytest.raises(VideoError, match="only sound"):
        probe(tmp_path / "song.mp3")


def test_content_counts_not_the_extension(tmp_path: Path, clip: Path) -> None:
    for name in ("clip.png", "clip.txt", "clip"):
        (tmp_path / name).write_bytes(clip.read_bytes())
        assert len(list(read_frames(tmp_path / name))) == 30
    write_png(tmp_path / "still.png", flat(3))
    os.replace(tmp_path / "still.png", tmp_path / "still.mp4")
    assert indices(read_frames(tmp_path / "still.mp4")) == [3]


@pytest.mark.parametrize("kind", ["fast.mp4", "a.mkv", "a.ts", "a.gif", "a.avi"])
def test_a_truncated_file_gives_what_decodes_and_says_so(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (64, 64, 3), np.uint8) for _ in range(60)]
    path = tmp_path / kind
    if kind == "a.gif":
        images = [Image.fromarray(f) for f in frames]
        images[0].save(path, save_all=True, append_images=images[1:], duration=30)
    elif kind == "fast.mp4":
        write_video(path, frames, 30)
    else:
        encode(path, frames, codec="mpeg4" if kind == "a.avi" else "libx264")
    whole = path.read_bytes()
    problems: list[str] = []
    assert len(list(read_frames(path, on_problem=problems.append))) == 60 and not problems
    path.write_bytes(whole[: len(whole) // 2])
    got = list(read_frames(path, on_problem=problems.append))
    assert 10 < len(got) < 50
    if kind not in ("a.ts",):  # a transport stream has no end to miss
        assert problems and all(kind in p and "\n" not in p for p in problems)


def test_damage_in_the_middle_is_skipped_and_told_once(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", [flat(i % 30) for i in range(60)], options={"g": "10"})
    with av.open(str(path)) as container:
        packets: list[Any] = [p for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for packet in packets[20:24]:
        data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(data)
    problems: list[str] = []
    got = indices(read_frames(path, on_problem=problems.append))
    assert 50 <= len(got) < 60 and got[:15] == list(range(15)) and got[-20:] == list(range(10, 30))
    assert problems and len(set(problems)) == len(problems)


@pytest.mark.parametrize("kind", ["a.mkv", "a.ts", "a.avi"])
def test_a_container_damaged_in_the_middle_plays_on_behind_it(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (64, 64, 1), np.uint8).repeat(3, axis=2)
    frames = [np.roll(noise, i, 0) for i in range(60)]
    codec = "mpeg4" if kind == "a.avi" else "libx264"
    path = encode(tmp_path / kind, frames, codec=codec, options={"g": "10"})
    data = bytearray(path.read_bytes())
    middle = len(data) // 3
    data[middle : middle + 6000] = rng.bytes(6000)
    path.write_bytes(data)
    got = list(read_frames(path))
    assert 30 <= len(got) <= 60
    errors = [float(np.abs(got[-1].astype(int) - frame).mean()) for frame in frames]
    assert int(np.argmin(errors)) >= 57


def test_a_latin1_tag_does_not_make_a_clip_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "tag.mkv"
    with av.open(str(path), "w") as out:
        out.metadata["title"] = "XXXX"
        stream: Any = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        out.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        out.mux(stream.encode())
    path.write_bytes(path.read_bytes().replace(b"XXXX", b"\xe4\xf6\xfc\xdf"))
    assert probe(path).width == 32


@pytest.mark.parametrize(
    "bad", [{"fps": 0}, {"fps": float("nan")}, {"size": (0, 4)}, {"fit": "no"}, {"max_frames": 0},
            {"start": -1}]
)  # fmt: skip
def test_bad_arguments_are_told_at_the_call(clip: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(VideoError, match="Got"):
        read_frames(clip, **bad)


def test_reading_is_lazy_and_holds_only_a_few_frames(tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    write_video(path, (flat(i % 30, 360, 640) for i in range(200)), 30, crf=30)
    tracemalloc.start()
    try:
        for fps in (None, 10):
            assert sum(1 for _ in read_frames(path, fps=fps)) == (67 if fps else 200)
        assert tracemalloc.get_traced_memory()[1] < 8 * 360 * 640 * 3
    finally:
        tracemalloc.stop()


# --- writing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [24, 29.97, Fraction(24000, 1001), 12.5])
def test_writing_and_reading_agree(tmp_path: Path, fps: float | Fraction) -> None:
    path = tmp_path / "out.mp4"
    assert write_video(path, (flat(i) for i in range(24)), fps) == 24
    assert indices(read_frames(path)) == list(range(24))
    assert indices(read_frames(path, fps=float(fps))) == list(range(24))
    assert probe(path).fps == pytest.approx(float(fps), rel=1e-6)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # plays while it loads


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_written_colours_are_read_back(
    tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if codec == "mpeg4":
        monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    frame = np.full((32, 32, 3), COLOR, np.uint8)
    write_video(tmp_path / "a.mp4", [frame] * 5, 10)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.name == codec.replace("libx264", "h264")
    got = next(read_frames(tmp_path / "a.mp4"))
    assert np.abs(got.astype(int) - COLOR).max() <= 4


def test_odd_sizes_grow_by_a_repeated_edge_not_a_black_line(tmp_path: Path) -> None:
    write_video(tmp_path / "odd.mp4", [flat(20, 31, 45)] * 3, 10)
    frame = next(read_frames(tmp_path / "odd.mp4"))
    assert frame.shape == (32, 46, 3) and frame.min() > 150


def test_odd_sized_sources_are_read_whole(tmp_path: Path) -> None:
    frames = [flat(20, 31, 45)] * 2
    path = encode(tmp_path / "odd.mkv", frames, codec="ffv1", pix_fmt="bgr0")
    assert [frame.shape for frame in read_frames(path)] == [(31, 45, 3)] * 2


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("aac", "mp4"), ("aac", "ts"), ("libopus", "mkv"), ("pcm_s16le", "mkv"), ("libmp3lame", "avi"),
     ("flac", "mkv"), ("alac", "mov"), ("ac3", "ts")],
)  # fmt: skip
def test_sound_is_carried_over_and_cut(tmp_path: Path, codec: str, suffix: str) -> None:
    source = tmp_path / f"source.{suffix}"
    encode(source, [flat(i) for i in range(20)], rate=10, sound=(codec, 48000, 2.0))
    out, problems = tmp_path / "out.mp4", []  # type: tuple[Path, list[str]]
    frames = itertools.islice(read_frames(source), 10)
    write_video(out, frames, 10, audio_from=source, on_problem=problems.append)
    assert not problems
    assert sound_seconds(out) == pytest.approx(1.0, abs=0.1)
    assert indices(read_frames(out)) == list(range(10))
    with av.open(str(out)) as container:
        assert container.streams.audio[0].codec_context.name == "aac"
        assert (container.duration or 0) / av.time_base == pytest.approx(1.0, abs=0.1)


def test_sound_shorter_than_the_video(tmp_path: Path, talkie: Path) -> None:
    out = tmp_path / "out.mp4"
    write_video(out, [flat(3)] * 50, 10, audio_from=talkie)
    assert sound_seconds(out) == pytest.approx(2.0, abs=0.1)
    assert len(list(read_frames(out))) == 50


def test_sound_with_a_clock_that_jumps_back_does_not_cost_the_video(tmp_path: Path) -> None:
    part = encode(tmp_path / "a.ts", [flat(i) for i in range(10)], rate=10, sound=("aac", 44100, 1))
    (tmp_path / "joined.ts").write_bytes(part.read_bytes() * 2)
    out, fps = tmp_path / "out.mp4", np.float32(10)  # type: tuple[Path, Any]
    assert write_video(out, [flat(3)] * 20, fps, audio_from=tmp_path / "joined.ts") == 20
    assert 0.9 < sound_seconds(out) < 2.1 and len(list(read_frames(out))) == 20


def test_sources_without_usable_sound_are_fine(tmp_path: Path, clip: Path) -> None:
    out = tmp_path / "out.mp4"
    Image.fromarray(flat(3)).save(tmp_path / "still.webp")
    (tmp_path / "garbage.mp4").write_bytes(bytes(range(256)) * 20)
    for source in (clip, tmp_path / "still.webp", tmp_path / "garbage.mp4"):
        assert write_video(out, [flat(3)] * 4, 10, audio_from=source) == 4
        assert not probe(out).has_audio and len(list(read_frames(out))) == 4
    with pytest.raises(VideoError, match="no file"):
        VideoWriter(out, 10, audio_from=tmp_path / "absent.mp4")


def test_an_error_while_writing_keeps_the_old_file_and_leaves_no_temp(tmp_path: Path) -> None:
    target = tmp_path / "out.mp4"
    target.write_bytes(b"old")

    def frames() -> Iterator[np.ndarray]:
        yield from [flat(1)] * 90  # more than the encoder holds back
        assert len(list(tmp_path.iterdir())) == 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(target, frames(), 10)
    with pytest.raises(VideoError, match="one size"):
        write_video(target, [flat(1), flat(1, 40, 40)], 10)
    with pytest.raises(VideoError, match="No frame"):
        write_video(target, [], 10)
    with pytest.raises(VideoError, match="uint8"):
        write_video(target, [flat(1).astype(np.float32)], 10)
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"] and target.read_bytes() == b"old"
    write_video(target, [flat(1)], 10)
    assert indices(read_frames(target)) == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]


def test_targets_that_cannot_be_are_told_before_any_work(tmp_path: Path) -> None:
    for path, fps, reason in (
        (tmp_path / "out.webm", 10, "mp4"),
        (tmp_path / "absent" / "out.mp4", 10, "existing folder"),
        (tmp_path / "out.mp4", 0, "fps"),
    ):
        with pytest.raises(VftError, match=reason):
            VideoWriter(path, fps)


def test_png_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    write_png(path, corners())
    assert np.array_equal(read_image(path), corners())

    def full_disk(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "replace", full_disk)
    with pytest.raises(VideoError, match="No space"):
        write_png(path, flat(1))
    assert np.array_equal(read_image(path), corners()) and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(VideoError, match="uint8"):
        write_png(path, flat(1).astype(np.float32))


# --- tensors ----------------------------------------------------------------------------------


def test_tensors_and_frames_round_trip_exactly() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    video = to_tensor([ramp, 255 - ramp])
    assert video.shape == (3, 2, 16, 16) and video.dtype == torch.float32
    assert video.is_contiguous() and video.min() == -1 and video.max() == 1
    back = list(to_frames(video))
    assert np.array_equal(back[0], ramp) and np.array_equal(back[1], 255 - ramp)
    loud = next(to_frames(torch.full((3, 1, 2, 2), 7.0, dtype=torch.bfloat16)))
    assert loud.tolist() == np.full((2, 2, 3), 255).tolist()
    with pytest.raises(VideoError):
        to_tensor([])
    with pytest.raises(VideoError):
        next(to_frames(torch.zeros(2, 3, 4, 4)))
