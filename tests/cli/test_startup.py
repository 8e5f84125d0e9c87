"""What answers at once does so without torch, which alone takes two seconds to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vft_lib

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import sys
from vft_lib.cli.vft import main
code = 0
try:
    code = main(sys.argv[1:])
except SystemExit as e:
    code = e.code
late = {"torch", "av", "matplotlib", "huggingface_hub"} & set(sys.modules)
assert not late, late
sys.exit(code)
"""


def vft(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN, *args], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("args", [("--help",), ("train", "--help"), ("decode", "--help")])
def test_help_needs_no_torch(args: tuple[str, ...]) -> None:
    run = vft(*args)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("usage: vft")


def test_info_of_tokens_needs_no_torch(tmp_path: Path) -> None:
    file = tmp_path / "clip.vft"
    vft_lib.Tokens(
        ids=torch.arange(20).view(1, 5, 4), tokenizer="some", fingerprint="0123", frames=17,
        fps=8.0, size=(32, 32), source_size=(48, 64), source="clip.mp4",
    ).save(file)  # fmt: skip
    run = vft("info", str(file))
    assert run.returncode == 0, run.stderr
    lines = dict(line.split(maxsplit=1) for line in run.stdout.splitlines())
    assert (lines["grid"], lines["ids"], lines["fps"]) == ("5 x 4", "20", "8.0")
    damaged = tmp_path / "damaged.vft"
    damaged.write_bytes(file.read_bytes()[:-1])
    run = vft("info", str(damaged))
    assert (run.returncode, len(run.stderr.splitlines())) == (2, 1), run.stderr


def test_every_name_of_the_library_is_there() -> None:
    assert set(dir(vft_lib)) == set(vft_lib.__all__)
    for name in vft_lib.__all__:
        assert getattr(vft_lib, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        vft_lib.Nothing  # noqa: B018
