"""The prior's architecture as data, like the tokenizer's in config.py."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError
from .fields import canonical, from_json
from .tokenizer import MAX_DEPTH, MAX_WIDTH, check_fps, check_levels

Conditioning = Literal["class", "text", "both"]


@dataclass(frozen=True)
class TextEncoderConfig:
    """A small text encoder inside a prior's checkpoint.

    `words` is what it knows by heart; every word, known or not, is also read by its character
    n-grams, hashed into `buckets` rows. `max_words` is where a caption is cut.
    """

    words: tuple[str, ...]
    buckets: int = 2048
    dim: int = 128
    depth: int = 2
    head_dim: int = 32
    max_words: int = 48


@dataclass(frozen=True)
class PriorConfig:
    """Everything needed to build a prior and to say whose ids it writes.

    `tokenizer`, `tokenizer_fingerprint`, `size` (px) and `fps` are the tokenizer's; published
    files give its name alone ("", 0). `latent_frames` is t, the latent frames of one sequence,
    `seq_len` the ids it may have in all, so that the largest budget is seq_len // t. `chunk`: the
    latent frames of the tokenizer's chunk, of a prior that also reads and writes clips of fewer
    chunks, which share a frame (0: all its sequences have latent_frames). `ctx_dim` is
    the width of the text states, `n_ctx_null` the rows of the learned null text. `embedding`:
    "table" has a vector for each id, "factorized" builds it from the id's FSQ digits.
    `guidance`: pairs (k, scale), a budget uses the last pair that is not above it; it and
    `temperature` are what sampling takes unless told otherwise.
    """

    name: str
    tokenizer: str
    depth: int
    width: int
    seq_len: int
    cond: Conditioning
    vocab: int = 64_000
    latent_frames: int = 5
    head_dim: int = 64
    classes: tuple[str, ...] = ()
    ctx_dim: int = 0
    n_ctx_null: int = 16
    max_text_len: int = 128
    head_bias: bool = False
    embedding: Literal["table", "factorized"] = "table"
    fsq_levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    text_encoder: TextEncoderConfig | None = None
    guidance: tuple[tuple[int, float], ...] = ((1, 1.0),)
    temperature: float = 1.0
    tokenizer_fingerprint: str = ""
    size: int = 0
    fps: float = 8.0
    chunk: int = 0

    def __post_init__(self) -> None:
        def need(ok: bool, what: str) -> None:
            if not ok:
                raise ConfigError(f"prior {self.name!r}: {what}")

        need(0 < self.depth <= MAX_DEPTH, f"depth is {self.depth}; expected 1 to {MAX_DEPTH}")
        need(self.width <= MAX_WIDTH, f"width is {self.width}; expected up to {MAX_WIDTH}")
        need(
            0 < self.head_dim <= self.width and self.width % self.head_dim == 0,
            f"width {self.width} is not a multiple of head_dim {self.head_dim}",
        )
        need(0 < self.vocab <= 1 << 16, f"vocab is {self.vocab}; expected 1 to 65,536")
        need(
            0 < self.latent_frames <= self.seq_len,
            f"latent_frames is {self.latent_frames}; expected 1 to seq_len ({self.seq_len})",
        )
        need(
            self.chunk == 0
            or (
                2 <= self.chunk <= self.latent_frames
                and (self.latent_frames - 1) % (self.chunk - 1) == 0
            ),
            f"latent_frames ({self.latent_frames}) are not whole chunks of {self.chunk} that share "
            "one",
        )
        need(
            bool(self.classes) == (self.cond != "text"),
            f"cond is {self.cond!r} with {len(self.classes)} classes",
        )
        need(len(set(self.classes)) == len(self.classes), "two classes have one name")
        if self.takes_text:
            need(
                min(self.ctx_dim, self.n_ctx_null, self.max_text_len) > 0,
                "a text prior needs ctx_dim, n_ctx_null and max_text_len",
            )
        else:
            need(self.ctx_dim == 0, f"ctx_dim is {self.ctx_dim} without text; expected 0")
        if self.embedding == "factorized":
            check_levels(self.fsq_levels)
            need(
                len(self.fsq_levels) >= 2 and math.prod(self.fsq_levels) == self.vocab,
                f"fsq_levels {self.fsq_levels} do not make {self.vocab} ids",
            )
        ks = [k for k, _ in self.guidance]
        need(bool(ks) and ks[0] == 1 and sorted(set(ks)) == ks, f"guidance budgets are {ks}")
        need(0 <= self.temperature <= 100, f"temperature is {self.temperature}; expected 0 to 100")
        check_fps(self.fps)
        e = self.text_encoder
        if e is not None:
            need(
                self.takes_text and e.dim == self.ctx_dim, "the text encoder's width is not ctx_dim"
            )
            need(
                min(e.buckets, e.dim, e.head_dim, e.max_words) > 0
                and e.dim % e.head_dim == 0
                and e.depth <= MAX_DEPTH
                and e.max_words <= self.max_text_len,
                "the text encoder's sizes do not fit together",
            )

    @property
    def takes_text(self) -> bool:
        return self.cond != "class"

    @property
    def hidden(self) -> int:
        """Width of the gated MLP: 8/3 of the width, rounded up to a multiple of 64."""
        return -(-int(8 * self.width / 3) // 64) * 64

    @property
    def registers(self) -> int:
        """The largest budget."""
        return self.seq_len // self.latent_frames

    @property
    def frames(self) -> int:
        """Frames of the longest clip: the first latent frame is one, the others are four each."""
        return 1 + 4 * (self.latent_frames - 1)

    @property
    def chunk_frames(self) -> int:
        """Frames of the shortest clip that it writes without cutting any off."""
        return 1 + 4 * ((self.chunk or self.latent_frames) - 1)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Latent frames of the sequences that it reads and writes, the shortest first."""
        if not self.chunk:
            return (self.latent_frames,)
        return tuple(range(self.chunk, self.latent_frames + 1, self.chunk - 1))

    def guidance_for(self, budget: int) -> float:
        """The default guidance scale of a budget."""
        return [scale for k, scale in self.guidance if k <= budget][-1]

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no white space; what fingerprints are made of."""
        return canonical(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> PriorConfig:
        """Inverse of :meth:`to_json`. Unknown, missing or ill-typed entries raise ConfigError."""
        return from_json(PriorConfig, text, "prior")
