"""The video tests with each PyAV that the package allows, oldest and newest included: each bundles
an FFmpeg of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import av
import pytest

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "build" / "pyav"  # kept: over 100 MB each
INSTALL = "-m pip install --quiet --no-deps --only-binary :all: --retries 1 --timeout 20"
TESTS = "-m pytest -q -p no:cacheprovider tests/video -m"


def with_pyav(version: int, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python with that PyAV before the installed one."""
    path = os.pathsep.join(filter(None, [str(PLACE / str(version)), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | {"PYTHONPATH": path},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip


BETWEEN = pytest.mark.full  # by hand, half a minute each


@pytest.mark.slow
@pytest.mark.parametrize(
    "version", [12, pytest.param(14, marks=BETWEEN), pytest.param(16, marks=BETWEEN), 18]
)
def test_the_video_tests_pass_with_each_pyav(version: int) -> None:
    if av.__version__.startswith(f"{version}."):
        pytest.skip(f"PyAV {version} is the one installed")
    place = PLACE / str(version)
    if not (place / "av").is_dir():
        run = subprocess.run(
            [sys.executable, *INSTALL.split(), "--target", str(place), f"av=={version}.*"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if run.returncode:
            reason = (run.stderr.strip().splitlines() or ["pip says nothing"])[-1]
            pytest.skip(f"PyAV {version} cannot be installed here: {reason}")
    found = with_pyav(version, "-c", "import av; print(av.__version__)")
    assert found.stdout.startswith(f"{version}."), found
    run = with_pyav(version, *TESTS.split(), "not slow and not full")
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
