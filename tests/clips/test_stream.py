"""Clips as files: the streaming path equals the whole-clip path, and frames come back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import add_sound, moving_picture
from PIL import Image

from vft_lib.clips import stream
from vft_lib.clips.stream import decode_file, encode_file, read_video
from vft_lib.errors import VftError
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.tokens import Tokens
from vft_lib.video.frames import VideoError, to_tensor
from vft_lib.video.video_in import probe, read_frames
from vft_lib.video.video_out import write_png, write_video


def clip(path: Path, frames: int = 20, height: int = 40, width: int = 56, fps: float = 8) -> Path:
    write_video(path, moving_picture(frames, height, width), fps)
    return path


def test_read_video_is_a_batch_of_one_in_range(tmp_path: Path) -> None:
    video = read_video(clip(tmp_path / "a.mp4"), size=32, max_frames=7)
    assert video.shape == (1, 3, 7, 32, 32)
    assert video.dtype == torch.float32
    assert -1 <= video.min() < -0.5
    assert 0.5 < video.max() <= 1


def test_streamed_encoding_equals_whole_clip_encoding(
    tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = clip(tmp_path / "a.mp4", 40)
    seen: list[tuple[int, int | None]] = []
    streamed = encode_file(
        tiny_tokenizer, path, budget=5, progress=lambda done, total: seen.append((done, total))
    )
    whole = tiny_tokenizer.encode(read_video(path, size=32, fps=8), budget=5)
    assert torch.equal(streamed.ids, whole.ids)
    assert (streamed.frames, streamed.fps, streamed.size) == (40, 8, (32, 32))
    assert (streamed.source_size, streamed.fit, streamed.source) == ((40, 56), "crop", "a.mp4")
    assert seen == [(1, 3), (2, 3), (3, 3), (3, 3)]


def test_the_frame_rate_is_the_tokenizers_unless_told(
    tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = clip(tmp_path / "a.mp4", 48, fps=24)
    assert encode_file(tiny_tokenizer, path).frames == 16
    tokens = encode_file(tiny_tokenizer, path, fps=12)
    assert (tokens.frames, tokens.fps) == (24, 12)


@pytest.mark.parametrize("frames", [1, 5, 17, 18, 40])
def test_as_many_frames_come_back_as_went_in(
    tiny_tokenizer: Tokenizer, tmp_path: Path, frames: int
) -> None:
    tokens = encode_file(tiny_tokenizer, clip(tmp_path / "a.mp4", frames))
    out = tmp_path / "b.mp4"
    assert decode_file(tiny_tokenizer, tokens, out, steps=1) == frames
    assert sum(1 for _ in read_frames(out)) == frames
    assert probe(out).fps == pytest.approx(8)


def test_streamed_decoding_equals_whole_clip_decoding(
    tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokens = encode_file(tiny_tokenizer, clip(tmp_path / "a.mp4", 20)).truncate(3)
    chunks: list[torch.Tensor] = []
    out = tmp_path / "b.mp4"
    decode_file(tiny_tokenizer, tokens, out, steps=2, guidance=2.0, seed=4, on_chunk=chunks.append)
    whole = tiny_tokenizer.decode(tokens, steps=2, guidance=2.0, seed=4)[0]
    assert len(chunks) == 2
    assert torch.equal(torch.cat(chunks, 1), whole)
    # What lies in the file is that video, but for the codec.
    assert (to_tensor(read_frames(out)) - whole).abs().mean() < 0.15


def test_a_still_and_a_first_frame(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    image = tmp_path / "still.png"
    Image.fromarray(moving_picture(1, 40, 56)[0]).save(image)
    tokens = encode_file(tiny_tokenizer, image)
    assert tokens.frames == 1
    chunks: dict[str, torch.Tensor] = {}
    for name, first in (("free", None), ("pinned", image)):
        decode_file(
            tiny_tokenizer, tokens, tmp_path / "b.mp4", steps=1, first_frame=first,
            on_chunk=lambda chunk, name=name: chunks.update({name: chunk}),  # type: ignore[misc]
        )  # fmt: skip
    assert not torch.equal(chunks["free"], chunks["pinned"])


@pytest.mark.parametrize(
    ("fit", "keep_bars", "size"),
    [
        ("crop", False, (32, 32)),
        ("pad", False, (32, 18)),
        ("pad", True, (32, 32)),
        ("stretch", False, (32, 18)),
    ],
)
def test_an_odd_portrait_clip_comes_back_in_its_aspect(
    tiny_tokenizer: Tokenizer, tmp_path: Path, fit: str, keep_bars: bool, size: tuple[int, int]
) -> None:
    path = tmp_path / "phone.gif"  # unlike mp4, holds odd sizes
    pictures = [Image.fromarray(f) for f in moving_picture(6, 73, 41)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=120)
    tokens = encode_file(tiny_tokenizer, path, fit=fit)
    assert tokens.source_size == (73, 41)
    out = tmp_path / "b.mp4"
    decode_file(tiny_tokenizer, tokens, out, steps=1, keep_bars=keep_bars)
    assert next(read_frames(out)).shape[:2] == size


def test_sound_is_carried_over(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    import av

    path = add_sound(clip(tmp_path / "silent.mp4", 24), tmp_path / "a.mp4")
    tokens = encode_file(tiny_tokenizer, path)
    decode_file(tiny_tokenizer, tokens, tmp_path / "b.mp4", steps=1, audio_from=path)
    with av.open(str(tmp_path / "b.mp4")) as out:
        track = out.streams.audio[0]
        assert float(track.duration * track.time_base) == pytest.approx(3, abs=0.1)
    decode_file(tiny_tokenizer, tokens, tmp_path / "c.mp4", steps=1)
    assert not probe(tmp_path / "c.mp4").has_audio


def test_a_damaged_source_size_does_not_make_a_giant_picture(
    tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    ids = torch.zeros(1, 5, 2, dtype=torch.int64)
    tokens = Tokens(
        ids, "tiny", tiny_tokenizer.fingerprint, 2, 8.0, (32, 32), (1, 65536), "stretch"
    )
    decode_file(tiny_tokenizer, tokens, tmp_path / "b.mp4", steps=1)
    assert next(read_frames(tmp_path / "b.mp4")).shape == (32, 512, 3)


def test_a_file_of_another_size_fills_no_memory(
    tiny_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even by the first frame, which would be enlarged to it."""
    tokens = tiny_tokenizer.encode(torch.zeros(1, 3, 17, 32, 32))
    huge = dataclasses.replace(tokens, size=(65536, 65536), fit="stretch", source_size=(1, 16))
    write_png(tmp_path / "wide.png", np.zeros((8, 16, 3), np.uint8))
    for name in ("read_image", "fit_frame"):
        monkeypatch.setattr(stream, name, lambda *_: pytest.fail("enlarged"))
    for first in (None, tmp_path / "wide.png"):
        with pytest.raises(VftError, match="are of 65536x65536 px"):
            decode_file(tiny_tokenizer, huge, tmp_path / "out.mp4", first_frame=first)
    assert not (tmp_path / "out.mp4").exists()


def test_nothing_is_left_after_an_error(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokens = encode_file(tiny_tokenizer, clip(tmp_path / "a.mp4", 3))
    two = Tokens(torch.cat([tokens.ids, tokens.ids]), "tiny", tokens.fingerprint, 3, 8.0, (32, 32))
    with pytest.raises(VftError, match="one clip, got 2"):
        decode_file(tiny_tokenizer, two, tmp_path / "b.mp4")
    with pytest.raises(VftError, match="steps"):
        decode_file(tiny_tokenizer, tokens, tmp_path / "b.mp4", steps=0)
    with pytest.raises(VideoError, match="no file"):
        encode_file(tiny_tokenizer, tmp_path / "missing.mp4")
    with pytest.raises(VftError, match="budget 9"):
        encode_file(tiny_tokenizer, tmp_path / "a.mp4", budget=9)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_no_more_than_two_chunks_of_frames_are_held(
    tiny_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import weakref

    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    def counted(frame: np.ndarray) -> torch.Tensor:
        nonlocal most
        tensor = to_tensor([frame]).transpose(0, 1)
        alive.add(tensor)
        most = max(most, len(alive))
        return tensor

    monkeypatch.setattr("vft_lib.clips.stream._still", counted)
    encode_file(tiny_tokenizer, clip(tmp_path / "a.mp4", 80))
    assert 17 <= most <= 34
