"""Training and measuring of the study, cell by cell. What is there is not done again: every stage
goes on from its checkpoint, and every measurement is a file of its own.

    OUT/vae.safetensors                      one autoencoder for all
    OUT/KIND-SEED/tokenizer.safetensors
    OUT/KIND-SEED/SIZE/prior.safetensors
    OUT/KIND-SEED/SIZE/results.json          at every budget
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..autoencoder.vae import VideoAutoencoder
from ..errors import VftError
from ..evaluation.classifier import labels_of
from ..evaluation.judge import trained_judge
from ..evaluation.learned import FeatureNetwork, Frechet
from ..evaluation.prior_card import written
from ..evaluation.run_clips import decoded_latents, decoded_video, encode_scenes
from ..files.atomic import alone, replacing, write_bytes
from ..footage.footage import Footage
from ..footage.worlds import HELD_OUT_SEEDS
from ..measure.bench import operations
from ..models.loading import load_prior, load_tokenizer
from ..prior.prior import Prior
from ..scoring.protocol import Line, digest_of, enough, frechet_line
from ..tokenizer.tokenizer import Tokenizer
from ..tokens import Tokens
from ..train.dataset import Latents
from ..train.loop import autocast_dtype
from ..train.run import Run, draw_worlds, train_prior, train_tokenizer, train_vae
from ..train.tokenizer import TokenizerTask, ids_of_latents
from ..world import world
from .recipes import BUDGETS, KINDS, TOKENS, Scale, preset

COUNTED = 8  # steps whose operations are counted, as budgets are drawn at random
GUIDANCE = 2.0  # of every prior, at every budget
TEMPERATURE = 0.8


@dataclass(frozen=True)
class Study:
    """`clips`: held-out worlds that are generated and compared with. `judge_steps`: of the judge's
    training (None: its own). `features`: with the learned network's Fréchet distances."""

    scale: Scale
    out: Path
    device: torch.device
    seeds: Sequence[int] = (0, 1, 2)
    kinds: Sequence[str] = KINDS
    clips: int = 512
    judge_steps: int | None = None
    features: bool = True
    say: Callable[[str], None] = print

    def cells(self) -> list[tuple[str, int]]:
        """Kinds and seeds, what decides first: a tokenizer, and all priors on it."""
        return [(kind, seed) for seed in self.seeds for kind in self.kinds]

    def run(self, part: int = 0, parts: int = 1) -> list[dict[str, Any]]:
        """Train and measure this part's cells; returns all results that there are by then."""
        for kind in self.kinds:
            if kind not in KINDS:
                raise VftError(f"kind {kind!r}: choose of {', '.join(KINDS)}")
        self.out.mkdir(parents=True, exist_ok=True)
        with alone(self.out / "vae", lambda: self.say("another process trains the autoencoder")):
            if not (self.out / "vae.safetensors").exists():
                train_vae(self._run(self.cells()[0], self.out))
        for cell in self.cells()[part::parts]:
            self._cell(*cell)
        return read_results(self.out)

    def folder(self, kind: str, seed: int) -> Path:
        return self.out / f"{kind}-{seed}"

    def _run(self, cell: tuple[str, int], out: Path, size: str | None = None) -> Run:
        sizes = dict(self.scale.sizes)
        p = preset(self.scale, cell[0], sizes[size or self.scale.sizes[0][0]], cell[1])
        if out != self.out:
            steps = equal_steps(self.scale, cell[0])
            schedule = replace(p.tokenizer.schedule, steps=steps)
            p = replace(p, tokenizer=replace(p.tokenizer, schedule=schedule))
        return Run(p, Footage(None, draw_worlds(p, 0, alone=True)), out, self.device)

    def _cell(self, kind: str, seed: int) -> None:
        folder = self.folder(kind, seed)
        folder.mkdir(exist_ok=True)
        _copy(self.out / "vae.safetensors", folder)
        run = self._run((kind, seed), folder)
        if not (folder / "tokenizer.safetensors").exists():
            self.say(f"{kind}, seed {seed}: {run.preset.tokenizer.schedule.steps} steps")
            train_tokenizer(run)
        first = folder / self.scale.sizes[0][0]
        for size, _ in self.scale.sizes:
            place = folder / size
            place.mkdir(exist_ok=True)
            _copy(folder / "tokenizer.safetensors", place)
            (place / "prior").mkdir(exist_ok=True)
            for name in ("ids.i32", "ids.done"):  # all priors of a cell read the same ids
                if (ids := first / "prior" / name).exists():
                    _copy(ids, place / "prior")
            run = self._run((kind, seed), place, size)
            if not (place / "prior.safetensors").exists():
                self.say(f"{kind}, seed {seed}, {size} prior")
                train_prior(run)
            if not self._measured(place):
                found = self._measure(run, folder, kind, seed, size)
                text = json.dumps(found, indent=1) + "\n"
                write_bytes(place / "results.json", text.encode())

    def _measured(self, place: Path) -> bool:
        try:
            found = json.loads((place / "results.json").read_text())
        except (OSError, ValueError):
            return False
        return bool(found["clips"] == self.clips and found["features"] == self.features)

    @torch.no_grad()
    def _measure(self, run: Run, folder: Path, kind: str, seed: int, size: str) -> dict[str, Any]:
        """At each budget: Fréchet distances to the autoencoder's held-out clips, what the judge
        reads, bits and seconds of a clip."""
        device, dtype = self.device, autocast_dtype(self.device)
        tokenizer = load_tokenizer(run.out / "tokenizer.safetensors", device=device)
        prior = load_prior(run.out / "prior.safetensors", device=device).bind(tokenizer)
        with torch.enable_grad():
            judge = trained_judge(self.judge_steps, run.preset.tokenizer, folder, tokenizer, dtype)
        scenes = [world.draw_scene(s) for s in HELD_OUT_SEEDS[: self.clips]]
        labels, captions = labels_of(scenes), [s.caption() for s in scenes]
        latents = encode_scenes(tokenizer, scenes, dtype)
        network = FeatureNetwork(device) if self.features else None
        frechets: dict[str, Frechet] = {}
        if network is not None:
            warning = enough(self.clips, "the Fréchet distance")
            if warning:
                self.say(warning)
            real = _features(network, decoded_video(tokenizer, latents, dtype))
            frechets = {name: Frechet(x, paired=False) for name, x in real.items()}
        ids = ids_of_latents(tokenizer, latents)
        rows = []
        for k in BUDGETS if kind == "registers" else (TOKENS,):
            began = time.perf_counter()
            made_ids = written(prior, [k], lambda _: GUIDANCE, caption=captions)[k]
            made = decoded_latents(tokenizer, made_ids, dtype, desc=f"{kind}, k = {k}")
            video = decoded_video(tokenizer, made, dtype)
            row: dict[str, Any] = {"k": k, "tokens": made_ids.shape[1] * k}
            row["seconds"] = round((time.perf_counter() - began) / self.clips, 4)
            row["accuracy"] = judge.accuracy(labels, made, video)
            own = decoded_latents(tokenizer, ids[:, :, :k], dtype, desc="from their own tokens")
            row["own_tokens"] = judge.accuracy(labels, own, decoded_video(tokenizer, own, dtype))
            row["bits"] = round(_bits(prior, tokenizer, ids[:, :, :k], captions), 2)
            if network is not None:
                found = _features(network, video)
                for name, distance in frechets.items():
                    row[f"frechet_{name}"] = distance(found[name])
                    row[f"frechet_{name}_interval"] = list(distance.interval(found[name]))
            rows.append(row)
        return {
            "kind": kind, "seed": seed, "size": size, "clips": self.clips,
            "features": self.features, "parameters": sum(p.numel() for p in prior.parameters()),
            "tokenizer_steps": run.preset.tokenizer.schedule.steps,
            "judge": judge.facts, "rows": rows, "line": self._line(tokenizer, network),
        }  # fmt: skip

    def _line(self, tokenizer: Tokenizer, network: FeatureNetwork | None) -> Line:
        c, seeds = tokenizer.config, [str(s) for s in HELD_OUT_SEEDS[: self.clips]]
        return {
            "set": f"{self.clips} held-out worlds, list {digest_of(seeds)}",
            "frames": f"every 2nd of {c.chunk_frames}, {c.size} px, {c.fps:g} fps",
            "reference": "autoencoder", "network": "none" if network is None else network.line,
            "distance": frechet_line(),
            "sampler": f"{c.sampling.of('normal').words}, noise of clip i by seed i",
            "prior": f"guidance {GUIDANCE:g}, temperature {TEMPERATURE:g}, seed i",
        }  # fmt: skip


def equal_steps(scale: Scale, kind: str) -> int:
    """Steps of a tokenizer's training that cost as many operations as the registers' do: those of
    the forward passes of :data:`COUNTED` steps are counted, a backward pass costs twice as many."""
    cost = step_cost(scale, "registers") / step_cost(scale, kind)
    return max(1, round(scale.tokenizer * cost))


def step_cost(scale: Scale, kind: str) -> int:
    """Operations of the forward passes of some steps of a tokenizer's training."""
    return _counted(replace(scale, vae=1, tokenizer=1, prior=1), kind)


@lru_cache
def _counted(scale: Scale, kind: str) -> int:
    recipe = preset(scale, kind, scale.sizes[0][1], 0).tokenizer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        latents = Latents(torch.zeros(scale.batch, *recipe.config.latent_shape), None)
        task = TokenizerTask(recipe, VideoAutoencoder(recipe.config.vae), latents)
    task.requires_grad_(False)

    def steps() -> None:
        for i in range(COUNTED):
            task(i, torch.Generator().manual_seed(i), 0.5)

    return operations(steps)


def read_results(out: Path) -> list[dict[str, Any]]:
    """Of all cells that are measured."""
    return [json.loads(p.read_text()) for p in sorted(out.glob("*-*/*/results.json"))]


def _features(network: FeatureNetwork, video: Tensor) -> dict[str, list[Tensor]]:
    """Of clips `[N,3,T,H,W]`: by frames and by what changes between them."""
    found = [network(clip.float()) for clip in video]
    return {"frames": [f.pooled for f in found], "motion": [f.motion for f in found]}


def _bits(prior: Prior, tokenizer: Tokenizer, ids: Tensor, captions: list[str]) -> float:
    """-log2 p of the ids of a clip that is real, given its caption."""
    c, total = tokenizer.config, 0.0
    for start in range(0, len(ids), 32):
        tokens = Tokens(
            ids=ids[start : start + 32], tokenizer=c.name, fingerprint=tokenizer.fingerprint,
            frames=c.chunk_frames, fps=c.fps, size=(c.size, c.size),
        )  # fmt: skip
        total += float(prior.surprise(tokens, caption=captions[start : start + 32]).sum())
    return total / len(ids)


def _copy(file: Path, folder: Path) -> None:
    if not (folder / file.name).exists():
        with replacing(folder / file.name) as tmp:
            shutil.copyfile(file, tmp)
