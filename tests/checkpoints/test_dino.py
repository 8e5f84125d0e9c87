"""DINOv2 from a config and tensors: under either release's names, and what is no DINOv2."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import torch
from published import GOLDEN
from torch import Tensor

from vft_lib.checkpoints.dino import RENAMED, build_dino, read_dino_config
from vft_lib.checkpoints.parity import make_weights
from vft_lib.cli.vft import main
from vft_lib.errors import CheckpointError

CASE = GOLDEN / "semantok-features"


def config() -> dict[str, Any]:
    return json.loads((CASE / "config.json").read_text())["dinov2"]


def weights() -> dict[str, Tensor]:
    state = json.loads((CASE / "state.json").read_text())
    return {key: make_weights(state, key) for key in state}


def test_tensors_under_the_published_names() -> None:
    """The file on the hub has the names of transformers before 5."""
    pytest.importorskip("transformers", reason="transformers is missing: pip install .[dino]")
    published = {}
    for key, value in weights().items():
        for old, new in RENAMED:
            key = key.replace(new, old)
        published[key] = value
    assert any(".attention.attention.query." in key for key in published)
    facts = read_dino_config(config() | {"model_type": "dinov2", "torch_dtype": "float32"}, "x")
    pictures = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        got = build_dino(facts, published, "x").states(pictures)
        assert torch.equal(got, build_dino(facts, weights(), "x").states(pictures))
    assert got.shape == (2, 257, 32)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"model_type": "clip_vision_model"}, "x is a 'clip_vision_model' network"),
        ({"model_type": "dinov2_with_registers"}, "'dinov2_with_registers'"),
        ({"attn_implementation": "some/kernel"}, "unknown entry 'attn_implementation'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"num_hidden_layers": 1 << 12}, "num_hidden_layers is 4096"),
        ({"num_attention_heads": 3}, "3 heads do not divide 32"),
        ({"patch_size": 16}, "patch_size is 16"),
        ({"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_another_network_is_refused_by_name(entries: dict[str, Any], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        read_dino_config(config() | entries, "x")


@pytest.mark.parametrize("what", ["more", "less", "shape"])
def test_tensors_that_are_not_its_own(what: str) -> None:
    pytest.importorskip("transformers", reason="transformers is missing: pip install .[dino]")
    tensors = weights()
    if what == "more":
        tensors["vision_model.x"] = torch.zeros(1)
    elif what == "less":
        del tensors["layernorm.weight"]
    else:
        tensors["layernorm.weight"] = torch.zeros(31)
    reason = {"more": "unexpected tensor 'vision_model.x'", "less": "misses tensor 'layernorm.w"}
    with pytest.raises(CheckpointError, match=reason.get(what, r"is \[31\], its config says")):
        build_dino(read_dino_config(config(), "x"), tensors, "x")


def test_without_transformers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["parity", str(CASE)]) == 2
    error = capsys.readouterr().err
    assert "pip install '.[dino]'" in error
    assert error.count("\n") == 1
    assert main(["parity", str(GOLDEN / "semantok-encode")]) == 0
