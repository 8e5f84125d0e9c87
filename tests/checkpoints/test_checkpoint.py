"""Our weight file: what is written comes back, and anything else is refused with one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file, save_file
from torch import Tensor

from vft_lib.checkpoints import checkpoint
from vft_lib.checkpoints.checkpoint import fingerprint, save_tokenizer
from vft_lib.errors import CheckpointError, VftError
from vft_lib.models import loading
from vft_lib.models.loading import load_tokenizer
from vft_lib.tokenizer.tokenizer import Tokenizer

KEY = "encoder.to_codes.weight"


@pytest.fixture
def weights(tiny_tokenizer: Tokenizer) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in tiny_tokenizer.state_dict().items()}


@pytest.fixture
def header(tiny_tokenizer: Tokenizer) -> dict[str, str]:
    meta = {"format": "1", "kind": "tokenizer", "fingerprint": "ab"}
    return {"vft": json.dumps(meta), "config": tiny_tokenizer.config.to_json()}


def refused(path: str | Path) -> str:
    with pytest.raises(CheckpointError) as e:
        load_tokenizer(path, device="cpu")
    message = str(e.value)
    assert "\n" not in message
    assert len(message) < 500
    assert message.count(str(path)) == 1, "wrapped twice"
    return message


# ---------------------------------------------------------------------- round trips


def test_float32_round_trip_is_bit_equal(
    tmp_path: Path, tiny_tokenizer: Tokenizer, weights: dict[str, Tensor]
) -> None:
    path = tmp_path / "a.safetensors"
    mark = save_tokenizer(path, tiny_tokenizer.config, weights, torch.float32)
    back = load_tokenizer(path, device="cpu")
    assert back.config == tiny_tokenizer.config
    assert back.fingerprint == mark == fingerprint(tiny_tokenizer.config, weights)
    state = back.state_dict()
    assert state.keys() == weights.keys()
    for key, weight in weights.items():
        assert torch.equal(state[key], weight), key
    assert not back.training
    assert not any(p.requires_grad for p in back.parameters())


def test_float16_file_loads_to_float32(
    tmp_path: Path, tiny_tokenizer: Tokenizer, weights: dict[str, Tensor]
) -> None:
    path = tmp_path / "a.safetensors"
    save_tokenizer(path, tiny_tokenizer.config, weights, torch.float16)
    assert all(v.dtype == torch.float16 for v in load_file(path).values())
    back = load_tokenizer(path, device="cpu")
    for key, weight in weights.items():
        assert back.state_dict()[key].dtype == torch.float32
        assert torch.equal(back.state_dict()[key], weight.half().float()), key
    half = load_tokenizer(path, device="cpu", dtype=torch.bfloat16)
    assert {v.dtype for v in half.state_dict().values()} == {torch.bfloat16}
    assert half.fingerprint == back.fingerprint, "the mark is of the file, not of the dtype in use"


def test_a_loaded_tokenizer_works(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    """FSQ's levels once stayed on the meta device that models are built on."""
    path = tmp_path / "a.safetensors"
    save_tokenizer(path, tiny_tokenizer.config, tiny_tokenizer.state_dict(), torch.float32)
    back = load_tokenizer(path, device="cpu")
    assert all(v.device.type == "cpu" for v in back.state_dict().values())
    assert back.fsq.levels.device.type == "cpu"
    video = torch.rand(1, 3, 17, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens = back.encode(video)
    assert torch.equal(tokens.ids, tiny_tokenizer.encode(video).ids)
    assert back.decode(tokens, steps=1).shape == video.shape


def test_loading_builds_on_the_meta_device(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = []

    class Spy(Tokenizer):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            devices.append(next(self.parameters()).device.type)

    monkeypatch.setattr(loading, "Tokenizer", Spy)
    load_tokenizer(tiny_checkpoint, device="cpu")
    assert devices == ["meta"]


def test_fingerprint_tells_weights_and_configs_apart(
    tiny_tokenizer: Tokenizer, weights: dict[str, Tensor]
) -> None:
    config = tiny_tokenizer.config
    mark = fingerprint(config, weights)
    assert len(mark) == 16
    assert int(mark, 16) >= 0
    assert fingerprint(config, dict(reversed(weights.items()))) == mark
    for key in weights:
        changed = weights | {key: weights[key].clone()}
        changed[key].view(-1)[-1] += 0.001
        assert fingerprint(config, changed) != mark, key
    assert fingerprint(dataclasses.replace(config, overlap=0), weights) != mark
    # Ids stay readable under another name, at another frame rate.
    assert fingerprint(dataclasses.replace(config, fps=9.0, name="other"), weights) == mark
    assert fingerprint(config, {k: v.half() for k, v in weights.items()}) != mark


def test_fingerprint_of_scalars_and_strides() -> None:
    scalar = torch.tensor(1.5)
    assert fingerprint(TINY, {"a": scalar}) != fingerprint(TINY, {"a": torch.tensor(2.5)})
    plain = torch.arange(6.0).view(2, 3)
    assert fingerprint(TINY, {"a": plain}) == fingerprint(TINY, {"a": plain.T.clone().T})


def test_a_failed_save_keeps_the_old_file(
    tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")

    def half_written(file: Path, weights: Any, meta: Any) -> None:
        Path(file).write_bytes(b"new, but")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_safetensors", half_written)
    with pytest.raises(VftError, match="No space left"):
        save_tokenizer(path, tiny_tokenizer.config, tiny_tokenizer.state_dict(), torch.float32)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_saving_reads_each_weight_twice(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    """Once for both digests and the header, once to write: a large model is read from a disk."""
    reads = dict.fromkeys(weights, 0)

    class Counted(dict[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            reads[name] += 1
            return super().__getitem__(name)

    save_tokenizer(tmp_path / "a.safetensors", TINY, Counted(weights), torch.float16)
    assert set(reads.values()) == {2}


# ---------------------------------------------------------------------- bad files


def test_a_name_that_is_nothing_is_refused(tmp_path: Path) -> None:
    message = refused(tmp_path / "none.safetensors")
    assert "none.safetensors" in message
    assert "'default'" in message


def test_missing_tensor(tmp_path: Path, weights: Any, header: dict[str, str]) -> None:
    del weights[KEY]
    save_file(weights, tmp_path / "a.safetensors", header)
    assert f"misses tensor '{KEY}'" in refused(tmp_path / "a.safetensors")


def test_extra_tensor(tmp_path: Path, weights: Any, header: dict[str, str]) -> None:
    save_file(weights | {"more": torch.zeros(2)}, tmp_path / "a.safetensors", header)
    assert "unexpected tensor 'more'" in refused(tmp_path / "a.safetensors")


def test_tensor_of_another_shape(tmp_path: Path, weights: Any, header: dict[str, str]) -> None:
    save_file(weights | {KEY: torch.zeros(6, 31)}, tmp_path / "a.safetensors", header)
    message = refused(tmp_path / "a.safetensors")
    assert f"'{KEY}' is [6, 31], its config says [6, 32]" in message


def test_truncated_file(tmp_path: Path, tiny_checkpoint: Path) -> None:
    data = tiny_checkpoint.read_bytes()
    path = tmp_path / "a.safetensors"
    for length in (0, 1, 7, 8, 9, 100, 1000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        assert "a.safetensors" in refused(path)


def test_damaged_header(tmp_path: Path, tiny_checkpoint: Path) -> None:
    data = tiny_checkpoint.read_bytes()
    size = 8 + int.from_bytes(data[:8], "little")
    path = tmp_path / "a.safetensors"
    refusals = 0
    for place in range(0, size, max(1, size // 60)):
        path.write_bytes(data[:place] + b"\x7f" + data[place + 1 :])
        try:
            load_tokenizer(path, device="cpu")
        except CheckpointError as e:
            refusals += 1
            assert "\n" not in str(e)
    assert refusals > 30


def test_folder(tmp_path: Path) -> None:
    refused(tmp_path)


@pytest.mark.parametrize(
    "meta",
    [
        "", "{", "null", "[]", "3", "{}", '{"kind": "prior", "format": "1"}',
        '{"kind": ["tokenizer"]}', "[" * 100_000, "9" * 5000,
    ],
    ids=lambda m: m[:20],
)  # fmt: skip
def test_other_kinds_of_file(
    tmp_path: Path, weights: Any, header: dict[str, str], meta: str
) -> None:
    save_file(weights, tmp_path / "a.safetensors", header | {"vft": meta})
    refused(tmp_path / "a.safetensors")


def test_other_format(tmp_path: Path, weights: Any, header: dict[str, str]) -> None:
    meta = header["vft"].replace('"1"', '"2"')
    save_file(weights, tmp_path / "a.safetensors", header | {"vft": meta})
    assert "format '2'" in refused(tmp_path / "a.safetensors")
    assert "update it" in refused(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"size":32', '"size":-32'), ('"size":32', '"size":33'), ('"size":32', '"sizes":32'),
        ('"size":32', '"size":"32"'), ('"registers":8', '"registers":' + "9" * 5000),
        ('"fps":8.0', '"fps":NaN'), ('"fps":8.0', '"fps":1e999'), ('"head_dim":16', '"head_dim":0'),
        ('"name":"tiny"', '"name":' + "[" * 100_000),
    ],
    ids=lambda v: v[:24],
)  # fmt: skip
def test_config_that_is_nonsense(
    tmp_path: Path, weights: Any, header: dict[str, str], old: str, new: str
) -> None:
    assert old in header["config"]
    config = header["config"].replace(old, new)
    save_file(weights, tmp_path / "a.safetensors", header | {"config": config})
    assert "a.safetensors" in refused(tmp_path / "a.safetensors")


def test_header_without_config_or_anything(
    tmp_path: Path, weights: Any, header: dict[str, str]
) -> None:
    save_file(weights, tmp_path / "a.safetensors", {"vft": header["vft"]})
    refused(tmp_path / "a.safetensors")
    save_file(weights, tmp_path / "a.safetensors")
    assert "neither a file of ours nor a published one" in refused(tmp_path / "a.safetensors")


def test_the_size_of_a_hostile_config_is_not_allocated(
    tmp_path: Path, weights: Any, header: dict[str, str]
) -> None:
    config = header["config"].replace('"width":8', '"width":32768')
    save_file(weights, tmp_path / "a.safetensors", header | {"config": config})
    assert "its config says" in refused(tmp_path / "a.safetensors")
