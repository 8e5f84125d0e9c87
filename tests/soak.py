"""Many calls in one process, and what they do to its memory: `python tests/soak.py --calls 500`.

Encode, truncate, decode and generate take turns, with clips of several lengths, at every budget.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from vft_lib import load_prior, load_tokenizer
from vft_lib.clips.stream import decode_file, encode_file
from vft_lib.tokens import Tokens
from vft_lib.video.frames import to_tensor
from vft_lib.video.video_out import write_video
from vft_lib.world import world


def resident() -> float:
    """Megabytes of memory that this process holds."""
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096 / 1e6


def calls(name: str, prior_name: str | None, folder: Path) -> Iterator[Callable[[], object]]:
    """Endless calls, as in a session: files and tensors, short and long clips."""
    tok, rng = load_tokenizer(name, device="cpu"), random.Random(0)
    prior = None if prior_name is None else load_prior(prior_name, device="cpu")
    size, clip, file = tok.config.size, folder / "clip.mp4", folder / "t.vft"
    drawn = world.make_clip(42, frames=49, size=size).video
    write_video(clip, drawn, 8)
    video = to_tensor(drawn)
    tokens = tok.encode(video)
    tokens.save(file)
    words = ("a red ball bounces to the right", "a blue square spins", "snow")
    for i in itertools.count():
        k, frames = rng.randint(1, tok.config.registers), rng.choice((1, 17, 33, 49))
        every: list[Callable[[], object]] = [
            lambda f=frames, k=k: tok.encode(video[:, :f], budget=k),  # type: ignore[misc]
            lambda: encode_file(tok, clip).save(file),
            lambda k=k: Tokens.load(file).truncate(k).save(folder / "u.vft"),  # type: ignore[misc]
            lambda k=k, i=i: tok.decode(tokens.truncate(k), steps=2, seed=i),  # type: ignore[misc]
            lambda k=k, i=i: decode_file(  # type: ignore[misc]
                tok, tokens.truncate(k), folder / "c.mp4", steps=1, guidance=2.0, seed=i
            ),
        ]
        if prior is not None:
            every.append(partial(prior.generate, words[i % 3], budget=min(k, 6), seed=i))
        yield every[i % len(every)]


def soak(count: int, name: str = "default", prior: str | None = "default") -> tuple[float, float]:
    """Runs that many calls. Prints memory as it goes; returns (megabytes after the first third,
    megabytes per 100 calls from there on, by least squares)."""
    seen: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for i, call in enumerate(itertools.islice(calls(name, prior, Path(folder)), count)):
            call()
            gc.collect()
            seen.append(resident())
            if (i + 1) % max(1, count // 10) == 0:
                print(f"call {i + 1:5}  {seen[-1]:8.1f} MB", flush=True)
    warm = count // 3
    slope = float(np.polyfit(np.arange(count - warm), seen[warm:], 1)[0]) * 100
    print(
        f"{count} calls: {seen[warm]:.1f} MB after {warm}, {seen[-1]:.1f} MB at the end, "
        f"at most {max(seen):.1f} MB; {slope:+.2f} MB per 100 calls after call {warm}"
    )
    return seen[warm], slope


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=500)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    _, slope = soak(args.calls)
    return 0 if slope < 2 else 1


if __name__ == "__main__":
    sys.exit(main())
