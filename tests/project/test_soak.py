"""A short run of soak.py in a process of its own: many calls leave memory as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import sys
import torch
torch.set_num_threads(1)
from soak import soak
print("slope", soak(int(sys.argv[2]), sys.argv[1], None)[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_memory_stays_flat(tiny_checkpoint: Path) -> None:
    here = Path(__file__).resolve().parents[1]
    # Small blocks of memory come back in an order of their own; large ones are returned at once.
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]), "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536",
    }  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-c", RUN, str(tiny_checkpoint), "60"],
        capture_output=True, text=True, env=env, check=True,
    )  # fmt: skip
    slope = float(run.stdout.split()[-1])
    # One chunk of frames kept by each call would be 60 MB per 100 calls (17 x 3 x 32 x 32 x 4 B
    # is 0.2 MB; a clip of 49 frames 0.6 MB).
    assert slope < 8, run.stdout
