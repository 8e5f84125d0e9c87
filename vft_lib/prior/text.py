"""Captions to states: the small text encoder inside a prior's checkpoint.

A word is what it is in the vocabulary (if it is in there) plus the mean of its hashed character
n-grams (fastText, arXiv 1607.04606), so an unknown word, a plural or a typo lands near the words it
is spelled like. A few layers of attention then read the words in their order.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.prior import TextEncoderConfig
from ..config.tokenizer import TransformerConfig
from ..transformer.fused import norm
from ..transformer.layers import Block

WORD = re.compile(r"[^\W_]+")
NGRAMS = (3, 4, 5)
MAX_WORD = 24  # characters


def split_words(caption: str) -> list[str]:
    """Lower-case words of a caption, accents and punctuation removed."""
    plain = unicodedata.normalize("NFKD", caption).lower().replace("'", "")
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return [w[:MAX_WORD] for w in WORD.findall(plain)]


@lru_cache(maxsize=65536)
def ngrams(word: str, buckets: int) -> tuple[int, ...]:
    """Bucket numbers of the character n-grams of `<word>`, and of `<word>` itself."""
    text = f"<{word}>"
    parts = {text} | {text[i : i + n] for n in NGRAMS for i in range(len(text) - n + 1)}
    return tuple(sorted(zlib.crc32(p.encode()) % buckets for p in parts))


class TextEncoder(nn.Module):
    """Captions -> states `[B,S,dim]` and mask `[B,S]`."""

    def __init__(self, config: TextEncoderConfig, ops: Any = nn) -> None:
        super().__init__()
        self.config = c = config
        self.number = {word: i for i, word in enumerate(c.words)}
        self.words = nn.Parameter(torch.randn(len(c.words) + 1, c.dim) * 0.5)  # the last: unknown
        self.ngrams = nn.Parameter(torch.randn(c.buckets, c.dim) * 0.5)
        self.positions = nn.Parameter(torch.randn(c.max_words, c.dim) * 0.1)
        trunk = TransformerConfig(c.dim, c.depth, c.head_dim)
        self.blocks = nn.ModuleList(Block(trunk, ops) for _ in range(c.depth))

    def forward(
        self, captions: Sequence[str], *, forget: Tensor | None = None, rows: int = 1
    ) -> tuple[Tensor, Tensor]:
        """At least `rows` rows; those beyond a caption's words are zero and masked. A caption
        without a word has an empty mask. `forget` (a generator's uniform numbers, one a word)
        makes known words unknown where it is below 0.1, so that training learns to spell."""
        c, device = self.config, self.words.device
        split = [split_words(text)[: c.max_words] for text in captions]
        length = min(c.max_words, max([rows, *map(len, split)]))
        number = torch.full((len(split), length), len(c.words))
        parts: list[int] = []
        offsets: list[int] = []
        mask = torch.zeros(len(split), length, dtype=torch.bool)
        seen = 0
        for i, words in enumerate(split):
            mask[i, : len(words)] = True
            for j, word in enumerate(words):
                offsets.append(len(parts))
                parts += ngrams(word, c.buckets)
                if forget is None or forget[seen] >= 0.1:
                    number[i, j] = self.number.get(word, len(c.words))
                seen += 1
        x = self.words[number.to(device)]
        mask = mask.to(device)
        if parts:
            spelled = F.embedding_bag(
                torch.tensor(parts, device=device), self.ngrams,
                torch.tensor(offsets, device=device), mode="mean",
            )  # fmt: skip
            x = x + torch.zeros_like(x).masked_scatter(mask[..., None], spelled.to(x))
        x = (x + self.positions[:length])[:, None]  # (B, 1, S, d): what Block takes
        # A caption without words would attend to nothing: its rows see one another instead.
        attend = (mask | ~mask.any(1, keepdim=True))[:, None, None]
        for block in self.blocks:
            x = block(x, attend)
        return norm(x[:, 0]) * mask[..., None], mask
