"""The demo: one clip, encoded once, decoded at several budgets, shown side by side."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..clips.stream import Progress, decode_file, encode_file, picture_box, unfit
from ..errors import VftError
from ..files.atomic import check_place, write_bytes
from ..files.packaged import packaged
from ..tokenizer.sampling import Sampling
from ..tokenizer.tokenizer import Tokenizer
from ..tokens import Tokens
from ..video.frames import Report, fit_frame, to_tensor
from ..video.video_in import read_frames
from ..video.video_out import VideoWriter, write_png
from .metrics import Quality
from .sheets import GAP, PAPER, Grid, in_bytes, save_plot, text_tile

EXAMPLE = "example.mp4"  # comes with this program: four seconds that training never sees
STRIP_COLUMNS = 8


def example_clip(frames: int, size: int) -> npt.NDArray[np.uint8]:
    """The example that comes with this program: uint8 `[frames,size,size,3]`; longer than it lasts,
    it plays backwards and forwards."""
    shown = list(read_frames(packaged(EXAMPLE), size=(size, size), max_frames=frames))
    turn = 2 * (len(shown) - 1)
    order = np.arange(frames) % turn if turn else np.zeros(frames, int)
    return np.stack(shown)[np.minimum(order, turn - order)]


def run_demo(
    tokenizer: Tokenizer, clip: Path | None, budgets: Sequence[int] | None, out: Path,
    sampling: Sampling | None = None, *, fps: float | None = None, fit: str = "crop",
    audio: bool = True, progress: Callable[[str], Progress] | None = None,
    on_problem: Report | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Writes into the folder `out` (made if it is missing): `tokens.vft`, an mp4 for each budget
    (`k01.mp4` ...), `side_by_side.mp4`, `strip.png` (budgets x frames), `rate_quality.png` and
    `table.json`. Memory is bounded by the chunk.

    `clip` None takes the example that comes with this program; `budgets` None takes the powers
    of two up to K. `progress(label)` gives a progress callback for each long step. Returns one row
    for each budget: `budget`, `tokens`, `bytes` (of ids), `psnr` (dB) and `ssim` against the clip
    as the model saw it, without bars, and `seconds` of decoding. Raises VftError.
    """
    c, sampling = tokenizer.config, sampling or Sampling()
    budgets = sorted(set(budgets or c.budgets))
    for k in budgets:
        tokenizer.check_budget(k)
    files = {k: out / f"k{k:0{max(2, len(str(c.registers)))}}.mp4" for k in budgets}
    both = out / "side_by_side.mp4"
    if clip is not None and clip.resolve() in [f.resolve() for f in (*files.values(), both)]:
        raise VftError(f"{clip} would be overwritten by the demo; choose another --out folder")
    out.mkdir(parents=True, exist_ok=True)
    check_place(both)
    clip = packaged(EXAMPLE) if clip is None else clip
    bar = progress or (lambda label: lambda done, total: None)
    tokens = encode_file(
        tokenizer, clip, fps=fps, fit=fit, progress=bar("encode"), on_problem=on_problem
    )
    tokens.save(out / "tokens.vft")
    rows: list[dict[str, Any]] = []
    for k, file in files.items():
        quality, begun = _Against(clip, tokens), perf_counter()
        with closing(quality.frames):
            decode_file(
                tokenizer, tokens.truncate(k), file, sampling,
                audio_from=clip if audio else None, progress=bar(f"decode k={k}"),
                on_problem=on_problem, on_chunk=quality,
            )  # fmt: skip
        count = tokens.ids.shape[1] * k
        rows.append({
            "budget": k, "tokens": count, "bytes": 2 * count, "psnr": round(quality.mean.psnr, 3),
            "ssim": round(quality.mean.ssim, 4),
            "seconds": round(perf_counter() - begun - quality.seconds, 2),
        })  # fmt: skip
    labels = ["source"] + [
        f"k={r['budget']} · {r['tokens']} tokens · {in_bytes(r['bytes'])}" for r in rows
    ]
    picked = _side_by_side(
        clip, tokens, list(files.values()), labels, both, audio, bar("side by side"), on_problem
    )
    write_png(out / "strip.png", _strip(picked, labels, tokens.fps))
    save_plot(rows, out / "rate_quality.png")
    facts = {
        "clip": str(clip), "tokenizer": c.name, "fingerprint": tokenizer.fingerprint,
        "frames": tokens.frames, "fps": tokens.fps, "size": tokens.size, "fit": fit,
        "seed": sampling.seed, "rows": rows,
    }  # fmt: skip
    write_bytes(out / "table.json", json.dumps(facts, indent=1).encode())
    return rows


def _source(clip: Path, tokens: Tokens) -> Generator[np.ndarray, None, None]:
    """The clip's frames as the encoder saw them."""
    return read_frames(
        clip, fps=tokens.fps, size=tokens.size, fit=tokens.fit, max_frames=tokens.frames
    )


class _Against:
    """Compares decoded chunks, as they come, with a second reading of the clip; bars left out."""

    def __init__(self, clip: Path, tokens: Tokens) -> None:
        self.frames, self.box = _source(clip, tokens), picture_box(tokens)
        self.mean, self.seconds = Quality(), 0.0

    def __call__(self, chunk: Tensor) -> None:
        begun = perf_counter()
        top, left, bottom, right = self.box
        real = to_tensor(itertools.islice(self.frames, chunk.shape[1]))
        self.mean.update(*(v[:, :, top:bottom, left:right] for v in (chunk, real)))
        self.seconds += perf_counter() - begun


def _side_by_side(
    clip: Path, tokens: Tokens, videos: list[Path], labels: list[str], out: Path,
    audio: bool, progress: Progress, on_problem: Report | None,
) -> dict[int, list[np.ndarray]]:  # fmt: skip
    """Write the video of all tiles; returns the frames for the strip: index -> one a row."""
    show = unfit(tokens)
    h, w = show(np.zeros((*tokens.size, 3), np.uint8)).shape[:2]
    grid = Grid(labels, (h, w))
    wanted = np.linspace(0, tokens.frames - 1, min(STRIP_COLUMNS, tokens.frames)).round()
    picked: dict[int, list[np.ndarray]] = {int(i): [] for i in wanted}
    with ExitStack() as stack:
        readers = [stack.enter_context(closing(read_frames(v))) for v in videos]
        real = map(show, stack.enter_context(closing(_source(clip, tokens))))
        sound = clip if audio else None
        writer = VideoWriter(out, tokens.fps, audio_from=sound, on_problem=on_problem)
        stack.enter_context(writer)
        for i, frames in enumerate(zip(real, *readers, strict=True)):
            tiles = [frame[:h, :w] for frame in frames]  # odd sides have grown by one in the mp4
            if i in picked:
                picked[i] = tiles
            writer.write(grid.frame(tiles))
            progress(i + 1, tokens.frames)
    return picked


def _strip(picked: dict[int, list[np.ndarray]], labels: list[str], fps: float) -> np.ndarray:
    """uint8 `[H,W,3]`: a row for the source and each budget, a column for each picked frame."""
    h, w = next(iter(picked.values()))[0].shape[:2]
    scale = max(1, round(128 / max(h, w)))
    th, tw, head, side = h * scale, w * scale, 22, 190
    height = head + len(labels) * (th + GAP) - GAP
    sheet = np.full((height, side + len(picked) * (tw + GAP) - GAP, 3), PAPER, np.uint8)
    for row, label in enumerate(labels):
        y = head + row * (th + GAP)
        sheet[y : y + th, :side] = text_tile(label, (th, side))
        for column, (index, tiles) in enumerate(picked.items()):
            x = side + column * (tw + GAP)
            sheet[:head, x : x + tw] = text_tile(f"{index / fps:.2f} s", (head, tw))
            sheet[y : y + th, x : x + tw] = fit_frame(tiles[row], (th, tw), "stretch")
    return sheet
