"""`vft eval reconstruct` and `generate`: a tokenizer and a prior under a protocol."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import save_tiny
from PIL import Image
from torch import Tensor

from scoring.stand_ins import I3D, save_script, write_clips
from vft_lib.checkpoints.checkpoint import save_prior
from vft_lib.cli.vft import main
from vft_lib.config.sampling import Recipe
from vft_lib.evaluation.curves import autoencoded
from vft_lib.footage.footage import to_video
from vft_lib.measure.codecs import H264, Codec, available
from vft_lib.measure.metrics import whole_psnr
from vft_lib.models.loading import load_tokenizer
from vft_lib.prior.prior import Prior
from vft_lib.scoring import protocol
from vft_lib.scoring.networks import Networks
from vft_lib.scoring.protocol import SEMANTOK, Protocol
from vft_lib.scoring.reconstruct import Sampler, pixels, reconstruct
from vft_lib.scoring.score import Scorer
from vft_lib.scoring.sources import World
from vft_lib.shards.tokenizing import autoencoder_mark
from vft_lib.tokenizer.eight_bit import store_in_eight_bits
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.train.presets import PRESETS

LIMIT = 12  # clips of a set
WORDS = ["--device", "cpu", "--no-features", "--resamples", "4"]
codecs_here = pytest.mark.skipif(not available(), reason="needs PyAV's encoders")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tok.safetensors`, `prior.safetensors`, `i3d.pt`, and `sum`, the last one's SHA-256."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = load_tokenizer(save_tiny(root / "tok.safetensors"), device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = dataclasses.replace(
            PRESETS["tiny"].prior.config, tokenizer="tiny",
            tokenizer_fingerprint=tokenizer.fingerprint,
        )  # fmt: skip
        save_prior(root / "prior.safetensors", config, Prior(config).state_dict(), torch.float32)
    (root / "sum").write_text(save_script(I3D(), root / "i3d.pt"))
    return root


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight clips are enough here for a distance of sets; test_compare.py has how many are."""
    monkeypatch.setattr(protocol, "LEAST", 8)


def run(*words: Any) -> int:
    return main(["eval", *map(str, words)])


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def i3d(root: Path) -> list[Any]:
    return ["--i3d", root / "i3d.pt", "--trust", (root / "sum").read_text()]


def numbers(folder: Path) -> list[dict[str, Any]]:
    """All but what depends on the clock."""
    rows = results(folder)["rows"]
    return [{k: v for k, v in row.items() if k not in ("lines", "seconds")} for row in rows]


# ------------------------------------------------------------------ reconstruct


def test_every_way_of_keeping_clips(models: Path, tmp_path: Path) -> None:
    words = ["reconstruct", "world", "--limit", 3, "--tokenizer", models / "tok.safetensors",
             "--budgets", 1, 8, "--steps", 2, *WORDS, "--out", tmp_path]  # fmt: skip
    assert run(*words) == 0
    rows = results(tmp_path)["rows"]
    assert [r["kind"] for r in rows[:5]] == ["tokens", "tokens", "autoencoder", "blocks", "blocks"]
    assert [r["bytes"] for r in rows[:2]] == [10, 80]
    for name in {codec.name for codec in available()}:
        sizes = [r["bytes"] for r in rows if r["name"] == name]
        assert len(sizes) == len(set(sizes)) > 0
    for row in rows:
        assert row["clips"] == 3
        assert 0 < row["psnr"] < 100
        low, high = row["psnr_interval"]
        assert low <= row["psnr"] <= high
    line = rows[0]["lines"]["psnr"]
    assert line["sampler"] == "Euler, 2 steps, guidance 1, noise of clip i by seed 0 + i, float32"
    assert "sampler" not in rows[2]["lines"]["psnr"]
    assert line["frames"] == "17 of 32x32 px at 8 fps, 8 bits", "the tokenizer's own"
    assert "| autoencoder alone |" in (tmp_path / "table.md").read_text()
    with Image.open(tmp_path / "quality.png") as image:
        assert image.width > 400


def test_a_tokenizer_of_another_size_is_refused(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "reconstruct",
        "world",
        "--limit",
        2,
        "--tokenizer",
        models / "tok.safetensors",
        *WORDS,
    ]
    assert run(*words, "--protocol", "semantok", "--out", tmp_path) == 2
    assert "tiny works at 32 px, the protocol at 128" in capsys.readouterr().err


def scores(
    tokenizer: Tokenizer, protocol: Protocol, out: Path, clips: int, codecs: Sequence[Codec] = ()
) -> Any:
    found = reconstruct(
        tokenizer, World(clips, protocol), Scorer(protocol, Networks()), out, print, budgets=[4],
        codecs=codecs,
    )  # fmt: skip
    assert found is not None
    return {f"{r['kind']} {r['name']}": r for r in found["rows"]}


def test_weights_in_eight_bits_are_another_line(models: Path, tmp_path: Path) -> None:
    protocol = Protocol(size=32, steps=2)
    tokenizer = load_tokenizer(models / "tok.safetensors", device="cpu")
    before = scores(tokenizer, protocol, tmp_path, 2)["tokens k = 4"]
    store_in_eight_bits(tokenizer, "int8")
    after = scores(tokenizer, protocol, tmp_path, 2)["tokens k = 4"]
    assert after["psnr"] != before["psnr"], "not what was kept of the other"
    assert (
        after["lines"]["psnr"]["sampler"] == before["lines"]["psnr"]["sampler"] + ", weights int8"
    )


def test_a_clip_in_another_place_has_other_noise(models: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(models / "tok.safetensors", device="cpu")
    protocol = Protocol(size=32, steps=2)

    class Backwards(World):
        @property
        def ids(self) -> list[str]:
            return super().ids[::-1]

    def score(source: World, out: Path) -> Any:
        found = reconstruct(
            tokenizer, source, Scorer(protocol, Networks()), out, print, budgets=[4]
        )
        assert found is not None
        return next(r["psnr"] for r in found["rows"] if r["kind"] == "tokens")

    score(World(3, protocol), tmp_path / "one")
    assert score(Backwards(3, protocol), tmp_path / "one") == score(
        Backwards(3, protocol), tmp_path / "new"
    )


def test_the_world_has_one_frame_rate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("reconstruct", "world", "--limit", 2, "--fps", 4, "--out", tmp_path, *WORDS) == 2
    assert "the procedural world moves at 8 fps" in capsys.readouterr().err


def test_semantok_compares_with_the_autoencoder_and_seeds_each_batch(
    tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """The same, computed by hand: clips 8 and 9 are a batch whose noise begins anew."""
    protocol = SEMANTOK.but(size=32, steps=2, pool=10)
    found = scores(tiny_tokenizer, protocol, tmp_path, 10)
    source, expected = World(10, protocol), []
    clips = [source.read(clip) for clip in source.ids]
    for start in (0, 8):
        batch = clips[start : start + 8]
        g = torch.Generator().manual_seed(0)
        cut = tiny_tokenizer.encode(to_video(batch)).truncate(4)
        made = tiny_tokenizer.decode(cut, steps=2, guidance=3.0, apg=True, generator=g)
        for clip, video in zip(batch, made):
            alone = autoencoded(tiny_tokenizer, to_video([clip])[0])
            a, b = (to_video([pixels(v)])[0] for v in (alone, video))
            expected.append(whole_psnr(a, b))
    assert found["tokens k = 4"]["psnr"] == pytest.approx(np.mean(expected), rel=1e-5)
    line = found["tokens k = 4"]["lines"]["psnr"]
    mark = autoencoder_mark(tiny_tokenizer.vae.state_dict())
    assert line["reference"] == f"autoencoder {mark}", "two autoencoders are two references"
    assert "2 steps, guidance 3 projected, noise by seed 0 anew for each batch of 8" in str(line)
    assert "autoencoder autoencoder" not in found, "it is what is compared with"
    raw = scores(tiny_tokenizer, protocol.but(reference="raw"), tmp_path, 10)
    assert found["raw raw clips"]["psnr"] == pytest.approx(
        raw["autoencoder autoencoder"]["psnr"], rel=1e-6
    )
    assert raw["tokens k = 4"]["psnr"] != found["tokens k = 4"]["psnr"]


@codecs_here
def test_a_codec_gets_the_same_bytes(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    found = scores(tiny_tokenizer, Protocol(size=32, steps=1), tmp_path, 3, [H264])
    rows = [r for key, r in found.items() if key.startswith("codec")]
    assert rows[0]["limit"] == 0
    assert all(r["psnr"] > 10 for r in rows)


# ------------------------------------------------------------------ generate


def generated(models: Path, out: Path, *more: Any) -> list[Any]:
    return [
        "generate", "--prior", models / "prior.safetensors", "--tokenizer",
        models / "tok.safetensors", "--real", "world", "--limit", LIMIT, "--captions", "world",
        "--budgets", 1, 4, "--steps", 1, *i3d(models), *WORDS, "--out", out, *more,
    ]  # fmt: skip


def test_a_prior_against_real_clips(models: Path, tmp_path: Path) -> None:
    assert run(*generated(models, tmp_path)) == 0
    found = results(tmp_path)
    one, four = found["rows"]
    assert (one["clips"], one["bytes"], four["bytes"]) == (LIMIT, 10, 40)
    assert one["fvd"] > 0
    assert one["seconds"] > 0
    assert found["subject"]["parameters"] > 1000
    line = one["lines"]["fvd"]
    assert line["sets"] == "12, 12"
    assert "guidance 2, temperature 0.8, seed 0 + i, captions" in line["prior"]
    assert "Euler, 1 steps" in line["sampler"]
    with Image.open(tmp_path / "quality.png") as image:
        assert image.width > 400


def test_numbers_of_another_sampler_stand_in_no_common_table(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    assert run(*generated(models, a)) == 0
    assert run(*generated(models, b, "--by-class", "--count", 10)) == 0
    assert results(b)["rows"][0]["clips"] == 10
    table = ["table", a / "results.json", b / "results.json", "--out", tmp_path / "t"]
    assert run(*table) == 2
    told = capsys.readouterr().err
    assert "do not compare. FVD, sets: '12, 12' in one, '12, 10' in another" in told


def test_captions_of_a_file_and_real_clips_of_a_folder(models: Path, tmp_path: Path) -> None:
    real = write_clips(tmp_path / "real", range(9))
    lines = "".join(f"clip-{i:03}\ta red ball moves left\n" for i in range(3))
    (tmp_path / "captions.tsv").write_text(lines)
    words = generated(models, tmp_path / "out", "--real", real, "--count", 10)
    words[words.index("world")] = real
    words[words.index("--captions") + 1] = tmp_path / "captions.tsv"
    assert run(*words) == 0
    rows = results(tmp_path / "out")["rows"]
    assert rows[0]["clips"] == 10, "captions begin again"
    assert rows[0]["lines"]["fvd"]["sets"] == "9, 10"


def test_a_generation_that_stops_goes_on_with_the_same_numbers(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    assert run(*generated(models, whole)) == 0
    write: Callable[..., Tensor] = Tokenizer.decode
    calls = []

    def killed(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(*args, **kwargs)

    monkeypatch.setattr(Tokenizer, "decode", killed)
    assert run(*generated(models, halted)) == 130
    assert run(*generated(models, halted)) == 0
    assert len(calls) == 3 + 2 * 2 - 2, "what was there is not made again"
    assert numbers(halted) == numbers(whole)


def test_the_sampler_of_a_protocol(tiny_tokenizer: Tokenizer) -> None:
    own = tiny_tokenizer.config.sampling
    plain = Sampler(Protocol(size=32), tiny_tokenizer)
    assert (plain.usual.steps, plain.usual.guidance) == (own.steps, own.guidance)
    assert plain.of(8, 3).seed == [8, 9, 10]
    theirs = Sampler(SEMANTOK.but(size=32), tiny_tokenizer)
    assert theirs.usual.recipe == Recipe(50, 3.0, True), "nothing of the tokenizer's own"
    a, b = (theirs.of(i, 8).noise(8)((2, 2)) for i in (0, 8))
    assert torch.equal(a, b), "every batch draws the same noise"
    assert not torch.equal(a[0], a[1])
