"""`vft eval compare`: the same numbers as computed by other means, whatever becomes of the run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scoring.stand_ins import (
    I3D,
    Classifier,
    ViCLIP,
    blurred,
    clip_tokenizer,
    read_clip,
    save_script,
    write_clip,
    write_clips,
)
from vft_lib.cli.vft import main
from vft_lib.errors import VftError
from vft_lib.scoring import protocol
from vft_lib.scoring.protocol import LEAST, Protocol, enough, protocol_named

ROOT = Path(__file__).resolve().parents[2]
SIZE = ["--size", "32", "--no-features", "--device", "cpu", "--resamples", "4"]


def write_sets(root: Path, count: int) -> Path:
    """`real`: so many clips; `fake`: the same, blurred; `i3d.pt`."""
    real = write_clips(root / "real", range(count))
    (root / "fake").mkdir()
    for i, path in enumerate(sorted(real.iterdir())):
        write_clip(root / "fake" / path.name, blurred(read_clip(path), 1 + i % 4))
    save_script(I3D(), root / "i3d.pt")
    return root


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of 12 clips, and `other`: 10 others. Eight are enough here for a distance of sets."""
    root = write_sets(tmp_path_factory.mktemp("sets"), 12)
    write_clips(root / "other", range(100, 110))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "LEAST", 8)
        yield root


def run(*words: Any) -> int:
    return main(["eval", *map(str, words)])


def network(root: Path) -> list[str]:
    import hashlib

    digest = hashlib.sha256((root / "i3d.pt").read_bytes()).hexdigest()
    return ["--i3d", str(root / "i3d.pt"), "--trust", digest]


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


# ------------------------------------------------------------------ by other means


def features(root: Path, name: str) -> np.ndarray:
    """The network's numbers of a folder's clips; of 32 px, which 224 enlarge sevenfold."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        net = torch.jit.load(str(root / "i3d.pt"))
    rows = []
    for path in sorted((root / name).iterdir()):
        clip = torch.from_numpy(read_clip(path)).permute(0, 3, 1, 2).double()
        large = torch.nn.functional.interpolate(clip, (224, 224), mode="bilinear").float()
        with torch.no_grad():
            rows.append(net(large.transpose(0, 1)[None], True, False, True)[0].numpy())
    return np.stack(rows).astype(np.float64)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """By the eigenvalues of the product of the covariances, in NumPy."""
    one, two = (np.cov(x, rowvar=False) + 1e-6 * np.eye(x.shape[1]) for x in (a, b))
    values = np.linalg.eigvals(one @ two).astype(complex)
    apart = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(apart + np.trace(one) + np.trace(two) - 2 * np.sqrt(values).real.sum())


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each frame."""
    error = ((a.astype(np.float64) - b) ** 2).mean((1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(error, 255**2 / 1e10))


def ssim(a: np.ndarray, b: np.ndarray, padded: bool) -> float:
    """Every window on its own, in float64, on values 0..1."""
    g = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    w = np.outer(g, g) / g.sum() ** 2
    x, y = (v.astype(np.float64).transpose(0, 3, 1, 2) / 255 for v in (a, b))
    if padded:
        x, y = (np.pad(v, ((0, 0), (0, 0), (5, 5), (5, 5))) for v in (x, y))
    mean = lambda v: (  # noqa: E731
        np.lib.stride_tricks.sliding_window_view(v, (11, 11), axis=(2, 3)) * w
    ).sum((-1, -2))
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    score = (2 * mx * my + 0.01**2) * (2 * cov + 0.03**2)
    return float((score / ((mx**2 + my**2 + 0.01**2) * (vx + vy + 0.03**2))).mean())


def test_numbers_agree_with_an_independent_computation(sets: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("compare", sets / "real", sets / "fake", "--out", out, *SIZE, *network(sets)) == 0
    row = results(out)["rows"][0]
    pairs = [
        (read_clip(p), read_clip(sets / "fake" / p.name)) for p in sorted((sets / "real").iterdir())
    ]
    assert row["psnr"] == pytest.approx(np.mean([psnr(a, b).mean() for a, b in pairs]), rel=1e-4)
    assert row["ssim"] == pytest.approx(np.mean([ssim(a, b, False) for a, b in pairs]), rel=1e-4)
    expected = frechet(features(sets, "real"), features(sets, "fake"))
    assert expected > 0.01
    assert row["fvd"] == pytest.approx(expected, rel=1e-4)
    for key in ("psnr", "ssim", "fvd"):
        low, high = row[f"{key}_interval"]
        assert low < row[key] < high


def test_semantoks_psnr_and_ssim(sets: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--protocol", "semantok", "--limit", "6", *SIZE]
    assert run("compare", sets / "real", sets / "fake", "--out", out, *words) == 0
    row = results(out)["rows"][0]
    names = sorted(p.name for p in (sets / "real").iterdir())[:6]
    pairs = [(read_clip(sets / "real" / n), read_clip(sets / "fake" / n)) for n in names]
    whole = [10 * np.log10(255**2 / ((a.astype(np.float64) - b) ** 2).mean()) for a, b in pairs]
    assert row["psnr"] == pytest.approx(np.mean(whole), rel=1e-4)
    assert row["ssim"] == pytest.approx(np.mean([ssim(a, b, True) for a, b in pairs]), rel=1e-4)
    assert row["lines"]["psnr"]["protocol"] == "semantok*", "another size: it says so"
    assert "one mean square error" in row["lines"]["psnr"]["psnr"]
    assert "zero padding" in row["lines"]["ssim"]["ssim"]


def test_a_set_and_itself_differ_by_nothing(sets: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("compare", sets / "real", sets / "real", "--out", out, *SIZE, *network(sets)) == 0
    row = results(out)["rows"][0]
    assert row["fvd"] == pytest.approx(0, abs=1e-4)
    assert row["fvd_interval"] == pytest.approx([0, 0], abs=1e-4)
    assert row["psnr"] == 100
    assert row["ssim"] == pytest.approx(1, abs=1e-6)


def test_sets_without_common_names_are_compared_as_sets(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run("compare", sets / "real", sets / "other", "--out", out, *SIZE, *network(sets)) == 0
    row = results(out)["rows"][0]
    expected = frechet(features(sets, "real"), features(sets, "other"))
    assert row["fvd"] == pytest.approx(expected, rel=1e-4)
    assert row["lines"]["fvd"]["sets"] == "12, 10"
    low, high = row["fvd_interval"]
    assert low < row["fvd"] < high
    assert not {"psnr", "ssim"} & set(row)
    told = capsys.readouterr()
    assert "FVD of 10 clips is rough" in told.out
    assert "FVD of 10 clips is rough" in told.err


def test_sets_of_other_sizes_are_no_table(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for limit in (8, 10):
        words = ["--limit", limit, "--out", tmp_path / str(limit), *SIZE, *network(sets)]
        assert run("compare", sets / "real", sets / "other", *words) == 0
    files = [tmp_path / name / "results.json" for name in ("8", "10")]
    assert run("table", *files, "--out", tmp_path / "both") == 2
    assert "these numbers do not compare" in capsys.readouterr().err
    assert run("table", files[0], files[0], "--out", tmp_path / "both") == 0


# ------------------------------------------------------------------ few clips, wrong clips


def test_few_clips_are_refused_and_some_are_warned_of(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [sets / "real", sets / "fake", "--limit", 7, *SIZE, *network(sets)]
    assert run("compare", *words, "--out", tmp_path / "a") == 0
    row = results(tmp_path / "a")["rows"][0]
    assert "fvd" not in row
    assert "psnr" in row, "of pairs, which are no distribution"
    assert row["notes"] == ["refused: FVD of 7 clips is noise; give 8 at least, better 256"]
    words[1] = sets / "other"
    assert run("compare", *words, "--out", tmp_path / "b") == 2
    assert "FVD of 7 clips is noise" in capsys.readouterr().err
    assert not (tmp_path / "b" / "results.json").exists()
    monkeypatch.setattr(protocol, "LEAST", LEAST)
    with pytest.raises(VftError, match="FVD of 31 clips is noise; give 32 at least"):
        enough(31, "FVD")
    assert "rough" in str(enough(32, "FVD"))
    assert "rough" in str(enough(255, "FVD"))
    assert enough(256, "FVD") is None


def test_a_short_clip_is_named_not_repeated(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = write_clips(tmp_path / "short", [1], frames=12)
    assert run("compare", short, short, "--out", tmp_path / "out", *SIZE) == 2
    told = capsys.readouterr().err
    assert "clip-001.webp has 12 frames at 8 a second, the protocol takes 17" in told
    assert run("compare", short, short, "--out", tmp_path / "out", *SIZE, "--frames", 12) == 0


def test_another_frame_rate_is_another_line_and_a_slower_clip_is_told(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [sets / "real", sets / "fake", "--limit", 3, *SIZE, "--frames", 8]
    assert run("compare", *words, "--out", tmp_path / "a") == 0
    assert run("compare", *words, "--fps", 4, "--out", tmp_path / "b") == 0
    assert "repeat" not in capsys.readouterr().err
    assert run("compare", *words, "--fps", 12, "--out", tmp_path / "c") == 0
    assert "clip-000.webp has 8 frames a second: at 12 some repeat" in capsys.readouterr().err
    both = [tmp_path / name / "results.json" for name in ("a", "b")]
    assert run("table", *both, "--out", tmp_path / "t") == 2
    assert "do not compare. PSNR (dB), frames: '8 of 32x32 px at 8 fps" in capsys.readouterr().err


def test_names_that_overlap_are_told(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ids").write_text("clip-003\nclip-001\n")
    words = [sets / "real", sets / "fake", "--out", tmp_path / "out", *SIZE]
    assert run("compare", *words, "--ids", tmp_path / "ids") == 0
    assert results(tmp_path / "out")["rows"][0]["clips"] == 2
    (tmp_path / "ids").write_text("clip-003\nclip-999\n")
    assert run("compare", *words, "--ids", tmp_path / "ids") == 2
    assert "'clip-999' is not in" in capsys.readouterr().err
    some = write_clips(tmp_path / "some", [1, 2, 500])
    assert run("compare", sets / "real", some, "--out", tmp_path / "o", *SIZE) == 2
    told = capsys.readouterr().err
    assert "2 names stand in both sets, 11 in one" in told
    assert "nothing could be compared" in told


# ------------------------------------------------------------------ words and classes


def test_text_score_and_accuracy_of_both_sets(tmp_path: Path) -> None:
    trust = [
        "--trust", save_script(ViCLIP(), tmp_path / "viclip.pt"),
        "--trust", save_script(Classifier(), tmp_path / "classifier.pt"),
    ]  # fmt: skip
    (tmp_path / "classes.txt").write_text("red\ngreen\nblue\n")
    clip_tokenizer(tmp_path / "words")
    colours = {"red": 0, "green": 1, "blue": 2}
    for side in ("a", "b"):
        for name, channel in colours.items():
            (tmp_path / side / name).mkdir(parents=True)
            clip = np.zeros((17, 32, 32, 3), np.uint8)
            clip[..., channel if (side, name) != ("b", "blue") else 0] = 200
            clip[np.arange(17), np.arange(17)] = 255
            write_clip(tmp_path / side / name / "one.webp", clip)
    lines = "".join(f"{name}/one\ta {name} thing\n" for name in colours)
    (tmp_path / "captions.tsv").write_text(lines)
    words = [
        tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out", *SIZE, *trust,
        "--viclip", tmp_path / "viclip.pt", "--clip-tokenizer", tmp_path / "words",
        "--classifier", tmp_path / "classifier.pt", "--classes", tmp_path / "classes.txt",
        "--captions", tmp_path / "captions.tsv",
    ]  # fmt: skip
    assert run("compare", *words) == 0
    fake, real = results(tmp_path / "out")["rows"]
    assert real["kind"] == "reference"
    assert real["accuracy"] == 1
    assert fake["accuracy"] == pytest.approx(2 / 3)
    assert -1 <= fake["text_score"] <= 1
    assert fake["text_score"] != real["text_score"]
    assert 0 < fake["clipv"] < 1
    assert "clipv" not in real
    (tmp_path / "captions.tsv").write_text(lines.splitlines()[1])
    assert run("compare", *words) == 0
    row = results(tmp_path / "out")["rows"][0]
    assert "text_score" not in row, "not the mean of those that have a caption"
    assert any("some clips have no caption" in note for note in row["notes"])
    (tmp_path / "captions.tsv").write_text(lines)
    assert run("compare", *words) == 0
    assert "ViCLIP, clip to caption" in (tmp_path / "out" / "table.md").read_text()


# ------------------------------------------------------------------ killed, shared, changed


def numbers(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "lines"} for row in results(folder)["rows"]]


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_ends_with_the_same_numbers(tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    sets = write_sets(tmp_path / "sets", 40)
    words = ["compare", sets / "real", sets / "fake", *SIZE, *network(sets)]
    assert run(*words, "--out", tmp_path / "whole") == 0
    command = [sys.executable, "-m", "vft_lib", "eval", *map(str, words), "--out",
               str(tmp_path / "killed")]  # fmt: skip
    env, rng, kept = os.environ | {"PYTHONPATH": str(ROOT)}, random.Random(3), list[Path]()
    for _ in range(40):
        process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
        before = len(kept)
        while process.poll() is None and len(kept) < before + 10:
            time.sleep(0.02)
            kept = list((tmp_path / "killed").glob("clips/*/*.safetensors"))
        time.sleep(rng.random() * 0.1)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
    else:
        pytest.fail("it never came to an end")
    assert before, "it was killed on the way"
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")


def test_parts_end_with_the_same_numbers(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["compare", sets / "real", sets / "other", *SIZE, *network(sets)]
    assert run(*words, "--out", tmp_path / "whole") == 0
    assert run(*words, "--out", tmp_path / "parts", "--shard", "1/2") == 0
    assert "11 clips are left" in capsys.readouterr().err
    assert not (tmp_path / "parts" / "results.json").exists()
    monkeypatch.setenv("RANK", "0")  # as torchrun does
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(*words, "--out", tmp_path / "parts") == 0
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")
    assert run(*words, "--out", tmp_path / "x", "--shard", "2/2") == 2


def test_a_clip_that_changes_is_computed_anew(tmp_path: Path) -> None:
    real = write_clips(tmp_path / "real", [1, 2])
    fake = write_clips(tmp_path / "fake", [1, 2])
    words = ["compare", real, fake, "--out", tmp_path / "out", *SIZE]
    assert run(*words) == 0
    assert results(tmp_path / "out")["rows"][0]["psnr"] == 100
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("clips/*/*.safetensors")}
    write_clip(fake / "clip-001.webp", blurred(read_clip(real / "clip-001.webp"), 3))
    assert run(*words) == 0
    assert results(tmp_path / "out")["rows"][0]["psnr"] < 100
    assert sum(p.stat().st_mtime_ns != t for p, t in kept.items()) == 2, "both sides of one pair"
    damaged = sorted(kept)[0]
    damaged.write_bytes(damaged.read_bytes()[:50])
    before = numbers(tmp_path / "out")
    assert run(*words) == 0
    assert numbers(tmp_path / "out") == before


# ------------------------------------------------------------------ protocols


def test_semantok_is_as_its_paper_has_it() -> None:
    p = protocol_named("semantok")
    assert (p.frames, p.size, p.fps, p.reference, p.pool) == (17, 128, 8, "autoencoder", 2048)
    assert (p.steps, p.guidance, p.apg, p.batch, p.batch_noise) == (50, 3, True, 8, True)
    assert [p.generated(k, 10_000) for k in (1, 2, 4, 8, 256)] == [4096, 2048, 3072, 2048, 2048]
    assert [p.guidance_of_prior(k) for k in (1, 4, 8, 32, 64, 256)] == [3, 3, 2, 2, 1, 1]
    assert p.but(steps=None) is p
    assert p.but(steps=50).name == "semantok"
    assert p.but(steps=25).name == "semantok*"
    assert Protocol().guidance_of_prior(4) is None


def test_every_number_has_a_line(sets: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("compare", sets / "real", sets / "fake", "--out", out, *SIZE, *network(sets)) == 0
    row, text = results(out)["rows"][0], (out / "table.md").read_text()
    for key in ("psnr", "ssim", "fvd"):
        line = row["lines"][key]
        assert {"measure", "protocol", "set", "frames", "reference", "interval"} <= set(line)
        assert "; ".join(f"{k}: {v}" for k, v in line.items()) in text
    fvd = row["lines"]["fvd"]
    assert "224 px bilinear without antialias, values 0..255" in fvd["input"]
    assert "i3d.pt, SHA-256 " in fvd["network"]
    assert "float64, unbiased covariance, eigh, eps 1e-06" in fvd["distance"]
    assert "11x11 Gaussian, sigma 1.5" in row["lines"]["ssim"]["ssim"]
    again = [out / "results.json"] * 2
    assert run("table", *again, "--out", tmp_path / "t") == 0
    assert (tmp_path / "t" / "table.md").read_text().count("| fake |") == 2
