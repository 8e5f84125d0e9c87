"""`vft eval generate`: clips that a prior writes from captions or classes, against real ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..prior.prior import Prior
from ..tokenizer.tokenizer import Tokenizer
from ..video.frames import Report
from .protocol import Line, digest_of
from .reconstruct import Sampler, pixels
from .score import Reference, Scorer, fill, unfinished
from .sources import Share, Source
from .store import Store

Words = Callable[[list[str]], dict[str, Any]]


@dataclass(frozen=True)
class Prompts:
    """Captions (or classes, `by_class`) by the name of the clip that they describe. `words`: texts
    -> the condition, as arguments of `Prior.generate`."""

    texts: Mapping[str, str]
    words: Words
    by_class: bool = False

    def chosen(self, count: int) -> list[tuple[str, str]]:
        """`count` of them (clip, text), from the beginning again where they end."""
        every = list(self.texts.items())
        return [every[i % len(every)] for i in range(count)]


def generate(
    prior: Prior, tokenizer: Tokenizer, prompts: Prompts, source: Source, scorer: Scorer, out: Path,
    note: Report, *, budgets: Sequence[int], count: int | None = None, share: Share | None = None,
    place: str = "",
) -> dict[str, Any] | None:  # fmt: skip
    """The results at each budget, as :func:`report.write` takes them; None if parts are still to be
    done by others. `source`: real clips; `place`: where they lie; `count`: clips at each budget, in
    place of the protocol's. Clip i is written with seed i, and decoded as the protocol says."""
    sampler, p, c = Sampler(scorer.protocol, tokenizer), scorer.protocol, prior.config
    share, real = share or Share(), list(source.ids)
    facts = scorer.facts | {"tokenizer": tokenizer.decoder_mark, "place": place,
                            "sampler": sampler.line}  # fmt: skip
    texts = {} if prompts.by_class else prompts.texts
    told = digest_of([f"{clip}\t{text}" for clip, text in prompts.texts.items()])

    def originals(batch: list[str]) -> Iterator[tuple[Mapping[str, Tensor]]]:
        for clip in batch:
            label = source.label(clip) if scorer.networks.classifier else ""
            look = scorer.look(sampler.reference(source.read(clip)), texts.get(clip), label)
            yield (look.record,)

    own = Store(out / "clips", facts | {"way": "real", "captions": told})
    marks = {clip: source.mark(clip) for clip in real}
    left = fill([own], real, marks, share, p.batch, originals, "real clips")
    table, stores = list[dict[str, Any]](), list[tuple[int, list[str], Store, Line]]()
    for k in budgets:
        scale = p.guidance_of_prior(k)
        scale = c.guidance_for(k) if scale is None else scale
        line = {"prior": f"guidance {scale:g}, temperature {c.temperature:g}, seed {p.seed} + i, "
                         f"{'classes' if prompts.by_class else 'captions'} {told}"}  # fmt: skip
        chosen = prompts.chosen(count or p.generated(k, len(prompts.texts)))
        names = [f"{i} {clip}" for i, (clip, _) in enumerate(chosen)]
        store = Store(out / "clips", facts | line | {"prior file": prior.fingerprint, "k": k})

        def written(
            batch: list[str], k: int = k, scale: float = scale,
            chosen: list[tuple[str, str]] = chosen,
        ) -> Iterator[tuple[Mapping[str, Tensor]]]:  # fmt: skip
            first, began = int(batch[0].split()[0]), time.perf_counter()
            some = chosen[first : first + len(batch)]
            tokens = prior.generate(
                budget=k, guidance=scale, frames=p.frames,
                seed=[p.seed + first + i for i in range(len(batch))],
                **prompts.words([text for _, text in some]),
            )  # fmt: skip
            video = tokenizer.decode(tokens, sampler.of(first, len(batch)))
            seconds = (time.perf_counter() - began) / len(batch)
            for (clip, text), made in zip(some, video):
                caption, label = (None, text) if prompts.by_class else (text, "")
                look = scorer.look(pixels(made), caption, label)
                record = look.record | {
                    "seconds": torch.tensor([seconds]), "bytes": torch.tensor([tokens.id_bytes])
                }  # fmt: skip
                if scorer.networks.viclip is not None and clip in marks:
                    shown = scorer.look(sampler.reference(source.read(clip)))
                    record["clipv"] = scorer.pair(shown, look)["clipv"]
                yield (record,)

        same = dict.fromkeys(names, told)
        left += fill([store], names, same, share, p.batch, written, f"generating, k = {k}")
        stores.append((k, names, store, line))
    if unfinished(left, note):
        return None
    reference = Reference(scorer, own, real, p.line(real, sampler.reference_name), False, note)
    for k, names, store, line in stores:
        numbers = {x: float(np.mean(store.values(names, x))) for x in ("bytes", "seconds")}
        row = {"kind": "tokens", "name": f"k = {k}", "budget": k, **numbers}
        table.append(row | reference.row(store, names, sampler.line | line))
    itself = reference.itself()
    if itself is not None:
        table.append({"kind": "reference", "name": "the real clips", **itself})
    return {
        "command": "generate", "rows": table, "seconds_of_video": p.frames / p.fps,
        "subject": {"prior": c.name, "fingerprint": prior.fingerprint,
                    "tokenizer": tokenizer.config.name, "parameters": _parameters(prior)},
    }  # fmt: skip


def _parameters(prior: Prior) -> int:
    # Of the state dict: weights that stay in the host's memory are no parameters.
    return sum(x.numel() for x in prior.state_dict().values())
