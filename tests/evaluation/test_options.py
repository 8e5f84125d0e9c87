"""Options of the sampler, measured: what they cost and give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from preview import with_preview

from vft_lib.cli.vft import main
from vft_lib.evaluation.options import OPTIONS
from vft_lib.footage.packing import Recipe, write_pack
from vft_lib.video.video_out import write_video
from vft_lib.world.world import make_clip

from .test_learned import with_network


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips, which are held out for their names."""
    folder = tmp_path_factory.mktemp("clips")
    for i in (5, 27, 33):
        write_video(folder / f"clip{i}.mp4", make_clip(i, frames=18, size=48).video, 8)
    write_pack(folder / "pack.zip", Recipe(size=32), [folder], processes=1)
    return folder / "pack.zip"


@pytest.mark.slow
@with_network
def test_options_are_measured_once(
    pack: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = [
        "train", "options-card", "--tokenizer", str(tiny_checkpoint), "--out", str(out),
        "--pack", str(pack), "--clips", "2", "-k", "4", "--dtype", "float32",
        "--device", "cpu", "--options",
    ]  # fmt: skip
    assert main([*command, "4 steps", "draft", "4 steps, guidance 2"]) == 0
    results = json.loads((out / "options.json").read_text())
    rows = results["rows"]
    assert len(rows) == 4 - 1, "a draft of four steps is the row of four steps"
    passes = {key.partition(",")[0]: row["passes"] for key, row in rows.items()}
    assert passes["autoencoder"] == 0
    plain, guided = (next(r for r in rows.values() if r["passes"] == n) for n in (4, 8))
    assert guided["gflop"] > plain["gflop"] > rows["autoencoder"]["gflop"] * 0.4
    for row in rows.values():
        for key in ("psnr", "feature_distance", "frechet_frames", "frechet_motion"):
            assert f"{key}_interval" in row
    table = (out / "options.md").read_text()
    assert table in capsys.readouterr().out
    assert [line.split(" | ")[0] for line in table.splitlines()[2:6]] == [
        "| autoencoder", "| 4 steps", "| draft", "| 4 steps, guidance 2"
    ]  # fmt: skip
    with Image.open(out / "strip-options.png") as image:
        assert image.height == 5 * 130 - 2

    kept = (out / "options.json").stat().st_mtime_ns
    assert main([*command, "draft"]) == 0
    assert (out / "options.json").stat().st_mtime_ns == kept, "nothing was measured again"
    assert main([*command, "1 steps"]) == 0
    assert len(json.loads((out / "options.json").read_text())["rows"]) == 4


@pytest.mark.slow
@with_network
def test_a_draft_through_the_preview_decoder_is_a_row_of_its_own(
    pack: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    keys = []
    for seed in (0, 1):
        file = with_preview(tiny_checkpoint, tmp_path / "with.safetensors", seed)
        command = [
            "train", "options-card", "--tokenizer", str(file), "--out", str(out), "--pack",
            str(pack), "--clips", "2", "-k", "4", "--dtype", "float32",
            "--device", "cpu", "--options", "4 steps", "draft",
        ]  # fmt: skip
        assert main(command) == 0
        rows = json.loads((out / "options.json").read_text())["rows"]
        keys.append(set(rows))
        table = (out / "options.md").read_text().splitlines()[2:6]
        assert [line.split(" | ")[0] for line in table] == [
            "| autoencoder", "| preview decoder", "| 4 steps", "| draft"
        ]  # fmt: skip
        alone = [row for key, row in rows.items() if key.startswith("preview decoder")]
        assert alone[-1]["gflop"] < rows["autoencoder"]["gflop"]
        assert alone[-1]["psnr"] != rows["autoencoder"]["psnr"]
    assert len(keys[1]) == len(keys[0]) + 2, "another preview decoder, the same fingerprint"


def test_an_unknown_option_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "options-card", "--out", str(tmp_path), "--pack", "none.zip"]
    assert main([*command, "--options", "half a step"]) == 2
    told = capsys.readouterr().err
    assert "half a step" in told
    assert next(iter(OPTIONS)) in told
