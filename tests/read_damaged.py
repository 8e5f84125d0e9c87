"""Damages files and reads them: `python read_damaged.py FOLDER SEED COUNT`, a line of JSON each.

A process of its own, so that a crash or a hang of a decoder is a failed test, not the suite's end.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

from vft_lib.errors import VftError
from vft_lib.video.video_in import probe, read_frames
from vft_lib.video.video_out import write_video

SOUNDS = (".mp4", ".mkv", ".ts")
MOST = 400  # frames that are read; one damaged timestamp may hold a picture for ten minutes


def damaged(whole: bytes, rng: np.random.Generator) -> bytearray:
    """Cut off, or with bytes changed: anywhere, in one stretch, in the header, in the last part."""
    data, kind = bytearray(whole), rng.integers(5)
    if kind == 0:
        return data[: rng.integers(1, len(data))]
    if kind == 1:
        at = rng.integers(len(data))
        stretch = len(data[at : at + rng.integers(1, 400)])
        data[at : at + stretch] = rng.bytes(stretch)
        return data
    first, last = {2: (0, len(data)), 3: (0, 600), 4: (len(data) - 1200, len(data))}[int(kind)]
    for at in rng.integers(max(0, first), min(last, len(data)), rng.integers(1, 12)):
        data[at] = rng.choice([0, 127, 128, 255, int(rng.integers(256))])
    return data


def outcome(path: Path) -> tuple[str, int, list[str]]:
    """What became of it ("frames" or the error's one line), how many frames, what was told."""
    told: list[str] = []
    count = 0
    try:
        probe(path)
        for frame in read_frames(path, max_frames=MOST, on_problem=told.append):
            assert frame.ndim == 3
            count += 1
        for frame in read_frames(path, fps=8, size=(32, 32), max_frames=MOST):
            assert frame.shape == (32, 32, 3)
        if path.suffix in SOUNDS:  # whatever its sound is, the video that gets it is written
            frames = [np.zeros((16, 16, 3), np.uint8)] * 8
            write_video(
                path.with_name("out.mp4"), frames, 8, audio_from=path, on_problem=told.append
            )
    except VftError as e:
        assert "\n" not in str(e) and "cannot be written" not in str(e)
        return str(e), count, told
    return "frames", count, told


def main(folder: str, seed: str, count: str) -> None:
    rng = np.random.default_rng(int(seed))
    for source in sorted(Path(folder).glob("whole.*")):
        whole, path = source.read_bytes(), source.with_stem("damaged")
        for i in range(int(count)):
            path.write_bytes(damaged(whole, rng))
            print(json.dumps({"file": path.name, "damage": i}), flush=True)  # if it ends here
            before = time.process_time()
            text, frames, told = outcome(path)
            line = {
                "file": path.name, "damage": i, "outcome": text, "frames": frames, "told": told,
                "seconds": time.process_time() - before,
                "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }  # fmt: skip
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
