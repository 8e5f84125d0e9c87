"""Published priors: recorded outputs are matched, and what does not fit is refused in one line."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vft_lib.checkpoint import save_prior
from vft_lib.convert_prior import prior_plan
from vft_lib.errors import CheckpointError
from vft_lib.loading import load_prior
from vft_lib.prior import Prior

GOLDEN = Path(__file__).parent / "golden"


def made_up(name: str, entry: dict[str, Any]) -> Tensor:
    """The recorded cases' weights: a fixed stream of numbers that depends on the name only."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    raw = np.random.PCG64(seed).random_raw(math.prod(entry["shape"]))
    unit = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    x = ((unit * 2 - 1) * math.sqrt(3) * entry["std"]).astype(np.float32)
    return torch.from_numpy(np.float32(entry["mean"]) + x.reshape(entry["shape"]))


def read(case: str) -> tuple[dict[str, Any], dict[str, Any]]:
    config, state = ((GOLDEN / case / f"{n}.json").read_text() for n in ("config", "state"))
    return json.loads(config), json.loads(state)


def shapes(state: dict[str, Any]) -> dict[str, list[int]]:
    return {k: v["shape"] for k, v in state.items()}


def golden_prior(case: str) -> Prior:
    config, state = read(case)
    ours, table = prior_plan(config, shapes(state), case)
    prior = Prior(ours)
    weights = {key: made_up(name, state[name]) for key, name in table.items()}
    prior.load_state_dict(weights, strict=True)
    return prior.eval().requires_grad_(False)


def checks() -> list[Any]:
    found = []
    for case in ("prior-class", "prior-text"):
        for check in json.loads((GOLDEN / case / "case.json").read_text())["checks"]:
            found.append(pytest.param(case, check, id=f"{case} {check['expect']}"))
    return found


@pytest.mark.parametrize(("case", "check"), checks())
def test_recorded_outputs(case: str, check: dict[str, Any]) -> None:
    prior, io = golden_prior(case), load_file(GOLDEN / case / "io.safetensors")
    expected = io[check["expect"]]
    classes = torch.tensor(check["class_ids"]) if "class_ids" in check else None
    states, mask = (io[check[n]] if n in check else None for n in ("text", "text_mask"))
    guidance = check.get("guidance", 1.0)
    condition = prior.network.condition(
        len(expected), classes, states, mask, guided=guidance != 1
    )  # fmt: skip
    if check["op"] == "prior_logits":
        got = prior.network(io[check["ids"]].long(), condition)
        assert float((got - expected).norm() / expected.norm()) <= check["tol"]
    else:
        got = prior.sample(condition, check["length"], guidance=guidance)
        assert torch.equal(got, expected.long())


@pytest.mark.parametrize("case", ["prior-class", "prior-text"])
def test_published_folder_is_read_and_kept_in_bfloat16(tmp_path: Path, case: str) -> None:
    config, state = read(case)
    folder = tmp_path / "k600-tiny-d2"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: made_up(k, v).bfloat16() for k, v in state.items()}, folder / "m.safetensors")
    prior = load_prior(folder, device="cpu", dtype=torch.bfloat16)
    assert prior.config.name == "k600-tiny-d2"
    assert {p.dtype for p in prior.parameters()} == {torch.bfloat16}
    save_prior(tmp_path / "ours.safetensors", prior.config, prior.state_dict(), None)
    again = load_prior(tmp_path / "ours.safetensors", device="cpu", dtype=torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(prior.parameters(), again.parameters()))
    assert again.fingerprint == prior.fingerprint


def test_guidance_defaults_follow_the_budget() -> None:
    config, state = read("prior-class")
    ours, _ = prior_plan(config, shapes(state), "ar/k600-videoflextok-d2")
    assert [ours.guidance_for(k) for k in (1, 4, 8, 16, 32, 64, 256)] == [3, 3, 2, 2, 2, 1, 1]
    config, state = read("prior-text")
    ours, _ = prior_plan(config, shapes(state), "ar/uco3d-semantok-d2")
    assert [ours.guidance_for(k) for k in (1, 32, 256)] == [3, 3, 3]


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown entry": ({"rope": True}, "rope"),
    "depth as text": ({"depth": "2"}, "depth"),
    "depth as bool": ({"depth": True}, "depth"),
    "no such cond": ({"cond": "audio"}, "audio"),
    "negative": ({"seq_len": -1}, "seq_len"),
    "huge": ({"vocab": 1 << 40}, "vocab"),
    "class names": ({"classes": ["a"]}, "1 class names for n_classes 7"),
    "not names": ({"classes": [1, 2, 3, 4, 5, 6, 7]}, "not a name"),
    "text without states": ({"cond": "text", "n_classes": 0}, "ctx_dim"),
    "no classes": ({"n_classes": 0, "classes": []}, "n_classes"),
    "tensors of another depth": ({"depth": 3}, "missing"),
    "another vocabulary": ({"vocab": 639}, "tok_emb.weight"),
    "a bias that is not there": ({"head_bias": True}, "head.bias"),
}  # fmt: skip


@pytest.mark.parametrize("why", BAD_CONFIGS)
def test_configs_that_do_not_fit(why: str) -> None:
    changes, message = BAD_CONFIGS[why]
    config, state = read("prior-class")
    with pytest.raises(CheckpointError, match=message) as e:
        prior_plan(config | changes, shapes(state), "x")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("entry", ["depth", "vocab", "seq_len", "cond", "tokenizer"])
def test_missing_config_entries_are_named(entry: str) -> None:
    config, state = read("prior-class")
    del config[entry]
    with pytest.raises(CheckpointError, match=f"'{entry}' is missing"):
        prior_plan(config, shapes(state), "x")


def test_tensors_that_do_not_fit() -> None:
    config, state = read("prior-text")
    for change, message in (
        (lambda s: s.pop("blocks.1.nx.weight"), "'blocks.1.nx.weight' is missing"),
        (lambda s: s.update({"ema.sos": [128]}), "'ema.sos' is left over"),
        (lambda s: s.update({"sos": [64]}), r"'sos' is \[64\]"),
        (lambda s: s.update({"blocks.2.n1.weight": [128]}), "'blocks.2.n1.weight' is left over"),
    ):
        broken = copy.deepcopy(shapes(state))
        change(broken)
        with pytest.raises(CheckpointError, match=message):
            prior_plan(config, broken, "x")
