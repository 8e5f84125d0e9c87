"""The options of the command line for speed and memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vft_lib.cli.vft import main
from vft_lib.models.loading import load_tokenizer, usual_dtype
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
            vars(sampling.settled(self.config.sampling)),
            at_once=self.frames_at_once,
            kinds=kinds,
            compiled=self.compiled,
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


@pytest.mark.parametrize("kind", ["mps", "xpu", "cuda"])
def test_a_device_that_is_not_here_is_one_line(
    kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (torch.backends.mps, torch.xpu, torch.cuda):
        monkeypatch.setattr(module, "is_available", lambda: False)
    assert main(["info", "--device", kind]) == 2
    said = capsys.readouterr().err
    assert said == (
        f"vft: error: this machine has no {kind.upper()} device that torch can use; give "
        "--device cpu\n"
    )
    for unknown in ("gpu", "meta", f"{kind}:x"):
        assert main(["info", "--device", unknown]) == 2
        assert f"--device {unknown} is unknown; give cpu, cuda, mps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "capability", "hip", "dtype"),
    [
        ("cpu", (0, 0), None, torch.float32), ("mps", (0, 0), None, torch.float32),
        ("xpu", (0, 0), None, torch.float32), ("cuda", (7, 5), None, torch.float16),
        ("cuda", (8, 0), None, torch.bfloat16), ("cuda", (9, 0), "6.4", torch.bfloat16),
    ],
)  # fmt: skip
def test_the_number_format_that_a_device_multiplies_in(
    kind: str, capability: tuple[int, int], hip: str | None, dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The table of docs/models.md; a card before Ampere emulates bfloat16, slowly."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert usual_dtype(torch.device(kind)) == dtype
