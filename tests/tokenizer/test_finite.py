"""A model that runs over in a small number format: never a black clip, but float32, or one line."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vft_lib.checkpoints.checkpoint import save_tokenizer
from vft_lib.cli.vft import main
from vft_lib.errors import VftError
from vft_lib.tokenizer.eight_bit import store_in_eight_bits
from vft_lib.tokenizer.parts import in_float32
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.tokens import Tokens

SEED = 0
HALF = torch.float16


def overflowing(tokenizer: Tokenizer, part: str) -> Tokenizer:
    """A copy, of weights that float16 can hold, whose activations in the autoencoder's `part` go
    beyond float16's 65,504."""
    tokenizer = copy.deepcopy(tokenizer)
    first = next(m for m in getattr(tokenizer.vae, part).modules() if isinstance(m, nn.Conv3d))
    first.weight.data *= 2.0**15 / float(first.weight.abs().max())
    return tokenizer.to(HALF).float()


def tokens_of(tokenizer: Tokenizer, clips: int = 1, frames: int = 33) -> Tokens:
    torch.manual_seed(SEED)
    return tokenizer.encode(torch.rand(clips, 3, frames, 32, 32) * 2 - 1)


def half(tokenizer: Tokenizer) -> Tokenizer:
    return copy.deepcopy(tokenizer).to(HALF)


def test_a_chunk_that_runs_over_is_decoded_once_more_in_float32(
    tiny_tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = tokens_of(tiny_tokenizer, clips=2)
    large = overflowing(tiny_tokenizer, "decoder")
    small = half(large)
    before = {k: v.clone() for k, v in small.state_dict().items()}
    with torch.inference_mode():
        broken = small.vae.decode(torch.randn(1, *small.config.latent_shape).half())
    assert not broken.isfinite().all(), "the test's own model"
    with caplog.at_level(logging.WARNING):
        video = small.decode(tokens, steps=2)
    assert torch.equal(video, large.decode(tokens, steps=2))
    assert "decoded chunk 1 of 2 holds NaN or infinity in float16: computing it once more" in (
        caplog.text
    )
    for name, weight in small.state_dict().items():
        assert weight.dtype == before[name].dtype
        assert torch.equal(weight, before[name])


def test_a_chunk_that_runs_over_is_encoded_once_more_in_float32(tiny_tokenizer: Tokenizer) -> None:
    large = overflowing(tiny_tokenizer, "encoder")
    assert torch.equal(tokens_of(half(large)).ids, tokens_of(large).ids)


def test_a_model_loaded_as_comfyui_does(tiny_tokenizer: Tokenizer) -> None:
    """All that its nodes do is inside inference mode: the weights are inference tensors."""
    tokens = tokens_of(tiny_tokenizer)
    large = overflowing(tiny_tokenizer, "decoder")
    with torch.inference_mode():
        small = half(large)
        video = small.decode(tokens, steps=1)
    assert torch.equal(video, large.decode(tokens, steps=1))
    assert small.dtype == HALF


def test_eight_bit_weights_stay_as_they_are(tiny_tokenizer: Tokenizer) -> None:
    tokens = tokens_of(tiny_tokenizer)
    large = overflowing(tiny_tokenizer, "decoder")
    store_in_eight_bits(large, "int8")
    assert torch.equal(half(large).decode(tokens, steps=1), large.decode(tokens, steps=1))


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_where_float32_does_not_help_one_line_says_what_to_choose(
    tiny_tokenizer: Tokenizer, dtype: torch.dtype
) -> None:
    tokens = tokens_of(tiny_tokenizer)
    broken = copy.deepcopy(tiny_tokenizer).to(dtype)
    next(broken.vae.decoder.parameters()).data[0] = torch.nan
    with pytest.raises(VftError, match="decoded chunk 1 of 2 holds NaN or infinity in") as e:
        broken.decode(tokens, steps=1)
    name = "float32" if dtype == torch.float32 else "float16 and in float32"
    assert f"in {name}: choose a lower guidance; if it stays, the model's file" in str(e.value)
    next(broken.encoder.parameters()).data[0] = torch.nan
    with pytest.raises(VftError, match="encoded chunk 1 holds NaN or infinity in"):
        tokens_of(broken)


def test_without_memory_for_float32_one_line_says_what_to_choose(
    tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tokens_of(tiny_tokenizer, clips=2)
    small = half(overflowing(tiny_tokenizer, "decoder"))
    decode = small.vae.decode

    def little(latents: torch.Tensor, at_once: int | None) -> torch.Tensor:
        if latents.dtype == torch.float32:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(latents, at_once)

    monkeypatch.setattr(small.vae, "decode", little)
    with pytest.raises(VftError, match="memory does not suffice for float32: choose bfloat16"):
        small.decode(tokens, steps=1)
    assert small.dtype == HALF


def test_weights_come_back_after_a_failure(tiny_tokenizer: Tokenizer) -> None:
    small = half(tiny_tokenizer)
    places = [p.data_ptr() for p in small.parameters()]
    with pytest.raises(KeyboardInterrupt), in_float32(small):
        assert small.dtype == torch.float32
        raise KeyboardInterrupt
    assert [p.data_ptr() for p in small.parameters()] == places
    assert small.dtype == HALF


def test_no_file_is_written(
    tiny_checkpoint: Path, tiny_tokenizer: Tokenizer, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tokens = tokens_of(tiny_tokenizer)
    tokens.save(tmp_path / "t.vft")
    weights = load_file(tiny_checkpoint)
    weights["vae.decoder.conv_in.conv.weight"][0] = torch.nan
    file, config = tmp_path / "m.safetensors", tiny_tokenizer.config
    save_tokenizer(file, config, weights, None, mark=tiny_tokenizer.fingerprint)
    args = [str(tmp_path / "t.vft"), "-o", str(tmp_path / "c.mp4"), "--tokenizer", str(file)]
    for more in ([], ["--resume"]):
        assert main(["decode", *args, "--steps", "1", "--device", "cpu", *more]) == 2
        (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("vft: error"))
        assert "decoded chunk 1 of 2 holds NaN or infinity in float32" in line
        assert {p.name for p in tmp_path.iterdir()} == {"t.vft", "m.safetensors"}
