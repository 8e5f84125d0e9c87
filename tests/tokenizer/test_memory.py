"""Memory is bounded by the chunk, not by the clip: measured on whole processes."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest

ENCODE = """
import resource, sys, torch
torch.set_num_threads(1)
from vft_lib.cli.vft import main
code = main(["encode", sys.argv[1], "-o", sys.argv[2], "--tokenizer", sys.argv[3], "--fps", "30"])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
sys.exit(code)
"""


def write_1080p(path: Path, frames: int) -> Path:
    """A moving gradient; cheap to compress, 1920x1080 at 30 frames a second."""
    import av

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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_memory_does_not_grow_with_the_clip(tmp_path: Path, tiny_checkpoint: Path) -> None:
    short, long = (write_1080p(tmp_path / f"{n}.mp4", n) for n in (17, 300))
    a, b = peak_megabytes(short, tiny_checkpoint), peak_megabytes(long, tiny_checkpoint)
    assert b - a < 300, f"17 frames: {a} MB, 300 frames: {b} MB"


PARTS = """
import logging, resource, sys, torch
from vft_lib.tokenizer.parts import in_parts
logging.basicConfig(format="%(message)s", stream=sys.stdout)
def work(begin, end, tight):
    held = torch.empty((end - begin, 25_000_000 if tight else 50_000_000))  # 4 bytes each
    return torch.arange(begin, end) + 0 * held.size(0)
with open("/proc/self/statm") as f:
    pages = int(f.read().split()[0])
for megabytes in map(int, sys.argv[1:]):
    limit = pages * 4096 + megabytes * 10**6, resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_AS, limit)
    try:
        print(in_parts(work, 5, 4).tolist())
    except RuntimeError as e:
        print(type(e).__name__, "allocate memory" in str(e))
"""


LESS = {
    2000: [],
    700: ["with 4 clips at once: trying again with 2"],
    300: ["4 clips at once: trying again with 2", "2 clips at once: trying again"],
    150: ["with 2", "with 1", "trying again with less at once"],
}
"""By the megabytes there are: what is said."""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
def test_less_at_once_when_memory_runs_out() -> None:
    """200 MB a clip, 100 MB in the tight way, and a real limit. (Where a thread runs beside, glibc
    takes 64 MB of addresses for another arena when memory runs out.)"""
    run = subprocess.run(
        [sys.executable, "-c", PARTS, *map(str, LESS), "50"],
        capture_output=True, text=True, check=True, env=os.environ | {"MALLOC_ARENA_MAX": "1"},
    )  # fmt: skip
    log = iter(run.stdout.splitlines())
    for megabytes, said in LESS.items():
        told = list(takewhile(lambda line: line != "[0, 1, 2, 3, 4]", log))
        assert len(told) == len(said), (megabytes, told)
        assert all(a in b for a, b in zip(said, told)), (megabytes, told)
    assert list(log)[-1] == "RuntimeError True", "what came is raised"


LIMITED = """
import resource, sys
from vft_lib.cli import vft as cli
from vft_lib.clips import stream
real = stream.encode_file
def encode_file(*args, **options):
    with open("/proc/self/statm") as f:
        pages = int(f.read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + 20 * 10**6,) * 2)
    return real(*args, **options)
stream.encode_file = encode_file
sys.exit(cli.main(["encode", *sys.argv[1:]]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
def test_no_memory_is_one_line(tmp_path: Path) -> None:
    """The default model in 20 MB."""
    clip = write_1080p(tmp_path / "a.mp4", 17)
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(clip), "-o", str(tmp_path / "a.vft")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 2, run.stderr
    assert run.stderr.splitlines()[-1].startswith("vft: error: "), run.stderr
    assert "memory" in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "a.vft").exists()
