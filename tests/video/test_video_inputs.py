"""Bad clips, made for real: each works, with what was wrong told, or is one line that says why."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import moving_picture
from PIL import Image
from read_damaged import damaged

from vft_lib.cli.vft import main
from vft_lib.clips.stream import encode_file
from vft_lib.errors import MAX_MESSAGE, VftError
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.tokens import Tokens
from vft_lib.video.frames import VideoError, fit_frame
from vft_lib.video.video_in import check_source, probe, read_frames, read_image, shown_size
from vft_lib.video.video_out import write_video
from video.test_video_io import encode, flat, indices

INPUTS = Path(__file__).parent / "inputs"
READ_DAMAGED = Path(__file__).parents[1] / "read_damaged.py"
DAMAGES = 40  # of each kind of file


def refused(path: Path | str) -> str:
    """The one line with which both ways of reading refuse a file."""
    with pytest.raises(VideoError) as caught:
        list(read_frames(path))
    with pytest.raises(VideoError):
        probe(path)
    assert str(caught.value).isprintable()
    return str(caught.value)


@contextlib.contextmanager
def memory_peak() -> Iterator[Callable[[], int]]:
    """Yields a function: by how many bytes the process grew at most since."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    except OSError:
        pytest.skip("this system does not measure a process' peak memory")

    def read(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(x.split()[1]) for x in lines if x.startswith(name)) * 1024

    before = read("VmRSS")
    yield lambda: read("VmHWM") - before


# --- damage -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, clip = tmp_path_factory.mktemp("whole"), list(moving_picture(24, 48, 64))
    plain = {"g": "8"}
    encode(folder / "whole.mp4", clip, options=plain, sound=("aac", 44100, 1.0))
    encode(folder / "whole.mkv", clip, options=plain, sound=("aac", 44100, 1.0))
    encode(folder / "whole.ts", clip, options=plain, sound=("aac", 44100, 1.0))
    encode(folder / "whole.webm", clip, codec="libvpx", options=plain)
    encode(folder / "whole.avi", clip, codec="mpeg4", options=plain)
    encode(folder / "whole.flv", clip, codec="flv1")
    encode(folder / "whole.mov", clip, codec="qtrle", pix_fmt="rgb24")
    encode(folder / "whole.mts", clip, options=plain | {"x264-params": "tff=1"})
    for name in ("alpha-vp9.webm", "hlg.mp4", "tiled.heic"):
        shutil.copy(INPUTS / name, folder / f"whole.{name.partition('.')[0]}")
    images = [Image.fromarray(frame) for frame in clip[:8]]
    for name in ("whole.gif", "whole.webp", "whole.png"):
        images[0].save(folder / name, save_all=True, append_images=images[1:], duration=80)
    images[0].save(folder / "whole.jpg")
    images[0].save(folder / "whole.tiff")
    return folder


@pytest.mark.slow
def test_random_damage_gives_frames_or_one_line_and_nothing_else(whole_files: Path) -> None:
    """Sixteen kinds, 40 damages each. Found an IndexError (GIF), a ValueError of PyAV's side
    data, a 200 megapixel frame in a 20 kB FLV, and a picture held for years."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(READ_DAMAGED),
        str(whole_files),
        "0",
        str(DAMAGES),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert run.returncode == 0, f"{run.stderr[-2000:]}\nafter {lines[-1:]}"
    done = [line for line in lines if "outcome" in line]
    assert len(done) == 16 * DAMAGES
    slowest = max(done, key=lambda line: float(line["seconds"]))
    assert slowest["seconds"] < 10, slowest
    assert done[-1]["megabytes"] - done[0]["megabytes"] < 600
    worked = sum(line["outcome"] == "frames" for line in done)
    assert 0.3 < worked / len(done) < 0.95, "both must have been tried"
    assert sum(bool(line["told"]) for line in done) > len(done) / 10


def broken_in_the_middle(path: Path) -> Path:
    """Sixty frames, of which four packets are zeroed; a key frame every ten."""
    encode(path, [flat(i % 30) for i in range(60)], options={"g": "10", "bf": "0"})
    with av.open(str(path)) as container:
        packets: list[Any] = [p for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for packet in packets[33:36]:
        data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(data)
    return path


def test_damage_in_the_middle_is_told_with_its_frame(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = broken_in_the_middle(tmp_path / "a.mp4")
    problems: list[str] = []
    got = indices(read_frames(path, on_problem=problems.append))
    assert got[:30] == list(range(30)) and got[-20:] == list(range(10, 30))
    told = next(p for p in problems if "skipped" in p)
    frame = int(told.split("near frame ")[1].split()[0])
    assert 28 <= frame <= 33, told
    assert f"({frame / 30:.2f} s)" in told
    with caplog.at_level(logging.WARNING, "videoflextok"):
        list(read_frames(path))
    assert problems == [r.getMessage() for r in caplog.records], "silence by default"


def test_the_command_line_says_which_frame_is_damaged(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = broken_in_the_middle(tmp_path / "a.mp4"), tmp_path / "a.vft"
    command = ["encode", str(path), "-o", str(out), "--tokenizer", str(tiny_checkpoint)]
    assert main([*command, "--fps", "30"]) == 0
    assert "vft: note: a.mp4: damaged video data was skipped, near frame" in capsys.readouterr().err
    assert Tokens.load(out).frames == 60


@pytest.mark.parametrize("name", ["a.mkv", "a.avi", "a.webm", "a.gif", "a.webp"])
def test_what_was_decoded_before_a_cut_is_kept(
    tmp_path: Path, tiny_tokenizer: Tokenizer, name: str
) -> None:
    path, noise = tmp_path / name, np.random.default_rng(0).integers(0, 255, (60, 64, 64, 3))
    frames = list(noise.astype(np.uint8))
    if name in ("a.gif", "a.webp"):
        images = [Image.fromarray(f) for f in frames]
        images[0].save(path, save_all=True, append_images=images[1:], duration=50)
    else:
        codec = {"a.avi": "mpeg4", "a.webm": "libvpx", "a.mkv": "libx264"}[name]
        encode(path, frames, codec=codec, rate=20)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    problems: list[str] = []
    try:
        tokens = encode_file(tiny_tokenizer, path, fps=20, on_problem=problems.append)
    except VftError as e:
        assert name == "a.webp" and "cannot be read" in str(e)  # its decoder wants the whole file
        return
    assert 10 < tokens.frames < 50 and problems
    whole = list(read_frames(path, size=(32, 32), fps=20, on_problem=problems.append))
    assert tokens.frames == len(whole)


def test_sound_that_cannot_be_used_does_not_cost_the_video(tmp_path: Path) -> None:
    """Sound of a codec without a decoder ended a decode with an AttributeError, damaged sound that
    was copied ended it with "out.mp4 cannot be written"."""
    frames = [flat(i) for i in range(10)]
    path = encode(tmp_path / "a.mkv", frames, rate=10, sound=("aac", 44100, 1.0))
    path.write_bytes(path.read_bytes().replace(b"A_AAC", b"A_ZZZ"))
    problems: list[str] = []
    out = tmp_path / "out.mp4"
    assert write_video(out, frames, 10, audio_from=path, on_problem=problems.append) == 10
    assert "no decoder" in problems[0] and len(list(read_frames(out))) == 10
    whole = encode(tmp_path / "a.ts", frames, rate=10, sound=("aac", 44100, 1.0)).read_bytes()
    rng, problems = np.random.default_rng(0), []
    for _ in range(30):
        path.write_bytes(damaged(whole, rng))
        assert write_video(out, frames, 10, audio_from=path, on_problem=problems.append) == 10
    assert any("ends early or is left out" in p for p in problems)


# --- what containers claim --------------------------------------------------------------------


def test_a_jump_of_the_clock_does_not_hold_a_picture_for_days(tmp_path: Path) -> None:
    pts = [0, 100, 200, 10**9, 10**9 + 100, 10**9 + 200]  # ms: 11 days
    frames = [flat(i) for i in range(6)]
    path = encode(tmp_path / "a.mkv", frames, pts=pts, options={"bf": "0"}, rate=10)
    problems: list[str] = []
    got = indices(read_frames(path, fps=10, on_problem=problems.append))
    assert got == list(range(6))
    assert any("jumps ahead, at 0.20 s by" in p for p in problems)


def test_a_picture_that_stays_for_minutes_is_no_jump(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", [flat(1), flat(2)], pts=[0, 500_000], options={"bf": "0"})
    problems: list[str] = []
    got = indices(read_frames(path, fps=1, on_problem=problems.append))
    assert got[:500] == [1] * 500 and not problems


@pytest.mark.parametrize("box", ["mvhd", "mdhd", "tkhd"])
def test_an_absurd_length_in_the_header_does_no_harm(
    tmp_path: Path, tiny_tokenizer: Tokenizer, box: str
) -> None:
    path = encode(tmp_path / "a.mp4", [flat(i) for i in range(9)], rate=8)
    data = bytearray(path.read_bytes())
    at = data.index(box.encode()) + 4
    at += 20 if box == "tkhd" else 16
    data[at : at + 4] = b"\xff\xff\xff\xfe"
    path.write_bytes(data)
    seen: list[tuple[int, int | None]] = []
    tokens = encode_file(tiny_tokenizer, path, progress=lambda *step: seen.append(step))
    assert tokens.frames == 9 and seen[-1] == (1, 1)


@pytest.mark.parametrize(("scale", "rate"), [(0, 30), (30, 0), (1, 4 * 10**9), (4 * 10**9, 1)])
def test_an_absurd_frame_rate_is_not_believed(tmp_path: Path, scale: int, rate: int) -> None:
    path = encode(tmp_path / "a.avi", [flat(i) for i in range(9)], codec="mpeg4")
    data = bytearray(path.read_bytes())
    at = data.index(b"strh") + 8 + 20  # dwScale, dwRate
    data[at : at + 8] = struct.pack("<II", scale, rate)
    path.write_bytes(data)
    try:
        assert 0.01 <= probe(path).fps <= 1000
        assert 1 <= len(list(read_frames(path, fps=8, max_frames=10_000))) < 10_000
    except VideoError as e:
        assert "\n" not in str(e)


def claimed(kind: str, folder: Path) -> Path:
    """A small file that claims 65,000 x 65,000 pixels, in its header or in its pictures."""
    path = folder / f"a.{kind}"
    if kind == "mkv":  # a motion JPEG whose pictures say otherwise than the container
        encode(path, [flat(i) for i in range(3)], codec="mjpeg", pix_fmt="yuvj420p")
        data = bytearray(path.read_bytes())
        at = 0
        while (at := data.find(b"\xff\xc0", at + 1)) >= 0:
            data[at + 5 : at + 9] = struct.pack(">HH", 65000, 65000)
        path.write_bytes(data)
    elif kind == "y4m":
        path.write_bytes(b"YUV4MPEG2 W65000 H65000 F25:1 Ip A1:1 C420jpeg\nFRAME\n" + bytes(9999))
    else:
        Image.fromarray(flat(1)).save(path)
        data = bytearray(path.read_bytes())
        sides = {"png": (16, ">II"), "bmp": (18, "<II"), "gif": (6, "<HH")}
        at, pack = sides[kind]
        struct.pack_into(pack, data, at, 65000, 65000)
        path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", ["mkv", "y4m", "png", "bmp", "gif"])
def test_a_small_file_that_claims_a_huge_picture_is_refused_without_memory(
    tmp_path: Path, kind: str
) -> None:
    path = claimed(kind, tmp_path)
    with memory_peak() as grown:
        told = refused(path)
        assert grown() < 300 << 20, told


def test_a_playlist_reads_nothing_that_it_names(tmp_path: Path) -> None:
    """FFmpeg would open what a "video" of a stranger names, or a pattern of file names."""
    clip = encode(tmp_path / "secret.mp4", [flat(i) for i in range(9)])
    encode(tmp_path / "secret.ts", [flat(i) for i in range(9)])
    Image.fromarray(flat(9)).save(tmp_path / "b1.jpg")
    texts = {
        "a.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/secret.ts\n"
        "#EXT-X-ENDLIST\n",
        "a.ffconcat": f"ffconcat version 1.0\nfile {clip.name}\n",
        "a.mp4": f"ffconcat version 1.0\nfile {clip.name}\n",
        "b%d.jpg": "no picture at all",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        assert "cannot be read as video or image" in refused(tmp_path / name)


# --- how many and how large -------------------------------------------------------------------


def test_a_clip_without_frames_is_named_and_one_frame_is_a_clip(
    tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    with av.open(str(tmp_path / "none.mp4"), "w") as out:
        stream: Any = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        out.start_encoding()
    assert "none.mp4" in refused(tmp_path / "none.mp4")
    one = encode(tmp_path / "one.mp4", [flat(9)])
    assert indices(read_frames(one, fps=8)) == [9]
    assert encode_file(tiny_tokenizer, one).frames == 1


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_ten_bit_video_of_odd_rotation_and_size_is_upright(tmp_path: Path, codec: str) -> None:
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    # Smaller than its 64 px blocks, x265 writes beyond its memory.
    frames = [flat(i, 66, 98) for i in (0, 12, 30)]
    path = tmp_path / "a.mp4"
    encode(path, frames, codec=codec, pix_fmt="yuv420p10le", options=options)
    assert indices(read_frames(path)) == [0, 12, 30]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    assert next(read_frames(path)).shape == (98, 66, 3) and probe(path).rotation == 90


GIANT = (4320, 7680)  # 8K


@pytest.fixture(scope="module")
def giant() -> np.ndarray:
    y, x = np.mgrid[: GIANT[0], : GIANT[1]]
    return np.stack([x >> 5, y >> 5, (x + y) >> 6], -1).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "megabytes"),
    [("a.jpg", 40), ("a.png", 180), ("alpha.png", 320), ("grey16.png", 300), ("a.bmp", 180)],
)
def test_an_8k_still_is_made_smaller_while_it_is_read(
    tmp_path: Path, giant: np.ndarray, name: str, megabytes: int
) -> None:
    """A JPEG is decoded small; of others there is one whole picture (100 MB), of those with alpha
    or 16 bits another one while it is reduced. There were four."""
    path, expected = tmp_path / name, fit_frame(giant, (64, 64), "crop")
    if name == "alpha.png":
        image = Image.fromarray(np.dstack([giant, np.full(GIANT, 255, np.uint8)]))
    elif name == "grey16.png":
        image = Image.fromarray(giant[..., 0].astype(np.uint16) << 8)
        expected = expected[..., :1].repeat(3, 2)
    else:
        image = Image.fromarray(giant)
    image.save(path, compress_level=1)  # of a PNG
    del image
    with memory_peak() as grown:
        got = read_image(path, (64, 64))
        info = probe(path)
        assert grown() < megabytes << 20
    assert (info.height, info.width) == GIANT
    assert np.abs(got.astype(int) - expected).mean() < 1
    with memory_peak() as grown:  # and it still can be read as it is
        assert read_image(path).shape == (*GIANT, 3)


@pytest.mark.slow
def test_8k_video_is_made_smaller_while_it_is_read(tmp_path: Path, giant: np.ndarray) -> None:
    path = tmp_path / "a.mp4"
    options = {"preset": "ultrafast", "bf": "0"}
    encode(path, [giant] * 2, options=options, colorspace=1, color_range=1)
    with memory_peak() as grown:
        got = list(read_frames(path, size=(64, 64)))
        assert grown() < 700 << 20  # FFmpeg's own pictures, 50 MB each
    # Without colours the matrix does not matter.
    expected = fit_frame(giant, (64, 64), "crop").astype(int).mean(-1)
    assert len(got) == 2 and np.abs(got[0].astype(int).mean(-1) - expected).mean() < 6


def test_a_strip_is_cut_before_it_is_enlarged() -> None:
    """A picture 1 pixel high became 64 high and 64 times as wide, 2.4 GB for a crop of 64 px."""
    strip = np.zeros((1, 200_000, 3), np.uint8)
    strip[:, 100_000:] = 255
    tracemalloc.start()
    try:
        with memory_peak() as grown:
            got = fit_frame(strip, (64, 64), "crop")
            assert grown() < 40 << 20
    finally:
        tracemalloc.stop()
    assert got.shape == (64, 64, 3) and got[:, 0].max() < 9 and got[:, -1].min() > 246
    assert fit_frame(strip.swapaxes(0, 1), (64, 64), "crop").shape == (64, 64, 3)


# --- paths ------------------------------------------------------------------------------------


def test_paths_that_hold_no_clip_say_why(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "note.txt").write_text("x")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as bound:
        os.chdir(tmp_path)  # the name of a socket is short
        bound.bind("socket")
        cases = {
            tmp_path / "pipe.mp4": "a pipe or a device", tmp_path / "socket": "a pipe or a device",
            Path("/dev/zero"): "a pipe or a device", tmp_path: "is a folder",
            tmp_path / "gone.mp4": "no file", tmp_path / "note.txt" / "a.mp4": "no file",
            tmp_path / "a\0b.mp4": "no file", tmp_path / ("n" * 300): "too long",
            tmp_path / "x\n\x1b[2J.mp4": "no file", tmp_path / "\udcff.mp4": "no file",
        }  # fmt: skip
        for path, reason in cases.items():
            assert reason in refused(path), path
    assert "empty file name" in refused("")
    (tmp_path / "loop").symlink_to("loop")
    assert "cannot be read" in refused(tmp_path / "loop")


def test_a_file_that_may_not_be_read_is_named() -> None:
    with tempfile.TemporaryDirectory() as name:  # tmp_path is closed to others than root
        secret, closed = Path(name) / "secret.mp4", Path(name) / "closed"
        secret.write_bytes(bytes(100))
        secret.chmod(0)
        closed.mkdir(mode=0)
        Path(name).chmod(0o755)
        root = os.geteuid() == 0  # who may read everything: be nobody for a moment
        if root:
            os.seteuid(65534)
        try:
            for path in (secret, closed / "a.mp4"):
                with pytest.raises(VideoError, match="may not be read; check its permissions"):
                    check_source(path)
        finally:
            if root:
                os.seteuid(0)
            closed.chmod(0o755)


def test_an_error_is_one_line_of_bounded_length_whatever_it_quotes() -> None:
    error = VftError("name\r\n\x1b[31m\u2028 " + "x" * 10**6)
    assert str(error).isprintable() and len(str(error)) < MAX_MESSAGE + 10
    assert str(VftError("cannot read clip.mp4")) == "cannot read clip.mp4"


def test_arguments_out_of_range_are_told(tmp_path: Path) -> None:
    clip = encode(tmp_path / "a.mp4", [flat(1)] * 3)
    for start in (float("inf"), float("nan"), 1e300, -1.0):
        with pytest.raises(VideoError, match="Got start="):
            read_frames(clip, start=start)
    before = time.process_time()
    with pytest.raises(VideoError, match="past the clip's end"):
        next(read_frames(clip, start=9e6))
    assert time.process_time() - before < 5


def test_a_frame_rate_of_fractions_is_kept(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", [flat(i) for i in range(5)], rate=Fraction(24000, 1001))
    assert probe(path).fps == pytest.approx(23.976, abs=1e-3)


def test_the_size_alone_is_the_one_that_all_facts_hold(tmp_path: Path) -> None:
    frames = [Image.fromarray(frame) for frame in moving_picture(4, 40, 64)]
    turned = Image.Exif()
    turned[0x0112] = 6
    frames[0].save(tmp_path / "turned.jpg", exif=turned)
    frames[0].save(tmp_path / "moves.webp", save_all=True, append_images=frames[1:], duration=125)
    write_video(tmp_path / "clip.mp4", moving_picture(5, 40, 64), 8)
    sizes = {}
    for path in tmp_path.iterdir():
        info = probe(path)
        sizes[path.name] = shown_size(path)
        assert sizes[path.name] == (info.height, info.width)
    assert sizes == {"turned.jpg": (64, 40), "moves.webp": (40, 64), "clip.mp4": (40, 64)}
