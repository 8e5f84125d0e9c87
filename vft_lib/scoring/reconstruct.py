"""`vft eval reconstruct`: what a tokenizer keeps of clips at each budget, beside codecs at the same
bytes, the autoencoder alone and blurs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config.sampling import UNMEASURED
from ..errors import VftError
from ..evaluation.curves import BEYOND, autoencoded, block_sides, in_blocks
from ..footage.footage import to_video
from ..measure.codecs import Codec, Encoded
from ..shards.tokenizing import autoencoder_mark
from ..tokenizer.eight_bit import storage_of
from ..tokenizer.sampling import Sampling
from ..tokenizer.tokenizer import Tokenizer
from ..video.frames import Report, to_frames
from .protocol import Line, Protocol
from .score import Reference, Scorer, fill, unfinished
from .sources import Share, Source
from .store import Store


@dataclass(frozen=True)
class Way:
    """One way of keeping clips. `kind`: tokens, autoencoder, raw, blocks or codec. `limit`: bytes
    that a codec was given; `codec`: the encoder and its options."""

    kind: str
    name: str
    budget: int | None = None
    limit: int | None = None
    codec: str = ""

    @property
    def line(self) -> Line:
        """What of a protocol line is its own."""
        return {"codec": self.codec} if self.codec else {}


@dataclass(frozen=True)
class Sampler:
    """How clips are decoded: as a protocol says, as the tokenizer does where that says nothing."""

    protocol: Protocol
    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        c, p = self.tokenizer.config, self.protocol
        if c.size != p.size:
            raise VftError(f"{c.name} works at {c.size} px, the protocol at {p.size} (--size)")

    @property
    def usual(self) -> Sampling:
        p = self.protocol
        best = UNMEASURED if p.plain else self.tokenizer.config.sampling
        return Sampling(p.steps, p.guidance, p.apg).settled(best)

    def of(self, first: int, count: int) -> Sampling:
        """For the clips `first`, `first + 1`, ... of a set, a batch of it."""
        p, s = self.protocol, self.usual
        if p.batch_noise:
            generator = torch.Generator().manual_seed(p.seed)
            return replace(s, generator=generator)
        seeds = [p.seed + i for i in range(first, first + count)]
        return replace(s, seed=seeds)

    @property
    def line(self) -> Line:
        p, s = self.protocol, self.usual
        noise = (
            f"noise by seed {p.seed} anew for each batch of {p.batch}" if p.batch_noise
            else f"noise of clip i by seed {p.seed} + i"
        )  # fmt: skip
        dtype = str(self.tokenizer.dtype).removeprefix("torch.")
        bits = storage_of(self.tokenizer)
        return {"sampler": f"{s.recipe.words}, {noise}, {dtype}" + f", weights {bits}" * bool(bits)}

    @property
    def reference_name(self) -> str:
        """Autoencoders differ."""
        if self.protocol.reference == "raw":
            return "raw"
        return f"autoencoder {autoencoder_mark(self.tokenizer.vae.state_dict())}"

    def reference(self, clip: np.ndarray) -> np.ndarray:
        """What clips are compared with, uint8 `[T,S,S,3]`."""
        if self.protocol.reference == "raw":
            return clip
        return pixels(autoencoded(self.tokenizer, to_video([clip])[0]))


def pixels(video: Tensor) -> np.ndarray:
    """`[3,T,S,S]` in [-1,1] -> uint8 `[T,S,S,3]`."""
    return np.stack(list(to_frames(video)))


def reconstruct(
    tokenizer: Tokenizer, source: Source, scorer: Scorer, out: Path, note: Report, *,
    budgets: Sequence[int], codecs: Sequence[Codec] = (), share: Share | None = None,
    place: str = "",
) -> dict[str, Any] | None:  # fmt: skip
    """The results at each budget, as :func:`report.write` takes them; None if parts are still to be
    done by others. `place`: where the clips lie. VftError for a tokenizer of another size."""
    sampler = Sampler(scorer.protocol, tokenizer)
    c, p = tokenizer.config, scorer.protocol
    ids = list(source.ids)
    number = {clip: i for i, clip in enumerate(ids)}
    rows = tokenizer.latent_frames(p.frames)
    sizes = [2 * rows * k for k in budgets]
    other = Way("autoencoder", "autoencoder") if p.reference == "raw" else Way("raw", "raw clips")
    limits = (0, *sizes, *(sizes[-1] * n for n in BEYOND))
    ways = [
        *(Way("tokens", f"k = {k}", k) for k in budgets),
        other,
        *(Way("blocks", f"{side} px blocks") for side in block_sides(c.size)),
        *(Way("codec", x.name, limit=n, codec=x.line) for x in codecs for n in limits),
    ]
    facts = scorer.facts | {"tokenizer": tokenizer.decoder_mark, "sampler": sampler.line,
                            "place": place}  # fmt: skip
    stores = [Store(out / "clips", facts | {"way": str(way)}) for way in (None, *ways)]

    def make(batch: list[str]) -> Iterator[list[Mapping[str, Tensor]]]:
        clips = [source.read(clip) for clip in batch]
        labels = [source.label(clip) if scorer.networks.classifier else "" for clip in batch]
        shown = [sampler.reference(clip) for clip in clips]
        looks = [scorer.look(x, label=label) for x, label in zip(shown, labels)]
        found: list[list[Mapping[str, Tensor]]] = [[look.record] for look in looks]

        def keep(i: int, made: np.ndarray, size: int | None = None) -> None:
            look = scorer.look(made, label=labels[i])
            record = look.record | scorer.pair(looks[i], look)
            found[i].append(record if size is None else record | {"bytes": torch.tensor([size])})

        tokens = tokenizer.encode(to_video(clips))
        for k in budgets:
            cut = tokens.truncate(k)
            video = tokenizer.decode(cut, sampler.of(number[batch[0]], len(batch)))
            for i, made in enumerate(video):
                keep(i, pixels(made), cut.id_bytes)
        for i, clip in enumerate(clips):
            keep(i, clip if p.reference != "raw" else
                 pixels(autoencoded(tokenizer, to_video([clip])[0])))  # fmt: skip
            for side in block_sides(c.size):
                keep(i, pixels(in_blocks(to_video([shown[i]])[0], side)))
            for codec in codecs:
                encoded = Encoded(codec, list(shown[i]), p.fps)
                for limit in limits:
                    coded = encoded.at(limit)
                    keep(i, np.stack(coded.frames), coded.bytes)
        yield from found

    # The noise follows from a clip's place in the list.
    marks = {clip: f"{number[clip]} {source.mark(clip)}" for clip in ids}
    left = fill(stores, ids, marks, share or Share(), p.batch, make, "reconstructing")
    if unfinished(left, note):
        return None
    line = p.line(ids, sampler.reference_name)
    reference = Reference(scorer, stores[0], ids, line, True, note)
    table: list[dict[str, Any]] = []
    for way, store in zip(ways, stores[1:]):
        row: dict[str, Any] = {"kind": way.kind, "name": way.name}
        if way.budget is not None:
            row |= {"budget": way.budget, "tokens": rows * way.budget}
        if "bytes" in store.names(ids[0]):
            row["bytes"] = float(np.mean(store.values(ids, "bytes")))
        if way.limit is not None:
            row["limit"] = way.limit
            # A codec goes no lower than its smallest stream, whatever it is asked for.
            if any(r["name"] == way.name and r["bytes"] == row["bytes"] for r in table):
                continue
        extra = sampler.line if way.kind == "tokens" else way.line
        table.append(row | reference.row(store, ids, extra))
    own = reference.itself()
    if own is not None:
        table.append({"kind": "reference", "name": "the reference", **own})
    return {
        "command": "reconstruct", "rows": table, "seconds_of_video": p.frames / p.fps,
        "subject": {"tokenizer": c.name, "fingerprint": tokenizer.fingerprint},
    }  # fmt: skip
