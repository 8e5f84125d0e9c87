"""`python tests/still_and_busy.py [CLIP...]`: even and adaptive budgets at equal bytes.

Each clip is a picture held for as long as the busy half that follows it: a procedural scene that
training never draws (`--scenes`), or a file. Printed for each budget: feature distance to the
original (EfficientNet-Lite2, as in the model cards) of both halves and of the whole, means over
clips, and in how many of them the adaptive budget is closer.

`--mixed N` instead decodes N scenes of one chunk at one budget and at mixed ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vft_lib import load_prior, load_tokenizer
from vft_lib.clips.adaptive import truncate_adaptive
from vft_lib.clips.stream import read_video
from vft_lib.evaluation.curves import FRAME_STEP
from vft_lib.evaluation.learned import FeatureNetwork, feature_distance
from vft_lib.footage.footage import to_video
from vft_lib.measure.metrics import psnr
from vft_lib.world import world

SCENES = 1000  # seeds from here on: held out
HALF = 65  # frames of a procedural half


def halves(still: Tensor, busy: Tensor) -> Tensor:
    """A picture `[3,h,w]`, held, and the clip `[3,T,h,w]` after it."""
    return torch.cat([still[:, None].expand(-1, busy.shape[1], -1, -1), busy], 1)


def scene(i: int, size: int) -> Tensor:
    still, busy = (
        to_video([world.draw_scene(seed).render(frames, size)])[0]
        for seed, frames in ((5 * SCENES + i, 1), (SCENES + i, HALF))
    )
    return halves(still[:, 0], busy)


MIXED = ([4] * 5, [8] * 5, [12] * 5, [9, 8, 8, 8, 7], [16, 6, 6, 6, 6], [4, 9, 9, 9, 9],
         [4, 12, 4, 12, 8], [12, 4, 12, 4, 8])  # fmt: skip


def mixed(count: int) -> None:
    """What one chunk becomes at budgets that differ from latent frame to latent frame."""
    tokenizer, network = load_tokenizer("default"), FeatureNetwork(torch.device("cpu"))
    c = tokenizer.config
    found: list[list[tuple[float, float]]] = [[] for _ in MIXED]
    for i in range(count):
        video = to_video([world.draw_scene(SCENES + i).render(c.chunk_frames, c.size)])[0]
        tokens, own = tokenizer.encode(video), network(video[:, ::FRAME_STEP])
        for rows, each in zip(MIXED, found):
            made = tokenizer.decode(tokens.truncate(rows), seed=i)[0]
            apart = feature_distance(own, network(made[:, ::FRAME_STEP]))
            each.append((apart, psnr(video, made)))
    for rows, each in zip(MIXED, found):
        apart, level = np.mean(each, 0)
        print(f"{rows!s:20}{sum(rows):4} tokens  {apart:.4f}  {level:.2f} dB")


def compare(files: list[Path], scenes: int, budgets: list[int]) -> None:
    """The table of the module's docstring."""
    tokenizer, prior = load_tokenizer("default"), load_prior("default")
    c, network = tokenizer.config, FeatureNetwork(torch.device("cpu"))
    clips = [scene(i, c.size) for i in range(scenes)]
    for file in files:
        video = read_video(file, size=c.size, fps=c.fps)[0]
        clips.append(halves(video[:, 0], video))
    found: dict[tuple[int, str], list[list[float]]] = {}
    for i, video in enumerate(clips):
        tokens = tokenizer.encode(video)
        half = video.shape[1] // 2
        own = [network(v[:, ::FRAME_STEP]) for v in (video[:, :half], video[:, half:])]
        for k in budgets:
            count = k * len(tokens.rows)
            ways = {
                "even": tokens.truncate(k),
                "adaptive": truncate_adaptive(prior, tokens, count=count),
            }
            for name, cut in ways.items():
                made = tokenizer.decode(cut, seed=i)[0]
                parts = (made[:, :half], made[:, half:])
                each = [
                    feature_distance(a, network(v[:, ::FRAME_STEP])) for a, v in zip(own, parts)
                ]
                row = [cut.id_bytes, float(np.mean(cut.rows[: len(cut.rows) // 2])), *each]
                found.setdefault((k, name), []).append([*row, (each[0] + each[1]) / 2])
        print(f"{i + 1} of {len(clips)}", flush=True)
    print(
        f"{'budget':26}{'bytes':>7}{'k still':>9}{'still':>8}{'busy':>8}{'whole':>8}{'closer':>8}"
    )
    for (k, name), rows in found.items():
        size, held, *means = np.mean(rows, 0)
        even = found[k, "even"]
        wins = sum(row[-1] < other[-1] for row, other in zip(rows, even))
        line = "".join(f"{m:8.4f}" for m in means)
        print(f"{f'{k}, {name}':26}{size:7.0f}{held:9.1f}{line}{wins:5} of {len(rows)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="CLIP")
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--budgets", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--mixed", type=int, metavar="N")
    args = parser.parse_args()
    if args.mixed:
        mixed(args.mixed)
    else:
        compare(args.files, args.scenes, args.budgets)


if __name__ == "__main__":
    main()
