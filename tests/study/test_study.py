"""The study at tiny size: what is equal, what differs, and that it goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vft_lib.cli.vft import main
from vft_lib.config.tokenizer import TokenizerConfig
from vft_lib.errors import ConfigError, VftError
from vft_lib.models.loading import load_tokenizer
from vft_lib.prior.prior import Prior
from vft_lib.study.recipes import KINDS, SCALES, preset
from vft_lib.study.report import points, table
from vft_lib.study.run import Study, equal_steps, step_cost
from vft_lib.tokenizer.encoder import Encoder

TINY = SCALES["tiny"]
FULL = SCALES["full"]


def config(kind: str) -> TokenizerConfig:
    return preset(TINY, kind, TINY.sizes[0][1], 0).tokenizer.config


def test_a_grid_has_a_code_for_each_place() -> None:
    """Patch i alone is told apart by code i most of all, and nothing of later frames is seen."""
    torch.manual_seed(0)
    c = config("grid")
    encoder = Encoder(c).eval()
    x = torch.randn(1, *c.latent_shape)
    with torch.no_grad():
        before = encoder(x)
        assert before.shape == (1, 5, 16, 6)
        y = x.clone()
        y[0, :, 3, 2, 1] += 3  # latent frame 3, row 2, column 1
        moved = (encoder(y) - before).abs().sum(-1)[0]
    assert int(moved[3].argmax()) == 2 * 4 + 1
    assert float(moved[:3].max()) == 0


def test_a_grid_of_another_number_of_tokens_is_refused() -> None:
    c = config("grid")
    with pytest.raises(ConfigError, match="a grid has one for each of 16 patches"):
        dataclasses.replace(c, registers=8)
    assert TokenizerConfig.from_json(c.to_json()) == c
    assert "grid" not in str(config("registers").identity()), "fingerprints stay what they are"


def test_kinds_differ_in_what_is_compared_alone() -> None:
    registers, grid, control = (preset(FULL, k, FULL.sizes[0][1], 1) for k in KINDS)
    assert registers.vae == grid.vae == control.vae
    for other in (grid, control):
        mine, its = registers.tokenizer, other.tokenizer
        assert mine.config.decoder == its.config.decoder
        assert mine.config.fsq_levels == its.config.fsq_levels
        assert (mine.clips, mine.schedule) == (its.clips, its.schedule)
        a, b = registers.prior, other.prior
        assert dataclasses.replace(a.config, name="", tokenizer="") == dataclasses.replace(
            b.config, name="", tokenizer=""
        )
        assert a.schedule == b.schedule
    assert (registers.tokenizer.nested, grid.tokenizer.nested) == (True, False)
    assert grid.tokenizer.config.encoder.grid
    assert not control.tokenizer.config.encoder.grid
    assert (control.tokenizer.nested, control.tokenizer.config.registers) == (False, 16)


def test_tokenizers_get_equal_operations() -> None:
    """Priors have the same network and the same number of tokens, so the same operations."""
    cost = {kind: step_cost(TINY, kind) for kind in KINDS}
    assert len(set(cost.values())) > 1, "else there would be nothing to make equal"
    scale = dataclasses.replace(TINY, tokenizer=4000)
    for kind in KINDS:
        spent = equal_steps(scale, kind) * cost[kind]
        assert spent == pytest.approx(4000 * cost["registers"], rel=1e-3)


def test_priors_grow_by_two_and_more() -> None:
    counts = []
    for _, size in FULL.sizes:
        with torch.device("meta"):
            prior = Prior(preset(FULL, "grid", size, 0).prior.config)
        counts.append(sum(p.numel() for p in prior.parameters()))
    assert len(counts) >= 3
    assert all(b / a >= 2 for a, b in pairwise(counts))


def result(kind: str, seed: int, size: str, parameters: int, accuracy: float) -> dict[str, Any]:
    row = {"k": 16, "tokens": 80, "seconds": 1.0, "bits": 9.0, "accuracy": {"all": accuracy},
           "own_tokens": {"all": 0.9}}  # fmt: skip
    return {"kind": kind, "seed": seed, "size": size, "parameters": parameters, "rows": [row],
            "line": {"set": "8 worlds"}}  # fmt: skip


def test_points_are_means_over_seeds() -> None:
    cells = [result("grid", s, "small", 100, a) for s, a in enumerate((0.1, 0.2, 0.6))]
    (point,) = points(cells)
    assert point["accuracy"] == pytest.approx(0.3)
    assert point["accuracy_ends"] == [0.1, 0.6]
    assert point["seeds"] == 3
    cells[0]["line"] = {"set": "9 worlds"}
    with pytest.raises(VftError, match="do not compare"):
        points(cells)


def test_a_single_seed_has_the_interval_of_its_clips() -> None:
    cells = [result("grid", s, "small", 100, 0.1) for s in range(2)]
    for cell, distance in zip(cells, (30.0, 36.0)):
        cell["rows"][0] |= {"frechet_frames": distance, "frechet_frames_interval": [20.0, 45.0]}
    (one,), (both,) = points(cells[:1]), points(cells)
    assert (one["frechet_frames"], one["frechet_frames_ends"]) == (30.0, [20.0, 45.0])
    assert (both["frechet_frames"], both["frechet_frames_ends"]) == (33.0, [30.0, 36.0])
    (row,) = [r for r in table([one], "") if r.startswith("| grid")]
    assert "| 30.00 (20.00–45.00) | 10.0%; real 90.0% |" in row


def test_a_folder_holds_one_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["eval", "study", "--out", str(tmp_path), "--scale", "tiny", "--device", "cpu"]
    with monkeypatch.context() as m:
        m.setenv("WORLD_SIZE", "2")
        assert main(words) == 2
    assert "--shard" in capsys.readouterr().err
    (tmp_path / "training.txt").write_text("400 steps")
    assert main(words) == 2
    assert "holds a study of 400 steps" in capsys.readouterr().err


def test_a_cell_of_another_judge_is_measured_anew(tmp_path: Path) -> None:
    few, many = (
        Study(TINY, tmp_path, torch.device("cpu"), judge_steps=n, clips=8) for n in (2, 300)
    )
    place = tmp_path / "grid-0" / "small"
    place.mkdir(parents=True)
    cell = {"clips": 8, "features": True, "line": few._line({"set": "8 worlds"})}
    (place / "results.json").write_text(json.dumps(cell))
    assert few._measured(place)
    assert not many._measured(place)


@pytest.mark.slow
def test_a_study_from_nothing_to_its_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "study"
    words = ["eval", "study", "--out", str(out), "--scale", "tiny", "--kinds", "registers", "grid",
             "--seeds", "0", "--clips", "8", "--judge-steps", "2", "--no-features", "--device",
             "cpu"]  # fmt: skip
    with monkeypatch.context() as m:  # ended in the middle, as by Ctrl-C
        import vft_lib.study.run as study

        m.setattr(study, "train_prior", lambda run: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(words) == 130
    made = out / "registers-0" / "tokenizer.safetensors"
    before = made.stat().st_mtime_ns
    assert main(words) == 0
    assert made.stat().st_mtime_ns == before, "what is there is not trained again"
    found = json.loads((out / "registers-0" / "small" / "results.json").read_text())
    assert [row["k"] for row in found["rows"]] == [4, 8, 16]
    assert [row["tokens"] for row in found["rows"]] == [20, 40, 80]
    small, large = (out / "registers-0" / s / "prior" / "ids.i32" for s in ("small", "large"))
    assert small.read_bytes() == large.read_bytes(), "priors of all sizes read the same"
    grid = json.loads((out / "grid-0" / "large" / "results.json").read_text())
    assert [row["k"] for row in grid["rows"]] == [16]
    assert load_tokenizer(out / "grid-0" / "tokenizer.safetensors").config.encoder.grid
    table = (out / "table.md").read_text()
    assert "| grid, k = 16 (80 a clip) | small |" in table
    with Image.open(out / "study.png") as image:
        assert image.width > 300
    assert "Protocol: set: 8 held-out worlds" in capsys.readouterr().out
    for weights in out.rglob("*.safetensors"):
        weights.unlink()
    (out / "table.md").unlink()
    assert main(words) == 0, "what is measured needs no weights any more"
    assert (out / "table.md").read_text() == table
    assert not (out / "vae.safetensors").exists()
