"""Our numbers against the published code's, recorded on made-up weights (tests/golden)."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vft_lib.checkpoints.parity import made_up, run_case
from vft_lib.cli.vft import main
from vft_lib.errors import VftError

GOLDEN = Path(__file__).parents[1] / "golden"
LONG = {"long-clip", "long-unmasked", "independent-chunks"}
"""Clips of many chunks: 5 to 15 seconds on a core."""
CASES = [
    pytest.param(name, marks=pytest.mark.slow if name in LONG else ())
    for name in sorted(p.parent.name for p in GOLDEN.glob("*/case.json"))
]
# The command says so in words; a test of words is in test_dino.py.
NEEDS_TRANSFORMERS = {"semantok-features"}


@pytest.mark.parametrize("case", CASES)
def test_every_check_is_within_its_tolerance(case: str) -> None:
    if case in NEEDS_TRANSFORMERS:
        pytest.importorskip("transformers", reason="transformers is missing: pip install .[dino]")
    results = list(run_case(GOLDEN / case))
    expected = json.loads((GOLDEN / case / "case.json").read_text())["checks"]
    assert len(results) == sum(c.get("n", 1) for c in expected)
    assert [r for r in results if not r.ok] == []


def test_made_up_numbers_are_the_recipe() -> None:
    """Written out one number at a time, from the recipe's words."""
    name, seed = "decoder.x", hashlib.sha256(b"decoder.x").digest()[:8]
    stream = np.random.PCG64(int.from_bytes(seed, "little"))
    expected = []
    for _ in range(6):
        unit = (int(stream.random_raw()) >> 11) / 2**53
        expected.append(np.float32((unit * 2 - 1) * 3**0.5 * 0.25))
    assert made_up(name, [2, 3], 0.25).tolist() == np.reshape(expected, (2, 3)).tolist()
    assert made_up("scalar", []).shape == ()


@pytest.fixture
def case(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "options2", tmp_path / "case"))


def test_a_wrong_number_fails_and_says_so(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another register: the encoder's check fails, the decoder's do not."""
    state = json.loads((case / "state.json").read_text())
    key = next(k for k in state if k.endswith(".registers"))
    state[key]["std"] *= 1.01
    (case / "state.json").write_text(json.dumps(state))
    assert main(["parity", str(case)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in out[:-1]] == ["FAILED", "ok", "ok", "ok"]
    assert out[-1] == "3 of 4 checks passed"
    assert main(["parity", str(GOLDEN / "options2"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["failed"] == 0
    assert facts["checks"][0]["op"] == "encode_latents"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"op": "guess"}, "unknown op 'guess'"),
        ({"latents": "in.other"}, "in.other"),
        ({"expect": "out.other"}, "out.other"),
        ({"tol": None}, "lacks or mistypes"),
    ],
)
def test_a_check_that_makes_no_sense(case: Path, change: dict[str, str], reason: str) -> None:
    data = json.loads((case / "case.json").read_text())
    data["checks"][0] |= change
    (case / "case.json").write_text(json.dumps(data))
    with pytest.raises(VftError, match=reason):
        list(run_case(case))


@pytest.mark.parametrize(
    ("case", "change", "reason"),
    [
        ("semantok-features", {"agg": "median"}, "agg is 'median'; expected one of avg, first"),
        ("semantok-encode", {"grids": None}, r"grids of shape None; expected \[2, 5, 4, 4, 24\]"),
        ("semantok-encode", {"global_vectors": "in.grids"}, r"global vectors of shape \[2, 5, 4"),
    ],
)
def test_features_that_do_not_fit(
    tmp_path: Path, case: str, change: dict[str, Any], reason: str
) -> None:
    if case in NEEDS_TRANSFORMERS:
        pytest.importorskip("transformers", reason="transformers is missing: pip install .[dino]")
    folder = Path(shutil.copytree(GOLDEN / case, tmp_path / "case"))
    data = json.loads((folder / "case.json").read_text())
    data["checks"][0] |= change
    (folder / "case.json").write_text(json.dumps(data))
    with pytest.raises(VftError, match=reason):
        list(run_case(folder))


def test_not_a_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", str(tmp_path)]) == 2
    assert "not a parity case" in capsys.readouterr().err
