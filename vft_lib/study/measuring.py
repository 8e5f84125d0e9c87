"""What the study measures of a prior: its clips beside held-out worlds."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..evaluation.classifier import labels_of
from ..evaluation.judge import Judge
from ..evaluation.learned import RESAMPLES, FeatureNetwork, Frechet
from ..evaluation.prior_card import written
from ..evaluation.run_clips import decoded_latents, decoded_video, encode_scenes
from ..footage.worlds import HELD_OUT_SEEDS
from ..prior.prior import Prior
from ..scoring.protocol import Line, digest_of, frechet_line
from ..tokenizer.tokenizer import Tokenizer
from ..tokens import Tokens
from ..train.tokenizer import ids_of_latents
from ..world import world

GUIDANCE = 2.0  # of every prior, at every budget
TEMPERATURE = 0.8


class Held:
    """`clips` held-out worlds, and Fréchet distances on the learned network (None: without) to what
    the autoencoder, which is one for all cells, makes of them. `intervals`: of these distances, by
    a bootstrap, which takes as long as training a prior."""

    def __init__(
        self, clips: int, tokenizer: Tokenizer, network: FeatureNetwork | None, dtype: torch.dtype,
        intervals: bool = True,
    ) -> None:  # fmt: skip
        scenes = [world.draw_scene(s) for s in HELD_OUT_SEEDS[:clips]]
        self.labels, self.captions = labels_of(scenes), [s.caption() for s in scenes]
        self.latents = encode_scenes(tokenizer, scenes, dtype)
        self.network, self.dtype = network, dtype
        self.frechets: dict[str, Frechet] = {}
        if network is not None:
            real = _features(network, decoded_video(tokenizer, self.latents, dtype))
            resamples = RESAMPLES if intervals else 0
            self.frechets = {name: Frechet(x, resamples, False) for name, x in real.items()}

    def __len__(self) -> int:
        return len(self.captions)

    def line(self, tokenizer: Tokenizer) -> Line:
        """The protocol of all numbers."""
        c, seeds = tokenizer.config, [str(s) for s in HELD_OUT_SEEDS[: len(self)]]
        return {
            "set": f"{len(self)} held-out worlds, list {digest_of(seeds)}",
            "frames": f"every 2nd of {c.chunk_frames}, {c.size} px, {c.fps:g} fps",
            "reference": "autoencoder",
            "network": "none" if self.network is None else self.network.line,
            "distance": frechet_line(),
            "sampler": f"{c.sampling.of('normal').words}, noise of clip i by seed i",
            "prior": f"guidance {GUIDANCE:g}, temperature {TEMPERATURE:g}, seed i",
        }  # fmt: skip


@dataclass
class Ruler:
    """Measures all priors on a tokenizer. `judge`: of that tokenizer."""

    held: Held
    tokenizer: Tokenizer
    judge: Judge
    own: dict[int, dict[str, float]] = field(default_factory=dict)
    """By budget: what the judge reads from clips that are decoded from their own tokens."""

    def __post_init__(self) -> None:
        self.ids = ids_of_latents(self.tokenizer, self.held.latents)

    @torch.no_grad()
    def measure(self, prior: Prior, k: int) -> dict[str, Any]:
        """At k tokens a latent frame: Fréchet distances, what the judge reads, bits and seconds of
        a clip."""
        held = self.held
        began = time.perf_counter()
        ids = written(prior, [k], lambda _: GUIDANCE, caption=held.captions)[k]
        made = decoded_latents(self.tokenizer, ids, held.dtype, desc=f"k = {k}")
        video = decoded_video(self.tokenizer, made, held.dtype)
        seconds = (time.perf_counter() - began) / len(held)
        row: dict[str, Any] = {"k": k, "tokens": ids.shape[1] * k, "seconds": round(seconds, 4)}
        row["accuracy"] = self.judge.accuracy(held.labels, made, video)
        if k not in self.own:
            own = decoded_latents(
                self.tokenizer, self.ids[:, :, :k], held.dtype, desc="from their own tokens"
            )
            pixels = decoded_video(self.tokenizer, own, held.dtype)
            self.own[k] = self.judge.accuracy(held.labels, own, pixels)
        row["own_tokens"] = self.own[k]
        row["bits"] = round(self._bits(prior, k), 2)
        if held.network is not None:
            found = _features(held.network, video)
            for name, distance in held.frechets.items():
                row[f"frechet_{name}"] = distance(found[name])
                if distance.resamples:
                    row[f"frechet_{name}_interval"] = list(distance.interval(found[name]))
        return row

    def _bits(self, prior: Prior, k: int) -> float:
        """-log2 p of the ids of a clip that is real, given its caption."""
        c, total, ids = self.tokenizer.config, 0.0, self.ids[:, :, :k]
        for start in range(0, len(ids), 32):
            tokens = Tokens(
                ids=ids[start : start + 32], tokenizer=c.name,
                fingerprint=self.tokenizer.fingerprint, frames=c.chunk_frames, fps=c.fps,
                size=(c.size, c.size),
            )  # fmt: skip
            captions = self.held.captions[start : start + 32]
            total += float(prior.surprise(tokens, caption=captions).sum())
        return total / len(ids)


def _features(network: FeatureNetwork, video: Tensor) -> dict[str, list[Tensor]]:
    """Of clips `[N,3,T,H,W]`: by frames and by what changes between them."""
    found = [network(clip.float()) for clip in video]
    return {"frames": [f.pooled for f in found], "motion": [f.motion for f in found]}
