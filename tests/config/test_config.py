"""Configs travel as JSON; anything that is not a model we can build is refused, by name."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from vft_lib.config.sampling import SamplingDefaults
from vft_lib.config.tokenizer import (
    DecoderConfig,
    EncoderConfig,
    MaskConfig,
    PosembConfig,
    TokenizerConfig,
    TransformerConfig,
    VAEConfig,
)
from vft_lib.errors import ConfigError

PUBLISHED = TokenizerConfig(
    name="videoflextok_d18_d28", size=256, registers=256, vae=VAEConfig(),
    encoder=EncoderConfig(
        TransformerConfig(1152, 18), (1, 2, 2), PosembConfig((5, 16, 16)), register_frames=5
    ),
    decoder=DecoderConfig(
        TransformerConfig(1792, 28, modulation_kinds=2), (1, 2, 2), PosembConfig((5, 16, 16)),
        PosembConfig((5, 256), "learnable_prod", interpolate=True),
        steps=("nested_dropout", "posemb", "null_condition"),
        mask=MaskConfig("flexible_time_block_causal_last", nonprefix2nonprefix="causal"),
    ),
    overlap=0, fps=7.5, sampling=SamplingDefaults(steps=30, guidance=25.0, apg=False),
)  # fmt: skip


def changed(path: str, value: Any) -> str:
    """The published config's JSON with one entry replaced; "delete" removes it."""
    data = json.loads(PUBLISHED.to_json())
    *way, last = path.split(".")
    place = data
    for step in way:
        place = place[step]
    if value == "delete":
        del place[last]
    else:
        place[last] = value
    return json.dumps(data)


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as e:
        TokenizerConfig.from_json(text)
    message = str(e.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def test_json_round_trip() -> None:
    text = PUBLISHED.to_json()
    assert TokenizerConfig.from_json(text) == PUBLISHED
    assert TokenizerConfig.from_json(text).to_json() == text


def test_json_is_canonical() -> None:
    text = PUBLISHED.to_json()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))


def test_entries_with_a_default_may_be_missing() -> None:
    assert TokenizerConfig.from_json(changed("overlap", "delete")).overlap == 1
    assert TokenizerConfig.from_json(changed("sampling", "delete")).sampling == SamplingDefaults()


def test_whole_numbers_do_for_a_float() -> None:
    fps = TokenizerConfig.from_json(changed("fps", 8)).fps
    assert fps == 8.0
    assert isinstance(fps, float)


def test_derived_sizes() -> None:
    assert PUBLISHED.latent_frames == 5
    assert PUBLISHED.stride == 17
    assert dataclasses.replace(PUBLISHED, overlap=1).stride == 16
    assert PUBLISHED.vocab == 64_000
    assert PUBLISHED.latent_shape == (16, 5, 32, 32)
    assert TransformerConfig(1152, 18).hidden == 3072
    assert TransformerConfig(100, 1, mlp_ratio=2.7).hidden == 180


@pytest.mark.parametrize(
    "path", ["name", "size", "vae", "encoder.trunk", "encoder.trunk.dim", "decoder.patch_size"]
)
def test_missing_entry_is_named(path: str) -> None:
    message = refused(changed(path, "delete"))
    assert repr(path.split(".")[-1]) in message
    assert "missing" in message


@pytest.mark.parametrize(
    "path", ["sizes", "vae.depth", "encoder.mask.prefix", "decoder._target_", "x" * 5000]
)
def test_unknown_entry_is_named(path: str) -> None:
    message = refused(changed(path, 3))
    assert "unknown" in message
    assert path.split(".")[-1][:50] in message


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", 3), ("name", None), ("size", "256"), ("size", 256.0), ("size", True),
        ("size", None), ("size", [256]), ("size", -8), ("size", 1 << 40), ("size", 10**5000),
        ("fps", "8"), ("fps", True), ("fps", float("nan")), ("fps", float("inf")),
        ("fps", 10**400), ("vae", 3), ("vae", []), ("vae.multipliers", 4),
        ("vae.multipliers", ["1", 2, 4, 4]), ("encoder.patch_size", [1, 2]),
        ("encoder.patch_size", {"a": 1}), ("decoder.head_modulation", 1),
        ("decoder.head_modulation", "yes"), ("encoder.mask.mode", "diagonal"),
        ("encoder.mask.mode", ["full"]), ("decoder.mask.prefix2prefix", "causal"),
        ("decoder.register_posemb.kind", "rope"), ("decoder.steps", ["posemb", "dropout"]),
        ("decoder.steps", "posemb"), ("fsq_levels", "888555"), ("sampling.draft", 4),
        ("sampling.method", "rk4"), ("sampling.interval", [0.5]), ("name", {"a": ["b"] * 10_000}),
    ],
    ids=lambda v: str(v)[:24] if not isinstance(v, int) or v < 1 << 63 else "giant",
)  # fmt: skip
def test_ill_typed_entry_is_named(path: str, value: Any) -> None:
    if isinstance(value, int) and value > 10**4300:  # json refuses to write it
        text = changed(path, "GIANT").replace('"GIANT"', "9" * 5000)
    else:
        text = changed(path, value)
        assert path.split(".")[-1] in refused(text)
    refused(text)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("size", 0), ("size", 100), ("registers", 0), ("chunk_frames", 0), ("chunk_frames", 1),
        ("chunk_frames", 16), ("overlap", 2), ("fps", 0), ("fps", -8.0), ("fps", 1e6),
        ("fsq_levels", []), ("fsq_levels", [8, 1]), ("fsq_levels", [0, 8]),
        ("fsq_levels", [8, 8, 8, 8, 8, 5]), ("fsq_levels", [300, 300]),
        ("vae.multipliers", [1, 2, 4]), ("vae.multipliers", []), ("vae.multipliers", [1, 0, 1, 1]),
        ("vae.width", 0), ("vae.latent_channels", 0), ("vae.encoder_blocks", 0),
        ("encoder.trunk.head_dim", 0), ("encoder.trunk.head_dim", 100), ("decoder.trunk.dim", 0),
        ("decoder.trunk.depth", 100_000), ("decoder.trunk.mlp_ratio", 1e9),
        ("decoder.trunk.mlp_ratio", -4.0), ("decoder.trunk.modulation_kinds", 3),
        ("encoder.patch_size", [1, 0, 1]), ("encoder.patch_size", [0, 1, 1]),
        ("encoder.patch_size", [1, 3, 1]), ("decoder.patch_size", [5, 1, 1]),
        ("encoder.register_frames", 4), ("encoder.patch_posemb.max_sizes", []),
        ("decoder.register_posemb.max_sizes", [5, 0]), ("decoder.max_timestep", 0.0),
        ("sampling.steps", 0), ("sampling.steps", 10_001), ("sampling.shift", 0.0),
        ("sampling.interval", [0.5, 0.4]), ("sampling.interval", [0.0, 1.5]),
        ("sampling.reuse", -1.0), ("sampling.draft", {"steps": 0}),
        ("sampling.best", {"method": "heun", "reuse": 0.1}),
    ],
)  # fmt: skip
def test_values_that_describe_no_model(path: str, value: Any) -> None:
    refused(changed(path, value))


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "3", '"config"', "[" * 100_000, '{"a":' * 100_000, "9" * 5000, "NaN"],
    ids=lambda t: t[:12],
)
def test_text_that_is_no_config(text: str) -> None:
    refused(text)


def test_configs_are_frozen_and_equal_by_value() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PUBLISHED.size = 3  # type: ignore[misc]
    assert hash(PUBLISHED) == hash(TokenizerConfig.from_json(PUBLISHED.to_json()))
