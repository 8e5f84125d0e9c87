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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..autoencoder.vae import VideoAutoencoder
from ..errors import VftError
from ..evaluation.judge import trained_judge
from ..evaluation.learned import FeatureNetwork
from ..files.atomic import alone, replacing, write_bytes
from ..footage.footage import Footage
from ..measure.bench import operations
from ..models.loading import load_prior, load_tokenizer
from ..scoring.protocol import Line, enough
from ..shards.tokenizing import autoencoder_mark
from ..tokenizer.tokenizer import Tokenizer
from ..train.dataset import Latents
from ..train.loop import autocast_dtype
from ..train.run import Run, draw_worlds, train_prior, train_tokenizer, train_vae
from ..train.tokenizer import TokenizerTask
from .measuring import Held, Ruler
from .recipes import BUDGETS, KINDS, TOKENS, Scale, preset

COUNTED = 8  # steps whose operations are counted, as budgets are drawn at random


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
    kept: list[Held] = field(default_factory=list)
    """The held-out worlds, once they are needed: the same for all cells."""

    @property
    def training(self) -> str:
        """How much, in words."""
        s = self.scale
        return (
            f"{s.vae}, {s.tokenizer} and {s.prior} steps (autoencoder, tokenizer, prior) of "
            f"{s.batch} clips, {s.clips} clips, width {s.width}"
        )

    def _line(self, line: Line) -> Line:
        """What is the same for all cells: cells of different lines do not compare."""
        judge = "its own number of" if self.judge_steps is None else f"{self.judge_steps}"
        return line | {"training": self.training, "judge": f"{judge} steps"}

    def cells(self) -> list[tuple[str, int]]:
        """Kinds and seeds, what decides first: a tokenizer, and all priors on it."""
        return [(kind, seed) for seed in self.seeds for kind in self.kinds]

    def run(self, part: int = 0, parts: int = 1) -> list[dict[str, Any]]:
        """Train and measure this part's cells; returns all results that there are by then. Of cells
        that are measured nothing but the results is needed."""
        for kind in self.kinds:
            if kind not in KINDS:
                raise VftError(f"kind {kind!r}: choose of {', '.join(KINDS)}")
        self.out.mkdir(parents=True, exist_ok=True)
        begun = self.out / "training.txt"
        if begun.exists() and begun.read_text() != self.training:
            raise VftError(
                f"{self.out} holds a study of {begun.read_text()}, not of {self.training}: choose "
                "another --out"
            )
        write_bytes(begun, self.training.encode())
        left = [cell for cell in self.cells()[part::parts] if self._sizes(*cell)]
        if left:
            with alone(
                self.out / "vae", lambda: self.say("another process trains the autoencoder")
            ):
                if not (self.out / "vae.safetensors").exists():
                    train_vae(self._run((self.kinds[0], 0), self.out))  # whoever's turn it is
        for cell in left:
            self._cell(*cell)
        return read_results(self.out)

    def folder(self, kind: str, seed: int) -> Path:
        return self.out / f"{kind}-{seed}"

    def _sizes(self, kind: str, seed: int) -> list[str]:
        """Of priors that are not measured yet."""
        folder = self.folder(kind, seed)
        return [size for size, _ in self.scale.sizes if not self._measured(folder / size)]

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
        first, ruler = folder / self.scale.sizes[0][0], None
        for size in self._sizes(kind, seed):
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
            ruler = ruler or self._ruler(run, folder)
            found = self._measure(ruler, run, kind, seed, size)
            write_bytes(place / "results.json", (json.dumps(found, indent=1) + "\n").encode())

    def _measured(self, place: Path) -> bool:
        try:
            found = json.loads((place / "results.json").read_text())
        except (OSError, ValueError):
            return False
        line = found["line"]
        return bool(
            found["clips"] == self.clips and found["features"] == self.features
            and line == self._line(line)
        )  # fmt: skip

    def _measure(self, ruler: Ruler, run: Run, kind: str, seed: int, size: str) -> dict[str, Any]:
        prior = load_prior(run.out / "prior.safetensors", device=self.device).bind(ruler.tokenizer)
        budgets = BUDGETS if kind == "registers" else (TOKENS,)
        return {
            "kind": kind, "seed": seed, "size": size, "clips": self.clips,
            "features": self.features, "parameters": sum(p.numel() for p in prior.parameters()),
            "tokenizer_steps": run.preset.tokenizer.schedule.steps, "judge": ruler.judge.facts,
            "rows": [ruler.measure(prior, k) for k in budgets],
            "line": self._line(ruler.held.line(ruler.tokenizer)),
            "autoencoder": autoencoder_mark(ruler.tokenizer.vae.state_dict()),
        }  # fmt: skip

    def _ruler(self, run: Run, folder: Path) -> Ruler:
        """For the priors on a folder's tokenizer."""
        device, dtype = self.device, autocast_dtype(self.device)
        tokenizer = load_tokenizer(folder / "tokenizer.safetensors", device=device)
        judge = trained_judge(self.judge_steps, run.preset.tokenizer, folder, tokenizer, dtype)
        return Ruler(self._held(tokenizer, dtype), tokenizer, judge)

    def _held(self, tokenizer: Tokenizer, dtype: torch.dtype) -> Held:
        if not self.kept:
            network = None
            if self.features:
                network = FeatureNetwork(self.device)
                warning = enough(self.clips, "the Fréchet distance")
                if warning:
                    self.say(warning)
            one = len(self.seeds) == 1  # several say themselves how far they lie apart
            self.kept.append(Held(self.clips, tokenizer, network, dtype, intervals=one))
        return self.kept[0]


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


def _copy(file: Path, folder: Path) -> None:
    if not (folder / file.name).exists():
        with replacing(folder / file.name) as tmp:
            shutil.copyfile(file, tmp)
