"""Sound in step with the pictures, in a form that players take: a white flash and a beep at one
moment of the source are at one moment of what is written."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from vft_lib.video.video_in import read_frames
from vft_lib.video.video_out import VideoWriter, write_video
from video.test_video_io import encode, flat, sound_seconds

FPS = 25
RATE = 48000
MOMENT = 2.0  # s, of flash and beep on the source's clock
FRAME = 1 / FPS


def recording(
    path: Path, codec: str = "aac", *, pictures: float = 0.0, sound: float = 0.0,
    until: float = 3.0, moments: tuple[float, ...] = (MOMENT,), gap: tuple[float, float] = (9, 9),
    layout: str = "stereo", picture_codec: str = "libx264", before: str = "",
    **options: Any,
) -> Path:  # fmt: skip
    """Black pictures and silence, each from its time on; for 0.2 s from each moment on a flash and
    a beep. No sound is stored in `gap`. `before`: a first track of that codec."""
    noise = np.random.default_rng(0)  # of some size, as pictures are: stamped one by one
    with av.open(str(path), "w") as out:
        video: Any = out.add_stream(picture_codec, rate=FPS)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.options = {"g": "50", "bf": "2", "preset": "ultrafast", "sc_threshold": "0"} | options
        other: Any = out.add_stream(before, rate=RATE, layout=layout) if before else None
        track: Any = out.add_stream(codec, rate=RATE, layout=layout)
        pieces: list[tuple[float, Any]] = []
        for i in range(round(pictures * FPS), round(until * FPS)):
            lit = any(m - 1e-6 <= i * FRAME < m + 0.2 for m in moments)
            planes = np.full((72, 64), 128, np.uint8)  # of brightness, then of colours: none
            planes[:48] = noise.integers(155 * lit, 100 + 155 * lit, (48, 64), "u1", endpoint=True)
            frame = av.VideoFrame.from_ndarray(planes, "yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            pieces.append((i * FRAME, frame))
        step = track.codec_context.frame_size or 1024
        channels = len(track.codec_context.layout.channels)
        wide, kind = track.codec_context.format.name, track.codec_context.layout.name
        shape = av.AudioResampler(wide, kind, RATE)
        for begin in range(round(sound * RATE), round(until * RATE) - step + 1, step):
            if gap[0] <= begin / RATE < gap[1]:
                continue
            t = (begin + np.arange(step)) / RATE
            loud = np.zeros(step, bool)
            for m in moments:
                loud |= (m <= t) & (t < m + 0.2)
            tone = np.sin(t * 2 * np.pi * 1000) * 0.6 * loud + noise.normal(size=step) * 0.01
            piece = av.AudioFrame.from_ndarray(
                np.tile(tone.astype(np.float32), (channels, 1)), "fltp", kind
            )
            piece.sample_rate, piece.pts, piece.time_base = RATE, begin, Fraction(1, RATE)
            pieces += [(begin / RATE, part) for part in shape.resample(piece)]
        if other:
            silence = av.AudioFrame.from_ndarray(
                np.zeros((channels, RATE // 2), "f4"), "fltp", kind
            )
            silence.sample_rate = RATE
            out.mux([*other.encode(silence), *other.encode(None)])
        for _, piece in sorted(pieces, key=lambda p: p[0]):
            out.mux((video if isinstance(piece, av.VideoFrame) else track).encode(piece))
        out.mux(video.encode(None))
        out.mux(track.encode(None))
    return path


def edited(path: Path, *spans: tuple[float, float]) -> Path:
    """Let the edit lists of an mp4 show these spans (seconds) only, one after the other."""

    def boxes(data: bytes, scale: int) -> bytes:
        out, at = b"", 0
        while at < len(data):
            size, kind = struct.unpack_from(">I4s", data, at)
            body = data[at + 8 : at + size]
            at += size
            if kind == b"trak":
                scale = struct.unpack_from(">I", body, body.index(b"mdhd") + 16)[0]
            if kind in (b"moov", b"trak", b"edts"):
                body = boxes(body, scale)
            if kind == b"elst":
                first = struct.unpack_from(">i", body, 12)[0]  # what the encoder asks to skip
                body = struct.pack(">II", 0, len(spans))
                for begin, end in spans:
                    body += struct.pack(
                        ">IiI", round((end - begin) * 1000), first + round(begin * scale), 1 << 16
                    )
            out += struct.pack(">I4s", len(body) + 8, kind) + body
        return out

    path.write_bytes(boxes(path.read_bytes(), 0))
    return path


def moments(path: Path) -> tuple[list[float], list[float]]:
    """When flashes and beeps begin, on the file's clock."""
    flashes, beeps = [], []
    with av.open(str(path)) as container:
        for picture in container.decode(video=0):
            brightness = picture.planes[0]
            rows = np.frombuffer(brightness, np.uint8).reshape(-1, brightness.line_size)
            if rows[:, : brightness.width].mean() > 128:
                flashes.append(picture.time or 0.0)
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            wave = np.abs(frame.to_ndarray().astype(np.float64))
            loud = np.flatnonzero(wave.reshape(-1, frame.samples).max(0) > 0.15)
            beeps += list((frame.time or 0.0) + loud / frame.sample_rate)
    return began(flashes), began(beeps)


def began(times: list[float]) -> list[float]:
    return [t for t, last in zip(times, [-1.0, *times], strict=False) if t - last > 0.1]


def through(source: Path, out: Path) -> tuple[list[float], list[float]]:
    """When flashes and beeps begin once the clip was read and written with its sound."""
    problems: list[str] = []
    frames = read_frames(source, fps=FPS, on_problem=problems.append)
    write_video(out, frames, FPS, audio_from=source, on_problem=problems.append)
    assert not problems
    with av.open(str(out)) as container:
        track: Any = container.streams.audio[0]
        # From zero on, for players that know no edit lists, and of a kind that all of them know.
        assert not track.start_time and track.codec_context.name == "aac"
        assert len(track.codec_context.layout.channels) <= 2
    return moments(out)


def in_step(found: tuple[list[float], list[float]], expected: list[float]) -> bool:
    """Both within a frame of what is expected, and of each other."""
    flashes, beeps = found
    return len(flashes) == len(beeps) == len(expected) and all(
        max(times) - min(times) <= FRAME for times in zip(flashes, beeps, expected, strict=True)
    )


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.ts", "aac"), ("a.ts", "ac3"), ("a.ts", "libmp3lame"), ("a.mpg", "mp2")],
)
@pytest.mark.parametrize("part", [0.1, pytest.param(0.2, marks=pytest.mark.slow)])
def test_a_recording_that_begins_between_key_frames(
    tmp_path: Path, name: str, codec: str, part: float
) -> None:
    """Sound counted from the stream's beginning, pictures from the first that can be decoded: the
    beep came 1.7 s after the flash."""
    picture: Any = {"picture_codec": "mpeg2video", "sc_threshold": "1000000000"}
    path = recording(
        tmp_path / name, codec, until=5.0, moments=(1.0, 3.0, 4.0), bf="0",
        **(picture if codec == "mp2" else {}),
    )  # fmt: skip
    data = path.read_bytes()
    path.write_bytes(data[int(len(data) * part) // 188 * 188 :])
    with av.open(str(path)) as container:
        first = next(container.decode(video=0)).time or 0.0
        video, track = container.streams.video[0], container.streams.audio[0]
        begins = min(float((s.start_time or 0) * s.time_base) for s in (video, track))
    assert first > begins + 0.3, "nothing was cut"
    assert in_step(through(path, tmp_path / "out.mp4"), [1.0, 2.0])


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "aac"),
        pytest.param("a.mkv", "aac", marks=pytest.mark.slow),
        ("a.mkv", "libopus"),
    ],
)
@pytest.mark.parametrize(
    ("sound", "pictures"),
    [(0.0, 0.0), (0.7, 0.0), (0.0, 0.72), (-0.4, -0.4), (-0.9, -0.4), (-0.4, -0.8)],
)
def test_sound_or_pictures_that_begin_late_or_before_zero(
    tmp_path: Path, name: str, codec: str, sound: float, pictures: float
) -> None:
    """Below zero Matroska moves everything, MP4 hides it by an edit list."""
    path = recording(tmp_path / name, codec, sound=sound, pictures=pictures)
    hidden = name == "a.mp4" and pictures < 0
    expected = [MOMENT if hidden else MOMENT - pictures]
    assert in_step(through(path, tmp_path / "out.mp4"), expected)


@pytest.mark.parametrize(
    "codec", ["aac", pytest.param("libmp3lame", marks=pytest.mark.slow), "ac3"]
)
@pytest.mark.parametrize(
    ("spans", "expected"),
    [([(0.48, 3.0)], 1.52), ([(0.52, 3.0)], 1.48), ([(2.52, 3.0), (0.0, 2.52)], 2.48)],
)
def test_edit_lists(
    tmp_path: Path, codec: str, spans: list[tuple[float, float]], expected: float
) -> None:
    path = edited(recording(tmp_path / "a.mp4", codec), *spans)
    assert in_step(through(path, tmp_path / "out.mp4"), [expected])


def test_an_avi_of_reordered_frames_keeps_its_pace(tmp_path: Path) -> None:
    """AVI keeps no times of them, the guessed ones run back: a clip of 3 s became one of 5."""
    path = recording(tmp_path / "a.avi", "libmp3lame")
    assert len(list(read_frames(path, fps=FPS))) == pytest.approx(75, abs=2)
    flashes, beeps = through(path, tmp_path / "out.mp4")
    assert len(flashes) == 1 and flashes[0] == pytest.approx(beeps[0], abs=3 * FRAME)


@pytest.mark.parametrize(("codec", "layout"), [("aac", "stereo"), ("ac3", "5.1"), ("flac", "mono")])
def test_pauses_of_the_sound_are_silent_and_move_nothing(
    tmp_path: Path, codec: str, layout: str
) -> None:
    path = recording(tmp_path / "a.mkv", codec, layout=layout, gap=(0.5, 1.2))
    assert in_step(through(path, tmp_path / "out.mp4"), [MOMENT])


@pytest.mark.parametrize("codec", ["aac", "ac3"])
def test_joined_recordings(tmp_path: Path, codec: str) -> None:
    """The clock runs back where one begins between key frames; decoders mix the pictures on either
    side, which held one for seconds, and the sound ended there."""
    first = recording(tmp_path / "a.ts", codec, pictures=0.4, until=2.6)
    other = recording(tmp_path / "b.ts", codec, sound=0.6, until=5.0, moments=(1.0, 4.2))
    cut = other.read_bytes()
    both = tmp_path / "both.ts"
    both.write_bytes(first.read_bytes() + cut[int(len(cut) * 0.25) // 188 * 188 :])
    flashes, beeps = through(both, tmp_path / "out.mp4")
    assert len(flashes) == 2 and flashes[0] == pytest.approx(1.6, abs=FRAME)
    # Of the packet that is cut at the joint some decoders make a click.
    assert all(min(abs(f - b) for b in beeps) <= FRAME for f in flashes)


@pytest.mark.parametrize("codec", ["aac", pytest.param("ac3", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("shift", "part"),
    # s by which the second clock begins after the end of the first; how much of it is cut off
    [(-0.3, 0.0), (-0.6, 0.0), (-0.6, 0.1), (-0.8, 0.1), (-0.6, 0.33), (0.6, 0.1), (800.0, 0.1)],
)
def test_recordings_joined_with_an_overlap_or_a_gap(
    tmp_path: Path, codec: str, shift: float, part: float
) -> None:
    """Pictures went on behind those before, sound was cut to its own clock: up to 0.6 s apart."""
    begin = 2.6 + shift
    later = begin + 2.2, begin + 3.8  # behind a key frame
    first = recording(tmp_path / "a.ts", codec, until=2.6, moments=(1.6,))
    other = recording(
        tmp_path / "b.ts", codec, pictures=begin, sound=begin, until=begin + 5, moments=later
    )
    data, both = other.read_bytes(), tmp_path / "both.ts"
    both.write_bytes(first.read_bytes() + data[int(len(data) * part) // 188 * 188 :])
    problems: list[str] = []
    frames = read_frames(both, fps=FPS, on_problem=problems.append)
    write_video(tmp_path / "out.mp4", frames, FPS, audio_from=both, on_problem=problems.append)
    flashes, beeps = moments(tmp_path / "out.mp4")
    assert len(flashes) == 3 and flashes[0] == pytest.approx(1.6, abs=FRAME)
    assert flashes[2] - flashes[1] == pytest.approx(1.6, abs=FRAME)
    assert all(min(abs(f - b) for b in beeps) <= FRAME for f in flashes)
    if shift == 0.6:  # one clock, which stays
        # The muxer moves a recording of reordered frames by two.
        assert flashes[1] == pytest.approx(later[0], abs=3 * FRAME)
    told = [p for p in problems if "jumps ahead" in p]
    assert len(told) == (shift > 600) and all(", at 2.5" in p for p in told)


@pytest.mark.parametrize(("name", "codec"), [("a.ts", "aac"), ("a.mpg", "mp2"), ("a.mkv", "aac")])
def test_joined_recordings_from_a_later_moment_on(tmp_path: Path, name: str, codec: str) -> None:
    """In a program stream another part's picture came, or "past the clip's end"."""
    picture: Any = {"picture_codec": "mpeg2video", "bf": "0"} if name == "a.mpg" else {}
    parts = [
        recording(tmp_path / f"{i}{name}", codec, until=4.0, moments=times, **picture)
        for i, times in enumerate([(1.6, 3.0), (2.4,)])
    ]
    both = tmp_path / name
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    whole = [frame.mean() > 128 for frame in read_frames(both, fps=FPS)]
    assert sum(whole) == 15
    for start in (1.2, 2.0, 2.8, 3.2, 4.4, 6.0, 6.5):
        here = [frame.mean() > 128 for frame in read_frames(both, fps=FPS, start=start)]
        rest = whole[round(start * FPS) :]
        assert abs(len(here) - len(rest)) <= 1
        assert all(a == b for a, b in zip(here, rest, strict=False))


def test_sound_without_pictures_begins_with_the_video(tmp_path: Path) -> None:
    source = encode(tmp_path / "song.mp3", [], sound=("libmp3lame", 44100, 1.0))
    write_video(tmp_path / "out.mp4", [flat(3)] * 10, 10, audio_from=source)
    assert moments(tmp_path / "out.mp4")[1][0] < 0.05


def test_a_track_without_a_decoder_leaves_the_next_one(tmp_path: Path) -> None:
    path = recording(tmp_path / "two.mkv", "flac", before="ac3")
    path.write_bytes(path.read_bytes().replace(b"A_AC3", b"A_ZZ3"))
    with av.open(str(path)) as container:
        assert [track.codec_context is None for track in container.streams.audio] == [True, False]
    assert in_step(through(path, tmp_path / "out.mp4"), [MOMENT])


@pytest.mark.parametrize("rate", [8000, 22050, 37800, 96000])
def test_sound_of_any_sample_rate(tmp_path: Path, rate: int) -> None:
    source = encode(tmp_path / "a.mkv", [flat(3)] * 10, rate=10, sound=("flac", rate, 1.0))
    out, problems = tmp_path / "out.mp4", []  # type: tuple[Path, list[str]]
    write_video(out, [flat(3)] * 10, 10, audio_from=source, on_problem=problems.append)
    assert not problems and sound_seconds(out) == pytest.approx(1.0, abs=0.1)
    assert av.open(str(out)).streams.audio[0].codec_context.sample_rate <= 48000


def test_damaged_sound_is_skipped_told_and_stays_in_step(tmp_path: Path) -> None:
    """One damaged packet ended the sound."""
    path = recording(tmp_path / "a.mkv", "ac3", bf="0")
    with av.open(str(path)) as container:
        packets: list[Any] = [p for p in container.demux(audio=0) if p.size]
    data = bytearray(path.read_bytes())
    for packet in packets[10:16]:
        at = data.index(bytes(packet))
        data[at : at + packet.size] = bytes(packet.size)
    path.write_bytes(data)
    problems: list[str] = []
    out = tmp_path / "out.mp4"
    write_video(out, read_frames(path), FPS, audio_from=path, on_problem=problems.append)
    assert in_step(moments(out), [MOMENT])
    assert len(problems) == 1 and "damaged audio data was skipped, at 0.3" in problems[0]


def test_options_of_the_container_do_not_reach_the_encoders(tmp_path: Path) -> None:
    """movflags were given to the AAC encoder too, which is fatal on macOS."""
    source = recording(tmp_path / "a.mkv", "flac")
    with VideoWriter(tmp_path / "out.mp4", FPS, audio_from=source) as writer:
        writer.write(flat(3))
        assert writer._out is not None
        given = [s.codec_context.options for s in writer._out.streams]
    assert len(given) == 2 and not any("movflags" in options for options in given)
    data = (tmp_path / "out.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
