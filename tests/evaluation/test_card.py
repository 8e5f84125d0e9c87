"""The tokenizer's model card: what is measured, on what, and what is drawn of it."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vft_lib.cli.vft import main
from vft_lib.errors import VftError
from vft_lib.evaluation.card import CardRecipe, held_out, spread
from vft_lib.evaluation.curves import (
    ClipSet,
    autoencoded,
    block_sides,
    in_blocks,
    mean_interval,
    measure,
)
from vft_lib.evaluation.learned import FeatureNetwork
from vft_lib.footage.footage import to_video
from vft_lib.footage.pack import load_pack
from vft_lib.footage.packing import Recipe, write_pack
from vft_lib.measure.codecs import available
from vft_lib.measure.metrics import psnr
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.video.frames import fit_frame
from vft_lib.video.video_out import write_video
from vft_lib.world.world import make_clip

from .test_learned import with_network


def drawn(count: int, frames: int = 17) -> list[np.ndarray]:
    return [make_clip(seed, frames=frames, size=32).video for seed in range(count)]


def test_card_of_a_checkpoint(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    eval_clips, real, out = tmp_path / "one", tmp_path / "real", tmp_path / "out"
    for folder, seeds in ((eval_clips, [3]), (real, range(12))):
        folder.mkdir()
        for seed in seeds:
            video = make_clip(seed, frames=40, size=48).video
            write_video(folder / f"clip{seed}-1.mp4", video, 8)
    command = [
        "train", "card", "--tokenizer", str(tiny_checkpoint), "--out", str(out), "--clips", "2",
        "--real", str(real), "--eval-clips", str(eval_clips), "--probe-clips", "24",
        "--no-features", "--dtype", "float32", "--device", "cpu",
    ]  # fmt: skip
    assert main(command) == 0
    results = json.loads((out / "results.json").read_text())
    assert list(results["sets"]) == ["procedural", "real", "clip3-1"]
    assert results["sets"]["clip3-1"]["seconds_of_video"] == 33 / 8, "two chunks"
    for of in results["sets"].values():
        rows = [r for r in of["rows"] if r["kind"] == "tokens"]
        assert [r["budget"] for r in rows] == [1, 2, 4, 8]
        assert [r["bytes"] / rows[0]["bytes"] for r in rows] == [1, 2, 4, 8]
        kinds = [r["kind"] for r in of["rows"]]
        assert kinds.count("autoencoder") == 1
        assert kinds.count("blocks") == 2
        h264 = [r for r in of["rows"] if r["name"] == "H.264"]
        assert h264
        sizes = [r["bytes"] for r in h264]
        assert sizes == sorted(set(sizes))
        assert all(0 < r["psnr"] < 100 for r in of["rows"])
    assert set(results["probe"]["motion"]) == {"0", "1", "2", "4", "8"}
    assert results["probe_clips"] == [24, 6]
    for name in ("quality", "quality-clips", "probe", "strip-procedural", "strip-clips"):
        with Image.open(out / f"{name}.png") as image:
            assert image.width > 400
    assert not (out / "frechet.png").exists(), "needs the learned network"
    with Image.open(out / "strip-clips.png") as image:
        count = 6 + len(available())  # the clip, four budgets, the autoencoder, the codecs
        assert image.height == 130 * count - 2
    table = (out / "card.md").read_text()
    assert table in capsys.readouterr().out
    assert "| autoencoder alone |" in table
    assert "| blur, 8 px blocks |" in table
    assert "Protocol: 32 px, 8 fps" in table


@pytest.mark.slow
@with_network
def test_every_way_is_measured_by_every_measure(tiny_tokenizer: Tokenizer) -> None:
    clips = ClipSet("two", "two clips", drawn(2), ["a", "b"], shown=(1,))
    network = FeatureNetwork(torch.device("cpu"))
    found = measure(tiny_tokenizer, [clips], network, [], torch.float32)["two"]
    for row in found.rows:
        for key in ("psnr", "ssim", "feature_distance", "frechet_frames", "frechet_motion"):
            low, high = row[f"{key}_interval"]
            assert low <= high
            if "frechet" not in key:
                assert low <= row[key] <= high
    blurs = [r for r in found.rows if r["kind"] == "blocks"]
    assert blurs[0]["feature_distance"] < blurs[1]["feature_distance"]
    assert found.halves["frames"] > 0
    assert len(found.pictures) == 1
    assert np.array_equal(found.pictures[0]["original"].frames, clips.clips[1])


def test_numbers_are_those_of_the_pictures(tiny_tokenizer: Tokenizer) -> None:
    """Of a clip of two chunks, worked out again from the public calls."""
    clip = drawn(1, frames=30)[0]
    clips = ClipSet("one", "one", [clip], ["a"], (0,))
    found = measure(tiny_tokenizer, [clips], None, [], torch.float32)["one"]
    video = to_video([clip])[0]
    tokens = tiny_tokenizer.encode(video)
    rows = {r["name"]: r for r in found.rows}
    for k in (1, 8):
        made = tiny_tokenizer.decode(tokens.truncate(k))[0]
        assert rows[f"k = {k}"]["psnr"] == pytest.approx(psnr(video, made), abs=1e-3)
        assert rows[f"k = {k}"]["bytes"] == tokens.truncate(k).id_bytes
    assert rows["8 px blocks"]["psnr"] == pytest.approx(psnr(video, in_blocks(video, 8)), abs=1e-3)
    assert "frechet_frames" not in rows["k = 1"], "one clip is no set"


def test_a_clip_for_each_thread_gives_the_same_numbers(tiny_tokenizer: Tokenizer) -> None:
    sets = [
        ClipSet("four", "four", drawn(4), list("abcd"), (0, 3)),
        ClipSet("long", "long", drawn(1, frames=20), ["e"]),
    ]
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(measure(tiny_tokenizer, sets, None, available()[:1], torch.float32))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    for name in ("four", "long"):
        one, many = ([{**r, "seconds": 0} for r in f[name].rows] for f in found)
        assert one == many
    assert found[0]["long"].seconds_of_video == 20 / 8
    for a, b in zip(*(f["four"].pictures for f in found)):
        assert all(np.array_equal(a[name].frames, b[name].frames) for name in a)


def test_the_autoencoder_alone_works_chunk_by_chunk(tiny_tokenizer: Tokenizer) -> None:
    video = to_video(drawn(1, frames=30))[0]
    made = autoencoded(tiny_tokenizer, video)
    assert made.shape == video.shape
    with torch.inference_mode():
        first = tiny_tokenizer.vae.decode(tiny_tokenizer.vae.encode(video[None, :, :17]))[0]
    assert torch.allclose(made[:, :17], first.clamp(-1, 1), atol=1e-5)
    with torch.inference_mode():
        rest = torch.cat([video[:, 16:], video[:, -1:].expand(-1, 3, -1, -1)], 1)
        second = tiny_tokenizer.vae.decode(tiny_tokenizer.vae.encode(rest[None]))[0]
    assert torch.allclose(made[:, 17:], second.clamp(-1, 1)[:, 1:14], atol=1e-5)
    short = autoencoded(tiny_tokenizer, video[:, :3])
    assert short.shape == (3, 3, 32, 32)


def test_blocks() -> None:
    assert block_sides(64) == [8, 16]
    assert block_sides(128) == [8, 16, 32], "8 and 16 px, and as many blocks as these are at 64 px"
    flat = torch.full((3, 2, 32, 32), 0.25)
    assert torch.allclose(in_blocks(flat, 8), flat)
    video = to_video(drawn(1, frames=2))[0]
    assert psnr(video, in_blocks(video, 2)) > psnr(video, in_blocks(video, 8))


def test_intervals_hold_the_mean_and_narrow_with_more_clips() -> None:
    values = np.random.default_rng(1).normal(20, 2, 64)
    low, high = mean_interval(values.tolist())
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.645 * 2 / 8, rel=0.2), "that of a normal mean"
    few = mean_interval(values[:16].tolist())
    assert few[1] - few[0] > high - low


def test_held_out_clips_arespread_and_named(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert spread(5, 9) == [0, 1, 2, 3, 4]
    assert spread(100, 3) == [0, 50, 99]
    assert spread(100, 1) == [0]
    recipe = CardRecipe(clips=5, no_real=True, eval_clips=tmp_path)
    sets = held_out(tiny_tokenizer.config, tmp_path, recipe)
    procedural = next(sets)
    assert len(procedural.clips) == len(set(procedural.clip_names)) == 5
    assert {c.shape for c in procedural.clips} == {(17, 32, 32, 3)}
    assert not any(np.array_equal(a, procedural.clips[0]) for a in procedural.clips[1:])
    with pytest.raises(VftError, match="it holds no clip"):
        next(sets)


def test_real_clips_of_a_pack_are_those_held_out(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder, file = tmp_path / "clips", tmp_path / "pack.zip"
    folder.mkdir()
    for seed in range(4, 8):  # clip5 is held out
        video = make_clip(seed, frames=40, size=48).video
        write_video(folder / f"clip{seed}-1.mp4", video, 16)
    write_pack(file, Recipe(size=32, fps=16, quality=80), [folder], processes=1)
    held = load_pack(file, "held", processes=1).clips
    recipe = CardRecipe(clips=99, pack=file, eval_clips=tmp_path)
    _, real = islice(held_out(tiny_tokenizer.config, tmp_path, recipe), 2)
    assert set(real.clip_names) == set(held)
    assert {c.shape for c in real.clips} == {(17, 32, 32, 3)}
    name = real.clip_names[0]
    second = fit_frame(held[name][2], (32, 32), "crop")
    assert np.array_equal(real.clips[0][1], second), "every second frame: 16 to 8 a second"
