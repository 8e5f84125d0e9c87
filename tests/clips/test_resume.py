"""A decode that was interrupted goes on, to the very frames of one that was not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, moving_picture

from vft_lib.cli import vft as cli
from vft_lib.clips.stream import decode_file
from vft_lib.errors import VftError
from vft_lib.tokenizer.sampling import Sampling
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.tokens import Tokens
from vft_lib.video.frames import to_tensor


@pytest.fixture(scope="module")
def tokens(tiny_tokenizer: Tokenizer) -> Tokens:
    """Five chunks."""
    return tiny_tokenizer.encode(to_tensor(moving_picture(81, 32, 32)))


def interrupt(tokenizer: Tokenizer, tokens: Tokens, out: Path, after: int, **options: Any) -> Path:
    """A decode that ends with its chunk number `after`; the folder of what is kept."""
    seen: list[torch.Tensor] = []

    def stop(chunk: torch.Tensor) -> None:
        seen.append(chunk)
        if len(seen) > after:
            raise KeyboardInterrupt

    every: dict[str, Any] = {"steps": 2, "resume": False, "on_chunk": stop} | options
    with pytest.raises(KeyboardInterrupt):
        decode_file(tokenizer, tokens, out, **every)
    return out.with_name(out.name + ".chunks")


def test_it_goes_on_with_the_chunk_it_stopped_at(
    tiny_tokenizer: Tokenizer, tokens: Tokens, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole.mp4", tmp_path / "out.mp4"
    decode_file(tiny_tokenizer, tokens, whole, steps=2, seed=3)
    kept = interrupt(tiny_tokenizer, tokens, out, 2, seed=3)
    assert [f.name for f in sorted(kept.iterdir())] == ["00000.safetensors", "00001.safetensors"]
    assert not out.exists()
    kept = interrupt(tiny_tokenizer, tokens, out, 1, seed=3, resume=True)
    assert len(list(kept.iterdir())) == 3
    steps: list[int] = []
    said: list[str] = []
    decode_file(
        tiny_tokenizer, tokens, out, steps=2, seed=3, resume=True, on_problem=said.append,
        progress=lambda done, total: steps.append(done),
    )  # fmt: skip
    assert out.read_bytes() == whole.read_bytes()
    assert steps == [7, 8, 9, 10], "the first three chunks are not sampled again"
    assert said == [f"going on after the 3 chunks in {kept}"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.mp4", "whole.mp4"]


@pytest.mark.parametrize("overlap", [0, 1])
def test_chunks_from_any_on_are_those_of_a_whole_decode(overlap: int) -> None:
    config = dataclasses.replace(TINY, overlap=overlap)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        tok = Tokenizer(config).eval().requires_grad_(False)
    tokens = tok.encode(to_tensor(moving_picture(60, 32, 32)))
    first = to_tensor(moving_picture(1, 32, 32))[None, :, 0]
    sampling = Sampling(2, seed=5)
    options: dict[str, Any] = {"first_frame": first, "clamp": False}
    whole = list(tok.decode_chunks(tokens, sampling, **options))
    assert len(whole) == 4
    for i in range(1, 5):
        rest = list(
            tok.decode_chunks(tokens, sampling, resume=(i, whole[i - 1][:, :, -1]), **options)
        )
        assert len(rest) == 4 - i
        assert all(torch.equal(a, b) for a, b in zip(rest, whole[i:]))


@pytest.mark.parametrize("change", ["seed", "steps", "guidance", "tokens", "budget", "first_frame"])
def test_chunks_of_another_decode_are_not_mixed_in(
    tiny_tokenizer: Tokenizer, tokens: Tokens, tmp_path: Path, change: str
) -> None:
    from vft_lib.video.video_out import write_png

    out = tmp_path / "out.mp4"
    kept = interrupt(tiny_tokenizer, tokens, out, 2)
    options: dict[str, Any] = {"steps": 2, "resume": True}
    other = tokens
    if change == "tokens":
        other = dataclasses.replace(tokens, ids=tokens.ids.flip(1))
    elif change == "budget":
        other = tokens.truncate(3)
    elif change == "first_frame":
        write_png(tmp_path / "first.png", moving_picture(1, 32, 32)[0])
        options["first_frame"] = tmp_path / "first.png"
    else:
        options[change] = 3
    with pytest.raises(VftError, match="of other tokens, models or settings") as e:
        decode_file(tiny_tokenizer, other, out, **options)
    assert "\n" not in str(e.value)
    assert len(list(kept.iterdir())) == 2, "they are still there for the right settings"


def test_not_asked_to_resume_it_begins_anew_and_says_so(
    tiny_tokenizer: Tokenizer, tokens: Tokens, tmp_path: Path
) -> None:
    out = tmp_path / "out.mp4"
    said: list[str] = []
    interrupt(tiny_tokenizer, tokens, out, 2)
    steps: list[int] = []
    decode_file(
        tiny_tokenizer, tokens, out, steps=1, resume=False, on_problem=said.append,
        progress=lambda done, total: steps.append(done),
    )  # fmt: skip
    assert steps == [1, 2, 3, 4, 5]
    assert len(said) == 1 and "beginning anew" in said[0]
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]


def test_a_damaged_chunk_is_decoded_again(
    tiny_tokenizer: Tokenizer, tokens: Tokens, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole.mp4", tmp_path / "out.mp4"
    decode_file(tiny_tokenizer, tokens, whole, steps=2)
    kept = interrupt(tiny_tokenizer, tokens, out, 3)
    chunk = kept / "00001.safetensors"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    decode_file(tiny_tokenizer, tokens, out, steps=2, resume=True)
    assert out.read_bytes() == whole.read_bytes()


def test_a_file_in_the_way_is_named(
    tiny_tokenizer: Tokenizer, tokens: Tokens, tmp_path: Path
) -> None:
    (tmp_path / "out.mp4.chunks").write_text("mine")
    with pytest.raises(VftError, match="in the way"):
        decode_file(tiny_tokenizer, tokens, tmp_path / "out.mp4", steps=1, resume=True)
    assert (tmp_path / "out.mp4.chunks").read_text() == "mine"


def test_the_command_line_keeps_chunks_and_resumes(
    tiny_tokenizer: Tokenizer, tiny_checkpoint: Path, tokens: Tokens, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out.mp4"
    tokens.save(tmp_path / "t.vft")
    interrupt(tiny_tokenizer, tokens, out, 4)
    decode = ["decode", str(tmp_path / "t.vft"), "-o", str(out), "--steps", "2", "--device", "cpu"]
    assert cli.main([*decode, "--tokenizer", str(tiny_checkpoint), "--resume"]) == 0
    assert "going on after the 4 chunks" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.mp4", "t.vft"]
