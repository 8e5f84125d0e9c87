"""Every command through `main`, in this process, with a tiny tokenizer of random weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import add_sound, moving_picture, save_tiny

from vft_lib.cli import vft as cli
from vft_lib.tokens import Tokens
from vft_lib.video.video_in import probe, read_frames
from vft_lib.video.video_out import write_png, write_video


class Vft:
    """Runs `vft`; says what came out."""

    def __init__(self, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.model = ["--tokenizer", str(checkpoint), "--device", "cpu"]
        self.capsys = capsys

    def __call__(self, *args: Any) -> str:
        """Standard output of a command that must succeed."""
        code, out, err = self.run(*args)
        assert code == 0, err
        return out

    def json(self, *args: Any) -> dict[str, Any]:
        return json.loads(self(*args, "--json"))

    def error(self, *args: Any) -> str:
        """The one line of a command that must fail."""
        code, out, err = self.run(*args)
        assert (code, out) == (2, "")
        assert err.startswith("vft: error: ")
        assert err.count("\n") == 1
        return err

    def run(self, *args: Any) -> tuple[int, str, str]:
        code = cli.main([str(args[0]), *self.model, *map(str, args[1:])])
        return (code, *self.capsys.readouterr())


@pytest.fixture
def vft(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> Vft:
    return Vft(tiny_checkpoint, capsys)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """20 frames of 56 x 40 px at 8 fps, with sound."""
    write_video(tmp_path / "silent.mp4", moving_picture(20, 40, 56), 8)
    out = add_sound(tmp_path / "silent.mp4", tmp_path / "clip.mp4")
    (tmp_path / "silent.mp4").unlink()
    return out


@pytest.fixture
def tokens(vft: Vft, clip: Path, tmp_path: Path) -> Path:
    vft("encode", clip, "-o", tmp_path / "clip.vft")
    return tmp_path / "clip.vft"


def test_there_and_back(vft: Vft, clip: Path, tmp_path: Path) -> None:
    t, u, out = tmp_path / "t.vft", tmp_path / "u.vft", tmp_path / "out.mp4"
    facts = vft.json("encode", clip, "-o", t, "--fps", 4, "--fit", "pad")
    assert facts["grid"] == [5, 8]
    assert (facts["frames"], facts["fps"], facts["fit"]) == (10, 4, "pad")
    assert "5 x 3 = 15 tokens" in vft("truncate", t, "-k", 3, "-o", u)
    assert Tokens.load(u).budget == 3
    facts = vft.json("decode", u, "-o", out, "--steps", 1, "--budget", 2, "--seed", 5)
    assert (facts["frames"], facts["budget"]) == (10, 2)
    assert facts["audio_from"] == str(clip)
    assert probe(out).has_audio
    assert (probe(out).width, probe(out).height) == (32, 24)  # 23 rows, even in the mp4


def test_truncating_in_place_is_allowed(vft: Vft, tokens: Path) -> None:
    vft("truncate", tokens, "-k", 2, "-o", tokens)
    assert Tokens.load(tokens).budget == 2


def test_the_clip_itself_is_never_replaced(vft: Vft, clip: Path, tokens: Path) -> None:
    before = clip.read_bytes()
    assert "is the clip itself" in vft.error("encode", clip, "-o", clip)
    assert "is the clip that these tokens were made of" in vft.error("decode", tokens, "-o", clip)
    assert clip.read_bytes() == before


def test_encoding_to_a_budget_equals_truncating(vft: Vft, clip: Path, tokens: Path) -> None:
    vft("encode", clip, "-o", tokens.with_name("k2.vft"), "--budget", 2)
    k2 = Tokens.load(tokens.with_name("k2.vft"))
    assert (k2.ids == Tokens.load(tokens).truncate(2).ids).all()


def test_same_seed_same_clip(vft: Vft, tokens: Path, tmp_path: Path) -> None:
    clips = []
    for seed in (1, 1, 2):
        vft("decode", tokens, "-o", tmp_path / "o.mp4", "--steps", 1, "--seed", seed, "--no-audio")
        clips.append(np.stack(list(read_frames(tmp_path / "o.mp4"))).astype(int))
    # Equal but for the codec: x264 on several threads does not always write the same bytes.
    assert np.abs(clips[0] - clips[1]).mean() < 1
    assert np.abs(clips[0] - clips[2]).mean() > 2


def test_where_the_sound_comes_from(vft: Vft, clip: Path, tokens: Path, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out.mp4", tmp_path / "elsewhere"
    elsewhere.mkdir()
    decode = ("decode", tokens, "-o", out, "--steps", 1)
    assert vft.json(*decode, "--no-audio")["audio_from"] is None
    assert not probe(out).has_audio
    moved = clip.rename(elsewhere / "moved.mp4")
    assert vft.json(*decode)["audio_from"] is None
    assert vft.json(*decode, "--audio-from", moved)["audio_from"] == str(moved)
    assert probe(out).has_audio


@pytest.mark.parametrize("name", ["../clip.mp4", "..\\clip.mp4", "/etc/passwd", "..", "a\0b"])
def test_a_token_file_cannot_name_a_clip_in_another_folder(
    vft: Vft, clip: Path, tokens: Path, name: str
) -> None:
    import dataclasses

    folder = clip.parent / "folder"
    folder.mkdir()
    named = dataclasses.replace(Tokens.load(tokens), source=name.replace("/etc", str(clip.parent)))
    named.save(folder / "t.vft")
    facts = vft.json("decode", folder / "t.vft", "-o", folder / "o.mp4", "--steps", 1)
    assert facts["audio_from"] is None


def test_a_first_frame(vft: Vft, tokens: Path, tmp_path: Path) -> None:
    write_png(tmp_path / "first.png", moving_picture(1, 90, 50)[0])
    out = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    options = ("--steps", 1, "--no-audio")
    vft("decode", tokens, "-o", out[0], *options)
    vft("decode", tokens, "-o", out[1], *options, "--first-frame", tmp_path / "first.png")
    assert out[0].read_bytes() != out[1].read_bytes()


def test_info(vft: Vft, clip: Path, tokens: Path, tiny_checkpoint: Path) -> None:
    facts = vft.json("info", tokens)
    assert facts["kind"] == "tokens"
    assert (facts["tokenizer"], facts["source"]) == ("tiny", "clip.mp4")
    assert (facts["grid"], facts["ids"], facts["id_bytes"]) == ([9, 8], 72, 144)
    assert (facts["frames"], facts["seconds"]) == (20, 2.5)
    assert facts["bits_per_second"] == pytest.approx(144 * 8 / 2.5)
    assert facts["file_bytes"] == tokens.stat().st_size
    facts = vft.json("info", tiny_checkpoint)
    assert facts["kind"] == "tokenizer"
    assert facts["parameters_total"] == sum(facts["parameters"].values()) > 1000
    assert facts == vft.json("info")  # without a file: of --tokenizer
    facts = vft.json("info", clip)
    assert (facts["kind"], facts["width"], facts["has_audio"]) == ("clip", 56, True)
    for file in (tokens, tiny_checkpoint, clip):
        assert f"file              {file}" in vft("info", file)


def test_demo(vft: Vft, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    facts = vft.json(
        "demo", clip, "--out", out, "--steps", 1, "--budgets", "1,4", 8, "--fit", "pad"
    )
    assert sorted(p.name for p in out.iterdir()) == [
        "k01.mp4", "k04.mp4", "k08.mp4", "rate_quality.png", "side_by_side.mp4", "strip.png",
        "table.json", "tokens.vft",
    ]  # fmt: skip
    assert [(r["budget"], r["tokens"], r["bytes"]) for r in facts["rows"]] == [
        (1, 9, 18), (4, 36, 72), (8, 72, 144),
    ]  # fmt: skip
    assert all({"psnr", "ssim", "seconds"} < r.keys() for r in facts["rows"])
    assert json.loads((out / "table.json").read_text())["rows"] == facts["rows"]
    for name in ("k01.mp4", "k08.mp4", "side_by_side.mp4"):
        assert probe(out / name).has_audio
        assert sum(1 for _ in read_frames(out / name)) == 20
    assert Tokens.load(out / "tokens.vft").budget == 8


def test_demo_brings_a_clip_of_its_own(
    vft: Vft, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "demo"
    code, table, progress = vft.run("demo", "--out", out, "--steps", 1)
    assert code == 0
    assert [line.split()[0] for line in table.splitlines()[1:-1]] == ["1", "2", "4", "8"]
    assert "decode k=8" in progress
    assert sum(1 for _ in read_frames(out / "k08.mp4")) == 33
    assert json.loads((out / "table.json").read_text())["clip"].endswith("example.mp4")


def test_bad_input_is_one_line(vft: Vft, clip: Path, tokens: Path, tmp_path: Path) -> None:
    text, t, mp4 = tmp_path / "notes.mp4", tmp_path / "t.vft", tmp_path / "o.mp4"
    text.write_text("not a video\n" * 9)
    before = sorted(tmp_path.iterdir())
    assert "missing.mp4" in vft.error("encode", tmp_path / "missing.mp4", "-o", t)
    assert "cannot be read" in vft.error("encode", text, "-o", t)
    assert "is a folder" in vft.error("encode", tmp_path, "-o", t)
    assert "budget 0" in vft.error("encode", clip, "-o", t, "--budget", 0)
    assert "choose 1 to 8" in vft.error("encode", clip, "-o", t, "--budget", 99)
    assert "fps is -1.0" in vft.error("encode", clip, "-o", t, "--fps", -1)
    assert "existing folder" in vft.error("encode", clip, "-o", tmp_path / "no" / "t.vft")
    assert "existing folder" in vft.error("encode", clip, "-o", tmp_path)
    assert "does not exist" in vft.error("truncate", t, "-k", 1, "-o", t)
    assert "choose 1 to 8" in vft.error("truncate", tokens, "-k", 9, "-o", t)
    assert "no" in vft.error("truncate", tokens, "-k", 1, "-o", tmp_path / "no" / "t.vft")
    assert "not a readable token file" in vft.error("decode", clip, "-o", mp4)
    assert "steps is 0" in vft.error("decode", tokens, "-o", mp4, "--steps", 0)
    assert "choose 1 to 8" in vft.error("decode", tokens, "-o", mp4, "--budget", 99)
    assert "existing folder" in vft.error("decode", tokens, "-o", tmp_path / "no" / "o.mp4")
    assert "*.mp4" in vft.error("decode", tokens, "-o", tmp_path / "o.gif")
    assert "no file" in vft.error("decode", tokens, "-o", mp4, "--first-frame", tmp_path / "x.png")
    assert "no file" in vft.error("decode", tokens, "-o", mp4, "--audio-from", tmp_path / "x.mp3")
    assert "--device" in vft.error("decode", tokens, "-o", mp4, "--device", "toaster")
    assert "choose 1 to 8" in vft.error("demo", clip, "--budgets", 99, "--out", tmp_path / "d")
    assert "give numbers" in vft.error("demo", clip, "--budgets", "few", "--out", tmp_path / "d")
    assert "clip.mp4" in vft.error("demo", "--out", clip)
    assert "missing" in vft.error("info", tmp_path / "missing.vft")
    assert "no tokenizer" in vft.error("info", tmp_path / "missing.safetensors")
    assert "not a VFT tokenizer" in vft.error("info", tokens.rename(tmp_path / "t.safetensors"))
    (tmp_path / "t.safetensors").rename(tokens)
    assert sorted(tmp_path.iterdir()) == before


def test_tokens_of_another_tokenizer_name_both(vft: Vft, tokens: Path, tmp_path: Path) -> None:
    save_tiny(tmp_path / "other.safetensors", seed=1, name="other")
    vft.model[1] = str(tmp_path / "other.safetensors")
    message = vft.error("decode", tokens, "-o", tmp_path / "o.mp4")
    assert "'tiny'" in message
    assert "'other'" in message
    assert Tokens.load(tokens).fingerprint in message


def test_bad_usage_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("", "encode", "decode t.vft -o o.mp4 --seed -1", "demo --guidance nan", "paint"):
        with pytest.raises(SystemExit) as stop:
            cli.main(line.split())
        assert stop.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


def test_ctrl_c_is_one_line(vft: Vft, tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vft_lib.token_file.read_token_file", interrupt)
    assert vft.run("info", tokens) == (130, "", "vft: interrupted\n")


def test_python_dash_m(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> None:
    import runpy

    monkeypatch.setattr(sys, "argv", ["vft", "info", str(tiny_checkpoint), "--json"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("vft_lib", run_name="__main__")
    assert stop.value.code == 0


def test_a_stretch_is_decoded_anew(vft: Vft, tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", moving_picture(49, 40, 56), 8)
    tokens, old, new = (tmp_path / name for name in ("t.vft", "old.mp4", "new.mp4"))
    vft("encode", tmp_path / "clip.mp4", "-o", tokens)
    vft("decode", tokens, "-o", old, "--steps", 1, "--guidance", 1)
    words = ["decode", tokens, "-o", new, "--redo", old, "--steps", 1, "--seed", 3]
    facts = vft.json(*words, "--from", 2.5, "--to", 4)
    assert facts["anew"] == [17, 31]
    assert facts["joins"] == [17, 32]
    assert facts["seams"]["worst_at"] in (17, 32)
    assert probe(new).frames == 49
    text = vft(*words, "--from", 2.5, "--to", 4)
    assert "frames 17 to 31 of 49 made anew, 1 pass; jumps where they join" in text
    assert vft(*words) == f"{new}: frames 0 to 48 of 49 made anew, 3 passes\n"
    assert "--redo CLIP.mp4" in vft.error(*words[:4], "--from", 2)
    assert "give one" in vft.error(*words, "--resume")
    assert "of a clip of 6.125 s" in vft.error(*words, "--from", 7)
    short = tmp_path / "short.mp4"
    write_video(short, moving_picture(20, 32, 32), 8)
    assert "has 20 frames" in vft.error(*words, "--redo", short)
