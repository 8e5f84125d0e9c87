"""The options of the command line for speed and memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vft_lib.cli.vft import main
from vft_lib.models.loading import load_tokenizer
from vft_lib.tokenizer.sampling import Sampling
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.tokens import Tokens


def test_speed_and_memory_options(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the options ask for is what the decoder runs with."""
    seen: dict[str, Any] = {}
    plain = Tokenizer.decode_chunks

    def watched(
        self: Tokenizer, tokens: Tokens, sampling: Sampling, **options: Any
    ) -> Iterator[Tensor]:
        kinds = {type(m).__name__ for m in self.decoder.trunk.modules()}
        seen.update(
            vars(sampling), at_once=self.frames_at_once, kinds=kinds, compiled=self.compiled
        )
        self.compiled = None  # compiling takes longer than this test
        return plain(self, tokens, sampling, **options)

    monkeypatch.setattr(Tokenizer, "decode_chunks", watched)
    tokens = tmp_path / "t.vft"
    load_tokenizer(tiny_checkpoint, device="cpu").encode(torch.zeros(1, 3, 17, 32, 32)).save(tokens)
    model = ["--tokenizer", str(tiny_checkpoint), "--device", "cpu"]
    out = ["decode", str(tokens), "-o", str(tmp_path / "o.mp4"), *model]
    assert main([*out, "--steps", "2"]) == 0
    assert (seen["at_once"], seen["method"], seen["shift"], seen["compiled"]) == (
        None, "euler", 1.0, None,
    )  # fmt: skip
    assert "EightBitLinear" not in seen["kinds"]
    more = ["--memory", "0.0001", "--weights", "int8", "--method", "heun", "--shift", "3"]
    assert main([*out, "--steps", "2", *more, "--compile"]) == 0
    assert (seen["at_once"], seen["method"], seen["shift"]) == (1, "heun", 3.0)
    assert "EightBitLinear" in seen["kinds"]
    assert seen["compiled"] is not None


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--memory", "0"], "--memory 0: give gigabytes, more than 0"),
        (["--weights", "int4"], "weights in 'int4'; choose int8, fp8"),
        (["--attention", "magic"], "no attention backend 'magic'; choose auto, sdpa"),
        (["--attention", "xformers"], "attention backend 'xformers' cannot run here"),
        (["--method", "rk4"], "method is 'rk4'; choose euler, heun, midpoint"),
        (["--shift", "-1"], "shift is -1.0; choose more than 0"),
    ],
)
def test_speed_and_memory_options_that_make_no_sense(
    tiny_checkpoint: Path, tmp_path: Path, option: list[str], words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tokens = tmp_path / "t.vft"
    load_tokenizer(tiny_checkpoint, device="cpu").encode(torch.zeros(1, 3, 17, 32, 32)).save(tokens)
    model = ["--tokenizer", str(tiny_checkpoint), "--device", "cpu"]
    assert main(["decode", str(tokens), "-o", str(tmp_path / "o.mp4"), *model, *option]) == 2
    assert words in capsys.readouterr().err
