"""Memory is bounded by the chunk, not by the clip: measured on whole processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

ENCODE = """
import resource, sys, torch
torch.set_num_threads(1)
from vft_lib.cli import main
code = main(["encode", sys.argv[1], "-o", sys.argv[2], "--tokenizer", sys.argv[3], "--fps", "30"])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
sys.exit(code)
"""


def write_1080p(path: Path, frames: int) -> Path:
    """A moving gradient; cheap to compress, 1920x1080 at 30 frames a second."""
    ramp = np.linspace(0, 255, 1920, dtype=np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        for i in range(frames):
            row = np.roll(ramp, 8 * i)
            picture = np.broadcast_to(row[None, :, None], (1080, 1920, 3))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def peak_megabytes(clip: Path, tokenizer: Path) -> int:
    run = subprocess.run(
        [sys.executable, "-c", ENCODE, str(clip), str(clip.with_suffix(".vft")), str(tokenizer)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(run.stdout.splitlines()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_memory_does_not_grow_with_the_clip(tmp_path: Path, tiny_checkpoint: Path) -> None:
    short, long = (write_1080p(tmp_path / f"{n}.mp4", n) for n in (17, 300))
    a, b = peak_megabytes(short, tiny_checkpoint), peak_megabytes(long, tiny_checkpoint)
    assert b - a < 300, f"17 frames: {a} MB, 300 frames: {b} MB"
