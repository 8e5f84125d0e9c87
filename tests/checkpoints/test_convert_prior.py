"""Published priors: read, and what does not fit refused in one line. (Their recorded outputs are
checked with the tokenizers' in test_parity.py.)"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vft_lib.checkpoints.checkpoint import save_prior
from vft_lib.checkpoints.convert_prior import prior_plan
from vft_lib.checkpoints.parity import make_weights
from vft_lib.errors import CheckpointError
from vft_lib.models.loading import load_prior

GOLDEN = Path(__file__).parents[1] / "golden"


def read(case: str) -> tuple[dict[str, Any], dict[str, Any]]:
    config, state = ((GOLDEN / case / f"{n}.json").read_text() for n in ("config", "state"))
    return json.loads(config), json.loads(state)


def shapes(state: dict[str, Any]) -> dict[str, list[int]]:
    return {k: v["shape"] for k, v in state.items()}


@pytest.mark.parametrize("case", ["prior-class", "prior-text"])
def test_published_folder_is_read_and_kept_in_bfloat16(tmp_path: Path, case: str) -> None:
    config, state = read(case)
    folder = tmp_path / "k600-tiny-d2"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    weights = {k: make_weights(state, k, torch.bfloat16) for k in state}
    save_file(weights, folder / "m.safetensors")
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
    "not names": ({"classes": [1, 2, 3, 4, 5, 6, 7]}, "expected str"),
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
