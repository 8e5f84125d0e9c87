"""Cutting and joining tokens in time. Nothing is encoded again, so cuts are where chunks begin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import VftError
from ..tokenizer.tokenizer import Tokenizer
from ..tokens import Tokens


def slice_tokens(
    tokenizer: Tokenizer, tokens: Tokens, first: int, count: int | None = None
) -> Tokens:
    """The tokens of `count` chunks from chunk `first` (0: the beginning) on; None: all that
    follow. Chunks begin every `config.stride / fps` seconds. Those that share a frame hold its ids
    once, in the chunk before; that latent frame stands in for the first of the new beginning.

    `source` is kept from the beginning on alone, as its sound begins there. Raises VftError for a
    chunk that is not there.
    """
    tokenizer.check_tokens(tokens)
    first, count = int(first), None if count is None else int(count)
    c = tokenizer.config
    chunks = tokenizer.chunk_count(tokens.frames)
    last = (chunks if count is None else first + count) - 1
    if not 0 <= first < chunks or not first <= last < chunks:
        asked = f"{first} on" if count is None else f"{first} to {last}"
        raise VftError(
            f"chunks {asked} are asked for; these tokens hold chunks 0 to {chunks - 1}, "
            f"{c.stride / tokens.fps:.3g} s each"
        )
    count = last - first + 1
    new = c.token_frames - c.overlap
    start = first * new
    kept = slice(start, start + c.token_frames + (count - 1) * new)
    left = tokens.frames - first * c.stride
    frames = min(left, c.chunk_frames + (count - 1) * c.stride)
    source = tokens.source if first == 0 else None
    return tokens.with_ids(tokens.ids[:, kept], tokens.rows[kept], frames=frames, source=source)


def join_tokens(
    tokenizer: Tokenizer, clips: Sequence[Tokens], *, drop_partial: bool = False
) -> Tokens:
    """Tokens of clips one after the other, each at its own budget. Where chunks share a frame the
    last frame of a clip takes the place of the next one's first.

    Clips whose pictures fill the model's square in different ways (`fit`, their aspects) keep all
    of it: bars stay, and nothing is unstretched. A clip whose last chunk is not full holds its last
    frame until the chunk ends, or loses that chunk with `drop_partial`. Raises VftError for clips
    of different tokenizers, frame rates or batch sizes.
    """
    if not clips:
        raise VftError("got no clips to join; give one or more")
    c, most = tokenizer.config, max(t.budget for t in clips)
    for clip in clips:
        tokenizer.check_tokens(clip)
        if clip.fps != clips[0].fps or len(clip) != len(clips[0]):
            raise VftError(
                f"got clips of {clips[0].fps:g} and {clip.fps:g} fps, batches of "
                f"{len(clips[0])} and {len(clip)}; join clips that agree in both"
            )
    ids: list[Tensor] = []
    rows: list[int] = []
    frames = 0
    for i, clip in enumerate(clips):
        whole = 1 + (clip.frames - c.chunk_frames) // c.stride  # chunks that are full
        last = i == len(clips) - 1
        if drop_partial and not last and whole < tokenizer.chunk_count(clip.frames):
            if not whole:
                raise VftError(
                    f"clip {i + 1} has {clip.frames} frames, not one whole chunk of "
                    f"{c.chunk_frames}; join it without dropping"
                )
            clip = slice_tokens(tokenizer, clip, 0, whole)
        chunks = tokenizer.chunk_count(clip.frames)
        full = c.chunk_frames + (chunks - 1) * c.stride
        first = c.overlap if i else 0
        ids.append(F.pad(clip.ids[:, first:], (0, most - clip.budget)))
        rows += clip.rows[first:]
        frames += (clip.frames if last else full) - (c.overlap if i else 0)
    fields: dict[str, Any] = {"frames": frames, "source": None}
    if len({_aspect(clip) for clip in clips}) > 1:
        fields |= {"fit": "crop", "source_size": None}
    return clips[0].with_ids(torch.cat(ids, dim=1), rows, **fields)


def _aspect(clip: Tokens) -> tuple[str, float]:
    """How a clip's picture fills the model's square."""
    h, w = clip.source_size or (1, 1)
    return clip.fit, 1.0 if clip.fit == "crop" else w / h
