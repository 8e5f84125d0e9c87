"""Distilling a flow decoder: its guided trajectories of many passes, learnt by a student of few.

The teacher integrates from noise z to latents x under guidance; the student, which begins with the
teacher's weights, learns to point from z straight at that x. This is rectified flow's second round
(Liu et al. 2022, arXiv 2209.03003) and InstaFlow's distillation (arXiv 2309.06380): as z and x
belong together, nothing is left to average over, and a straight path takes one Euler step as well
as many. So the network needs no step size as an input (as shortcut models do, arXiv 2410.12557),
its file is one like any other, and the same weights serve one pass and more.

Later passes are trained where sampling will find them: on the line from z to what the student's own
first pass points at, not on the teacher's path.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..config.sampling import Recipe, SamplingDefaults
from ..footage.footage import host_rng
from ..measure.sheets import save_strip
from ..tokenizer.decoder import Decoder
from ..tokenizer.sampling import NAMES, Sampling
from ..tokenizer.tokenizer import Tokenizer
from ..train.loop import Schedule, Task
from ..train.tokenizer import draw_budgets

GUIDED = Recipe(4, 2.0, apg=False)  # what the default tokenizer is best at


@dataclass(frozen=True)
class DistillRecipe:
    """`clips`: how many are encoded once, to draw ids from. Every batch is cut into `groups`, each
    with a budget of its own, and a `prefix_share` of the groups has its first latent frame given,
    as later chunks of a clip have. `teacher`: how it is sampled. `passes`: that the student's file
    asks for; it is trained for one and for up to `most`, `often` for `passes`."""

    schedule: Schedule
    clips: int
    groups: int = 4
    prefix_share: float = 0.25
    teacher: Recipe = GUIDED
    passes: int = 2
    most: int = 4
    often: float = 0.6

    @property
    def sampling(self) -> SamplingDefaults:
        """A student's: a draft in one pass."""
        draft = Recipe(1, guidance=1.0, apg=False)
        return SamplingDefaults(self.passes, guidance=1.0, apg=False, draft=draft)


RECIPES = {
    "nano": DistillRecipe(Schedule(1000, 8, lr=5e-4, warmup=20, ema=0.98), 1024),
    "small": DistillRecipe(Schedule(4000, 128, lr=3e-4, warmup=50, ema=0.995), 16_384),
    "tiny": DistillRecipe(Schedule(12, 4, lr=1e-3, warmup=2), 64, groups=2),
}
"""By the name of a preset: for two CPU cores, one data-centre GPU, and tests."""


class DistillTask(Task):
    """The student: a flow decoder alone. `teacher` is loaded as it computes, `ids` `[N,t,K]` are
    its own of `latents` `[N,C,t,h,w]`."""

    def __init__(
        self, recipe: DistillRecipe, teacher: Tokenizer, ids: Tensor, latents: Tensor
    ) -> None:
        super().__init__()
        self.recipe, self.config = recipe, teacher.config
        self.data = f" of {teacher.decoder_mark}"
        self.frozen = (teacher.eval().requires_grad_(False),)  # in a tuple: not a submodule
        teacher.graphs.use = "off"  # of one batch each: budgets change from step to step
        self.sampling = Sampling(**{name: getattr(recipe.teacher, name) for name in NAMES})
        self.decoder = Decoder(teacher.config)
        self.decoder.load_state_dict(teacher.decoder.state_dict())
        self.fsq = teacher.fsq
        self.ids, self.latents = ids, latents

    def hidden_matrices(self) -> list[nn.Parameter]:
        return [
            p for n, p in self.named_parameters()
            if ".blocks." in n and p.ndim == 2 and "modulation" not in n
        ]  # fmt: skip

    def forward(self, step: int, generator: torch.Generator, progress: float) -> dict[str, Tensor]:
        """`first` and `later`: how far from the teacher's latents the first pass points, and a
        later one, root mean square; `loss` is their sum."""
        r, rng, device = self.recipe, host_rng(generator), generator.device
        place = torch.randint(
            len(self.ids), (r.schedule.batch,), generator=generator, device=device
        )
        place = place.to(self.ids.device)
        ids, clean = self.ids[place].to(device).long(), self.latents[place].to(device).float()
        noise = torch.randn(clean.shape, generator=generator, device=device)
        spans = self.config.encoder.patch_size[0] > 1  # then no chunk begins with a given frame
        firsts, laters = [], []
        budgets = draw_budgets(self.config.registers, r.groups, rng)
        for keep, part in zip(budgets, torch.arange(len(ids)).chunk(r.groups)):
            rows = slice(int(part[0]), int(part[-1]) + 1)
            given = rng.random() < r.prefix_share and not spans
            pinned = clean[rows, :, :1] if given else None
            first, later = self._missed(ids[rows, :, :keep], noise[rows], pinned, self._time(rng))
            firsts.append(first)
            laters.append(later)
        one, two = torch.cat(firsts).mean(), torch.cat(laters).mean()
        return {"loss": one + two, "first": one.detach(), "later": two.detach()}

    def _time(self, rng: np.random.Generator) -> float:
        """At which a later pass is asked, of `passes` or of another number of them."""
        r = self.recipe
        usual = r.passes if r.passes > 1 else 2
        steps = usual if rng.random() < r.often else int(rng.integers(2, max(2, r.most) + 1))
        return 1 - int(rng.integers(1, steps)) / steps

    def _missed(
        self, ids: Tensor, noise: Tensor, pinned: Tensor | None, time: float
    ) -> tuple[Tensor, Tensor]:
        """Ids `[B,t,k]`, noise `[B,C,t,h,w]` and the first latent frame, if it is given -> how far
        each clip's first pass and its pass at `time` point from the teacher's latents, `[B]`."""
        teacher, kept = self.frozen[0], 0 if pinned is None else pinned.shape[2]
        with torch.no_grad():
            wanted = teacher.sample_latents(ids, noise, self.sampling, pinned=pinned)
        registers, weight = self._registers(ids, kept)

        def points_at(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
            """The velocity, and the clean latents that it points at."""
            if pinned is not None:
                x = torch.cat([pinned, x[:, :, kept:]], dim=2)
            modulation = self.decoder.modulate(torch.tensor([t], device=x.device), registers.dtype)
            v = self.decoder(x, modulation, registers, weight)
            return v, x - t * v

        def missed(found: Tensor) -> Tensor:
            error = (found - wanted)[:, :, kept:].flatten(1)
            # A distance, not its square: passes and budgets that miss by more do not drown others.
            return (error.square().mean(1) + 1e-6).sqrt()

        velocity, first = points_at(noise, 1.0)
        there = noise - (1 - time) * velocity.detach()  # as the sampler goes
        _, later = points_at(there, time)
        return missed(first), missed(later)

    def _registers(self, ids: Tensor, kept: int) -> tuple[Tensor, int]:
        b, _, k = ids.shape
        codes = nn.functional.pad(self.fsq.codes(ids), (0, 0, 0, self.config.registers - k))
        budget = torch.full((b,), k, device=ids.device)
        prefix = torch.full_like(budget, kept)
        null = torch.zeros_like(prefix, dtype=torch.bool)
        return self.decoder.merge(self.decoder.prepare(codes, budget, prefix, null), k)

    @torch.no_grad()
    def samples(self, out: Path, step: int) -> None:
        """Four training clips at a quarter of the registers: the autoencoder's picture, the
        teacher's, then the student's in one pass and in as many as its file asks for."""
        teacher = self.frozen[0]
        device, dtype = teacher.device, teacher.dtype
        student = Tokenizer(self.config).to(device)
        student.vae, student.decoder = teacher.vae, self.decoder
        some = slice(None, None, max(1, len(self.ids) // 4))
        ids, latents = self.ids[some][:4].long(), self.latents[some][:4].float().to(device)
        ids = ids[:, :, : max(1, self.config.registers // 4)]
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(device)
        made = [latents, teacher.sample_latents(ids, noise, self.sampling)]
        self.decoder.eval()
        for passes in (1, self.recipe.passes):
            made.append(student.sample_latents(ids, noise, Sampling(passes, 1.0)))
        videos = [teacher.vae.decode(x.to(dtype)).float().cpu() for x in made]
        save_strip(out / f"samples-{step:06d}.png", [v for clip in zip(*videos) for v in clip])
