"""Clips as files, with memory bounded by the chunk: file -> tokens and tokens -> file.

encode: video_in.read_frames -> Tokenizer.encode_chunks
decode: Tokenizer.decode_chunks -> the real picture without bars -> video_out.VideoWriter
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config.tokenizer import check_fps
from ..errors import VftError
from ..files.atomic import check_space
from ..files.tensor_files import digest
from ..token_file import MAX_SIDE
from ..tokenizer.parts import Estimate
from ..tokenizer.sampling import Sampling
from ..tokenizer.tokenizer import Tokenizer
from ..tokens import Tokens
from ..video.frames import PathLike, Report, fit_frame, to_frames, to_tensor, unfit_box
from ..video.video_in import probe, read_frames, read_image
from ..video.video_out import VideoWriter
from .resume import Chunks, chunks_beside

Progress = Callable[[int, int | None], None]
"""(done, total); a total that is not known is None, one that is estimated may change."""

COMPRESSED = 20  # a decoded clip's pixels take about this many times what its mp4 does
WIDEST = 16.0  # aspect that a stretched clip is brought back to at most; more is a damaged file


def read_video(
    path: PathLike, *, size: int, fps: float | None = None, fit: str = "crop",
    max_frames: int | None = None,
) -> Tensor:  # fmt: skip
    """A whole clip as float32 `[1,3,T,size,size]` in [-1,1]; `encode_file` is for long ones.

    `fps` None takes every frame, else the clip is sampled at that rate; `fit` is "crop", "pad" or
    "stretch". Raises VideoError if it cannot be read.
    """
    frames = read_frames(path, fps=fps, size=(size, size), fit=fit, max_frames=max_frames)
    return to_tensor(frames)[None]


def encode_file(
    tokenizer: Tokenizer, path: PathLike, *, budget: int | None = None, fps: float | None = None,
    fit: str = "crop", progress: Progress | None = None, on_problem: Report | None = None,
) -> Tokens:  # fmt: skip
    """A video, animated image or still -> Tokens with ids `[1,t,k]`, one chunk in memory at a time.

    `budget` k defaults to all registers, `fps` to the tokenizer's own rate; `fit` as in
    `frames.fit_frame`. `progress(done, total)` counts chunks, its total is an estimate until the
    end. `on_problem(message)` is told of damage that was skipped. The same ids as
    `tokenizer.encode(read_video(...))`. Raises VftError for a bad budget, VideoError for a clip
    that cannot be read.
    """
    c = tokenizer.config
    fps = c.fps if fps is None else float(fps)
    check_fps(fps)
    source = read_frames(path, fps=fps, size=(c.size, c.size), fit=fit, on_problem=on_problem)
    info, total = probe(path), None
    if info.duration or info.frames == 1:
        total = max(1, round((info.duration or 0) * fps))
    with closing(source):
        tokens = encode_frames(
            tokenizer, source, budget=budget, fps=fps, fit=fit, total=total, progress=progress
        )
    shrink = max(1.0, info.height / MAX_SIDE, info.width / MAX_SIDE)
    size = max(1, int(info.height / shrink)), max(1, int(info.width / shrink))
    return dataclasses.replace(tokens, source_size=size, source=Path(path).name)


def encode_frames(
    tokenizer: Tokenizer, frames: Iterable[np.ndarray], *, budget: int | None = None,
    fps: float | None = None, fit: str = "crop", total: int | None = None,
    progress: Progress | None = None,
) -> Tokens:  # fmt: skip
    """Frames, uint8 `[H,W,3]` of any one size -> Tokens with ids `[1,t,k]`, one chunk in memory.
    Every frame is encoded; `fps` says how fast they play. `total`: how many frames will come,
    for `progress(done, total)`, which counts chunks. `fit` as in `frames.fit_frame`."""
    c = tokenizer.config
    fps = c.fps if fps is None else float(fps)
    check_fps(fps)
    read, first = 0, (c.size, c.size)

    def fitted() -> Iterator[Tensor]:
        nonlocal read, first
        for frame in frames:
            first = first if read else (frame.shape[0], frame.shape[1])
            read += 1
            yield _still(fit_frame(frame, (c.size, c.size), fit))

    chunks = None if total is None else tokenizer.chunk_count(total)
    ids: list[Tensor] = []
    for chunk in tokenizer.encode_chunks(fitted(), budget=budget):
        ids.append(chunk)
        if progress is not None:
            progress(len(ids), chunks and max(chunks, len(ids)))
    if progress is not None:
        progress(len(ids), len(ids))
    return Tokens(
        ids=torch.cat(ids, dim=1), tokenizer=c.name, fingerprint=tokenizer.fingerprint,
        frames=read, fps=fps, size=(c.size, c.size), source_size=first,
        fit=fit,
    )  # fmt: skip


def decode_file(
    tokenizer: Tokenizer, tokens: Tokens, out: PathLike, sampling: Sampling | None = None, *,
    first_frame: PathLike | None = None, audio_from: PathLike | None = None,
    keep_bars: bool = False, resume: bool | None = None, progress: Progress | None = None,
    on_problem: Report | None = None, on_chunk: Callable[[Tensor], None] | None = None,
    **fields: Any,
) -> int:  # fmt: skip
    """Tokens of one clip -> an mp4 at `tokens.fps`, one chunk in memory; returns its frame count.

    How it samples may be given field by field, as to `Tokenizer.decode`. `first_frame`: an image
    that pins the beginning, fitted like the clip was. `audio_from`: a file whose sound is
    carried over. A clip that was padded comes back without its bars unless `keep_bars`; one that
    was stretched comes back in its own aspect at the model's height. `progress(done, total)`
    counts sampling steps; `on_chunk` gets every decoded chunk as float32 `[3,T,H,W]` in [-1,1],
    bars included. The file appears when it is complete. `resume` not None keeps finished chunks in
    `OUT.chunks` until then; True goes on with those of an earlier call of the same model, tokens
    and settings, to the frames that it would have made (`on_chunk` does not get them again); False
    begins anew. Raises VftError for tokens of another tokenizer or more than one clip, or an output
    that cannot be written, for want of space too.
    """
    tokenizer.check_tokens(tokens)
    given = None
    if first_frame is not None:
        given = read_image(first_frame, tokens.size, tokens.fit)
    out, say = Path(out), on_problem or (lambda message: None)
    sampling = Sampling.of(sampling, fields)
    writer = VideoWriter(out, tokens.fps, audio_from=audio_from, on_problem=on_problem)
    raw = 3 * tokens.frames * tokens.size[0] * tokens.size[1]
    with ExitStack() as stack:
        chunks = None
        if resume is not None and tokenizer.chunk_count(tokens.frames) > 1:
            facts = _facts(tokenizer, tokens, given) | {"asked": sampling}
            if sampling.quality == "draft" and tokenizer.preview is not None:
                facts["preview"] = digest("", tokenizer.preview.state_dict())
            chunks = stack.enter_context(chunks_beside(out, facts, resume, say))
            raw += raw // COMPRESSED - chunks.size
        else:
            raw //= COMPRESSED
        check_space(out.parent, raw, f"decoding to {out}")
        frames = decode_frames(
            tokenizer, tokens, sampling, first_frame=given, keep_bars=keep_bars, progress=progress,
            on_chunk=on_chunk, chunks=chunks,
        )  # fmt: skip
        stack.enter_context(writer)
        for frame in frames:
            writer.write(frame)
    return writer.frames


def _facts(tokenizer: Tokenizer, tokens: Tokens, given: np.ndarray | None) -> dict[str, Any]:
    """All that the frames of a decode follow from, but for the sampling that is asked for."""
    return {
        "tokenizer": tokenizer.decoder_mark, "sampling": tokenizer.config.sampling,
        "dtype": tokenizer.dtype, "device": tokenizer.device.type, "torch": torch.__version__,
        "weights": sorted({str(w.dtype) for w in tokenizer.decoder.state_dict().values()}),
        "attention": tokenizer.decoder.trunk.backend, "at_once": tokenizer.frames_at_once,
        "compiled": tokenizer.compiled is not None,
        "ids": [tokens.ids.shape, sha256(tokens.ids.numpy().tobytes()).hexdigest()],
        "frames": tokens.frames, "fit": tokens.fit,
        "given": None if given is None else sha256(given.tobytes()).hexdigest(),
    }  # fmt: skip


def decode_frames(
    tokenizer: Tokenizer, tokens: Tokens, sampling: Sampling | None = None, *,
    first_frame: np.ndarray | None = None, keep_bars: bool = False, low_memory: bool = False,
    progress: Callable[[int, int], None] | None = None,
    estimate: Estimate | None = None, on_chunk: Callable[[Tensor], None] | None = None,
    chunks: Chunks | None = None,
) -> Iterator[np.ndarray]:  # fmt: skip
    """Tokens of one clip -> its frames, uint8 `[H,W,3]`, one chunk in memory. `first_frame`: uint8
    `[H,W,3]` of any size; `low_memory` and `estimate` as in `Tokenizer.decode_chunks`; `chunks` are
    gone on with, and added to; the rest and the errors as in :func:`decode_file`."""
    if len(tokens) != 1:
        raise VftError(f"a video holds one clip, got {len(tokens)}; decode each by itself")
    tokenizer.check_tokens(tokens)
    given = None
    if first_frame is not None:
        given = _still(fit_frame(first_frame, tokens.size, tokens.fit))
    show, resume = unfit(tokens, keep_bars), None
    for i, (frames, last) in enumerate(chunks or ()):
        yield from map(show, frames)
        resume = i + 1, last
    for chunk in tokenizer.decode_chunks(
        tokens, sampling, first_frame=given, clamp=False, low_memory=low_memory,
        progress=progress, estimate=estimate, resume=resume,
    ):  # fmt: skip
        if on_chunk is not None:
            on_chunk(chunk[0].clamp(-1, 1))
        fresh = list(to_frames(chunk[0]))
        if chunks is not None:
            chunks.add(np.stack(fresh), chunk[:, :, -1])
        yield from map(show, fresh)


def unfit(tokens: Tokens, keep_bars: bool = False) -> Callable[[np.ndarray], np.ndarray]:
    """What turns a frame of the model's size, uint8 `[h,w,3]`, back into the clip's aspect."""
    top, left, bottom, right = picture_box(tokens)
    h = tokens.size[0]
    if tokens.fit == "pad" and not keep_bars:
        return lambda frame: frame[top:bottom, left:right]
    if tokens.fit == "stretch" and tokens.source_size is not None:
        aspect = tokens.source_size[1] / tokens.source_size[0]
        width = round(h * min(max(aspect, 1 / WIDEST), WIDEST))
        return lambda frame: fit_frame(frame, (h, width), "stretch")
    return lambda frame: frame


def picture_box(tokens: Tokens) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of the real picture inside the model's, without bars."""
    return unfit_box(tokens.source_size or tokens.size, tokens.size, tokens.fit)


def _still(frame: np.ndarray) -> Tensor:
    return to_tensor([frame]).transpose(0, 1)  # (1, 3, H, W)
