"""`vft gpu-check` on a CPU: the same code at tiny sizes, and nothing lost when something fails."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from vft_lib.cli.vft import main
from vft_lib.errors import VftError
from vft_lib.gpu_check import check
from vft_lib.gpu_check.check import SPECS, run_gpu_check, run_parts
from vft_lib.gpu_check.rows import Measure, Place, Row

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.slow
def test_all_of_it_at_tiny_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu-check", "--minutes", "3", "--device", "cpu", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    report = json.loads((tmp_path / "gpu-check.json").read_text())
    assert [p["part"] for p in report["parts"]] == [s.name for s in SPECS]
    assert report["failed"] == []
    assert report["errors"] == 0
    assert all(p["status"] == "done" and p["rows"] for p in report["parts"])
    page = (tmp_path / "gpu-check.md").read_text()
    for spec in SPECS:  # on a CPU, nothing of it is proven
        unproven = f"on a GPU, {spec.name}: {spec.proves}"
        assert f"not proven: {unproven}" in said
        assert f"- {unproven}" in page
        assert f"## {spec.name}: {spec.proves}" in page


CLOCK = [1e9]  # what time.time() says, whoever else uses this machine


def broken(place: Place) -> Iterator[tuple[str, Measure]]:
    def fails() -> list[Row]:
        raise RuntimeError("CUDA error: an illegal memory access\nand more")

    yield "one", lambda: [Row("one", 1.0, "s", "≤ 2 s", True), Row("nothing", float("nan"), "s")]
    yield "two", fails
    yield "three", lambda: [Row("three", 3.0, "s", "≤ 2 s", False)]
    yield "four", lambda: CLOCK.append(CLOCK[-1] + 10) or []  # type: ignore[func-returns-value]
    yield "five", lambda: [Row("five", 5.0)]


def test_what_fails_is_told_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "PARTS", dict.fromkeys(check.PARTS, broken))
    monkeypatch.setattr(time, "time", lambda: CLOCK[-1])
    place = Place(CPU, GOLDEN, tiny=True)
    assert run_parts(["safety"], place, tmp_path, time.time() + 3.0) == 0
    report = check.collect(tmp_path, ["safety", "prior"], CPU, 1.0, 4.0)
    assert [r["what"] for r in report["parts"][0]["rows"]] == ["one", "nothing", "three"]
    assert report["parts"][0]["rows"][1] == {
        "what": "nothing", "value": None, "unit": "s", "target": "", "ok": None, "note": "nan",
    }  # fmt: skip
    assert report["failed"] == ["three"]
    assert report["errors"] == 1
    assert report["unproven"][:3] == [
        "safety: five",
        "safety: two (RuntimeError: CUDA error: an illegal memory access and more)",
        "prior: ids a second",
    ]  # fmt: skip
    page = check.markdown(report)
    assert "| one | 1 s | ≤ 2 s | ok |" in page
    assert "| three | 3 s | ≤ 2 s | **missed** |" in page


@pytest.mark.parametrize("ends", ["import os; os._exit(7)", "import time; time.sleep(60)"])
def test_a_process_that_dies_or_hangs_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    monkeypatch.setattr(check, "GRACE", 0.1)
    facts = {"part": "prior", "proves": "", "status": "running", "until": time.time() + 1,
             "rows": [], "errors": [], "skipped": [], "doing": "d16", "seconds": 0}  # fmt: skip
    (tmp_path / "part-prior.json").write_text(json.dumps(facts))
    with subprocess.Popen([sys.executable, "-c", ends]) as process:
        check._watch(process, tmp_path, ["prior"], time.time() + 5, lambda: None)
    found = json.loads((tmp_path / "part-prior.json").read_text())
    why = "the process ended with status 7" if "exit" in ends else "it took too long"
    assert found["status"] == "lost"
    assert found["errors"][0]["what"] == "d16"
    assert why in found["errors"][0]["error"]


def test_an_unknown_part_is_named(tmp_path: Path) -> None:
    with pytest.raises(VftError, match="no part 'speed'; choose among attention, parity"):
        run_gpu_check(tmp_path, only=["speed"], device=CPU)
