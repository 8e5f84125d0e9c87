"""Training the default prior: next-id prediction on the tokenizer's training clips.

The procedural ones come with captions, worded anew at every draw, and with their motion as the
class; real clips have neither and teach the unconditional prior.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..config.prior import PriorConfig
from ..errors import VftError
from ..footage.footage import host_rng
from ..measure.sheets import save_strip
from ..prior.prior import Prior, time_first
from ..prior.text import split_words
from ..tokenizer.tokenizer import Tokenizer
from ..world import captions, world
from .loop import Schedule, Task

HELD_OUT = 32  # of so many clips, the last is kept for validation
SHOWN = (
    "a red ball bounces to the right", "a green star moves up", "a big blue square spins on sand",
    "a yellow heart shrinks while the camera pans left",
)  # fmt: skip


@dataclass(frozen=True)
class PriorRecipe:
    """Every step reads all registers, or with probability `short_share` the first half or quarter:
    they say most of what a caption says, for a fraction of the time.
    `null_share` of the procedural clips are trained without a condition (for guidance),
    `class_share` with the class alone, the rest with a caption, `brief_share` of those of a few
    words. In half of the captions a word is lost with probability `word_loss`. `real_share` of
    every batch is real clips. `dropout` is in every residual branch."""

    config: PriorConfig
    schedule: Schedule
    short_share: float = 0.5
    real_share: float = 0.08
    null_share: float = 0.1
    class_share: float = 0.2
    brief_share: float = 0.25
    word_loss: float = 0.12
    dropout: float = 0.1


def caption_words() -> tuple[str, ...]:
    """Every word that the procedural captions use."""
    actions = [v for verbs in captions.VERBS.values() for v in verbs]
    phrases: list[str] = [*actions, *map(captions.participle, actions)]
    for table in (captions.NOUNS, captions.COLOR_WORDS, captions.CAMERA_WORDS,
                  captions.BACKGROUND_WORDS):  # fmt: skip
        phrases += [phrase.format(a="", b="") for row in table.values() for phrase in row]
    phrases += [*world.COLORS, *world.BACKGROUND_COLORS, *world.TEXTURES, *captions.FRAME_WORDS]
    return tuple(sorted({word for phrase in phrases for word in split_words(phrase)}))


class PriorTask(Task):
    """The network and its text encoder, on ids `[N,t,K]` and what each clip is."""

    def __init__(
        self, recipe: PriorRecipe, tokenizer: Tokenizer, ids: Tensor, seeds: list[int | None]
    ) -> None:  # fmt: skip
        super().__init__()
        self.recipe, self.ids = recipe, ids[:, :, : recipe.config.registers]
        numbers = self.ids.int().contiguous().numpy().tobytes()
        self.data = f" of ids {hashlib.sha256(numbers).hexdigest()[:16]}"
        self.frozen = (tokenizer.eval().requires_grad_(False),)  # in a tuple: not a submodule
        self.prior = Prior(recipe.config).bind(tokenizer)
        self.scenes = {
            i: world.draw_scene(seed) for i, seed in enumerate(seeds) if seed is not None
        }
        kept = [i for i in range(len(seeds)) if (i + 1) % HELD_OUT]
        self.procedural = torch.tensor([i for i in kept if i in self.scenes])
        self.real = torch.tensor([i for i in kept if i not in self.scenes], dtype=torch.int64)
        self.held_out = sorted(self.scenes.keys() - set(kept))
        _initialize(self.prior)
        for module in self.prior.network.modules():
            if isinstance(module, nn.Dropout):
                module.p = recipe.dropout

    def start_from(self, prior: Prior) -> None:
        """Take the weights of a trained prior, of the same tokenizer or of one that this one's
        training began with: their ids mean nearly the same."""
        mine, other = self.prior.config, prior.config
        free = ("name", "tokenizer", "tokenizer_fingerprint", "guidance")
        same = {name: getattr(other, name) for name in free}
        if dataclasses.replace(mine, **same) != other:
            raise VftError(f"--init: {other.name} and {mine.name} are not built alike")
        self.prior.load_state_dict(prior.state_dict())

    exact = ("network.head.",)

    def hidden_matrices(self) -> list[nn.Parameter]:
        return [p for n, p in self.named_parameters() if ".blocks." in n and p.ndim == 2]

    def forward(
        self, step: int, generator: torch.Generator, progress: float
    ) -> dict[str, Tensor]:  # fmt: skip
        r = self.recipe
        count = r.schedule.batch
        torch.manual_seed(
            generator.initial_seed()
        )  # of dropout: a resumed run takes the same steps
        rng = host_rng(generator)
        real = int(rng.binomial(count, r.real_share)) if len(self.real) else 0
        chosen = [
            pool[torch.from_numpy(rng.integers(len(pool), size=n))]
            for pool, n in ((self.procedural, count - real), (self.real, real)) if n
        ]  # fmt: skip
        index = torch.cat(chosen)
        texts, classes = zip(*(self._condition(rng, int(i)) for i in index))
        budget = r.config.registers
        if rng.random() < r.short_share:
            budget = max(1, budget // int(rng.choice((2, 4))))
        bits = self.bits(index, list(texts), torch.tensor(classes), budget, forget=rng)
        out = {"loss": bits.mean() * math.log(2)} | _by_register(bits)
        if real:
            out["real"] = bits[-real:].detach().mean()
        return out

    def bits(
        self, index: Tensor, texts: list[str], classes: Tensor, budget: int | None = None,
        forget: np.random.Generator | None = None,
    ) -> Tensor:  # fmt: skip
        """-log2 p of the ids of clips `index` `[B]` -> `[B,budget,t]` (default: K), in bits."""
        network, c = self.prior.network, self.prior.config
        device = self.prior.device
        flat = time_first(self.ids[index, :, :budget].long()).to(device)
        assert self.prior.text is not None
        words = sum(len(split_words(t)) for t in texts)
        uniform = None if forget is None else torch.from_numpy(forget.random(words, np.float32))
        states, mask = self.prior.text(texts, forget=uniform, rows=c.n_ctx_null)
        condition = network.condition(len(flat), classes, states, mask)
        hidden = network.trunk(network.inputs(flat[:, :-1], condition), condition)
        nats = network.head.nll(hidden.flatten(0, 1), flat.flatten())
        return (nats / math.log(2)).view(len(flat), -1, c.latent_frames)

    def _condition(self, rng: np.random.Generator, clip: int) -> tuple[str, int]:
        """(caption or "", class number) of a draw."""
        r, none = self.recipe, len(self.recipe.config.classes)
        scene, roll = self.scenes.get(clip), rng.random()
        if scene is None or roll < r.null_share:
            return "", none
        main = scene.main
        number = r.config.classes.index(main.motion)
        if roll < r.null_share + r.class_share:
            return "", number
        if rng.random() < r.brief_share:
            text = captions.brief(rng, color=main.color, shape=main.shape, motion=main.motion)
        else:
            text = scene.caption(rng)
        if rng.random() < 0.5:
            text = " ".join(w for w in text.split() if rng.random() >= r.word_loss)
        return text, number if rng.random() < 0.05 else none

    @torch.inference_mode()
    def samples(self, out: Path, step: int) -> None:
        """Bits on held-out clips, and a strip of generated ones."""
        self.eval()
        if not self.held_out:
            return
        none = len(self.recipe.config.classes)
        row: dict[str, float] = {"step": step}
        for name in ("caption", "class", "null"):
            parts = []
            for part in torch.tensor(self.held_out[:512], dtype=torch.int64).split(32):
                scenes = [self.scenes[int(i)] for i in part]
                texts = [s.caption() if name == "caption" else "" for s in scenes]
                classes = [
                    self.recipe.config.classes.index(s.main.motion) if name == "class" else none
                    for s in scenes
                ]
                parts.append(self.bits(part, texts, torch.tensor(classes)))
            bits = torch.cat(parts)
            row[name] = float(bits.mean())
            row |= {f"{name}_{k}": float(v) for k, v in _by_register(bits).items()}
        with (out / "validation.jsonl").open("a", encoding="utf-8") as f:
            f.write(json.dumps({k: round(v, 4) for k, v in row.items()}) + "\n")
        tokens = self.prior.generate(SHOWN, seed=0)
        save_strip(out / f"samples-{step:06d}.png", list(self.frozen[0].decode(tokens)))


def _by_register(bits: Tensor) -> dict[str, Tensor]:
    """Bits per id `[B,K,t]`, averaged over registers 0, 1, 2-3, 4-7, …"""
    bits = bits.detach()
    edges = [0, *(1 << i for i in range(20) if 1 << i < bits.shape[1]), bits.shape[1]]
    return {f"k{b}": bits[:, a:b].mean() for a, b in itertools.pairwise(edges)}


@torch.no_grad()
def _initialize(prior: Prior) -> None:
    """Matrices at fan-in^-1/2, those that end a branch at a quarter of that, and the head small:
    training starts at the loss of a uniform guess."""
    branch_ends: Iterable[str] = ("proj.weight", "fc2.weight")
    for name, p in prior.named_parameters():
        if ".blocks." in name and p.ndim == 2:
            scale = 0.25 if name.endswith(tuple(branch_ends)) else 1.0
            nn.init.normal_(p, std=scale * p.shape[1] ** -0.5)
        elif name.endswith("context_in.weight"):
            nn.init.normal_(p, std=p.shape[1] ** -0.5)
        elif name.startswith("network.head."):
            nn.init.normal_(p, std=0.005)
        elif name.endswith(("positions", "start", "null_context", "class_embedding.weight")):
            nn.init.normal_(p, std=0.3)
