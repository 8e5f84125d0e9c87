"""Training a prior: next-id prediction on procedural clips and footage, or on shards of tokens.

Procedural clips come with captions, worded anew at every draw, and with their motion as the class;
footage has neither and teaches the unconditional prior. Clips of shards have the captions that they
were tokenized with, or none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..config.prior import PriorConfig
from ..errors import VftError
from ..footage.footage import host_rng
from ..measure.sheets import save_strip
from ..prior.order import time_first
from ..prior.prior import Prior
from ..prior.text import split_words
from ..shards.batches import Batches, longest, words_of
from ..shards.dataset import Index
from ..shards.formats import Record
from ..tokenizer.tokenizer import Tokenizer
from ..world import captions, world
from .dataset import Sequences
from .loop import Schedule, Task

HELD_OUT = 32  # of so many clips, the last is kept for validation
SHOWN = (
    "a red ball bounces to the right", "a green star moves up", "a big blue square spins on sand",
    "a yellow heart shrinks while the camera pans left",
)  # fmt: skip


@dataclass(frozen=True)
class PriorRecipe:
    """`clips` are encoded once: worlds of one chunk, of the longest sequence, footage.
    Every step reads clips of one length, `long_share` of the steps the longest or what a part of
    them begins with; of `batch` clips if they are of one chunk, fewer if they are longer. It reads
    all registers, or with probability `coarse_share` the first half or quarter:
    they say most of what a caption says, for a fraction of the time.
    `null_share` of the procedural clips are trained without a condition (for guidance),
    `class_share` with the class alone, the rest with a caption, `brief_share` of those of a few
    words. In half of the captions a word is lost with probability `word_loss`. `dropout` is in
    every residual branch."""

    config: PriorConfig
    schedule: Schedule
    clips: int = 8192
    long_share: float = 0.4
    coarse_share: float = 0.5
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
        self, recipe: PriorRecipe, tokenizer: Tokenizer, data: Sequences | Batches
    ) -> None:  # fmt: skip
        super().__init__()
        self.recipe = recipe
        self.frozen = (tokenizer.eval().requires_grad_(False),)  # in a tuple: not a submodule
        self.prior = Prior(recipe.config).bind(tokenizer)
        self._take(data)
        _initialize(self.prior)
        for module in self.prior.network.modules():
            if isinstance(module, nn.Dropout):
                module.p = recipe.dropout

    def _take(self, data: Any) -> None:
        self.sequences: Sequences = data
        numbers = data.ids.contiguous().numpy().tobytes()
        self.data = f" of ids {hashlib.sha256(numbers).hexdigest()[:16]}"
        trained = (torch.arange(len(data)) + 1) % HELD_OUT != 0
        self.held_out = [
            int(i) for i in torch.nonzero(~trained)[:, 0] if data.scenes[i] is not None
        ]
        whole = data.one_act()
        self.pools = {
            t: pool for t in self.recipe.config.lengths
            if len(pool := torch.nonzero(
                trained & ((data.rows == t) | ((data.rows > t) & whole)))[:, 0])
        }  # fmt: skip
        """Training clips that can be read over so many latent frames."""

    def start_from(self, prior: Prior) -> None:
        """Take the weights of a trained prior, of the same tokenizer or of one that this one's
        training began with: their ids mean nearly the same."""
        mine, other = self.prior.config, prior.config
        free = ("name", "tokenizer", "tokenizer_fingerprint", "guidance")
        same = {name: getattr(other, name) for name in free}
        text, its, more = mine.text_encoder, other.text_encoder, 0
        if text and its and text.words[: len(its.words)] == its.words:
            more = len(text.words) - len(its.words)
            same["text_encoder"] = dataclasses.replace(text, words=its.words)
        if dataclasses.replace(mine, **same) != other:
            raise VftError(f"--init: {other.name} and {mine.name} are not built alike")
        weights = prior.state_dict()
        if more:  # a word that it did not know begins as an unknown one
            table = weights["text.words"]
            weights["text.words"] = torch.cat([table, table[-1:].expand(more, -1)])
        self.prior.load_state_dict(weights)

    exact = ("network.head.",)

    def hidden_matrices(self) -> list[nn.Parameter]:
        return [p for n, p in self.named_parameters() if ".blocks." in n and p.ndim == 2]

    def forward(
        self, step: int, generator: torch.Generator, progress: float
    ) -> dict[str, Tensor]:  # fmt: skip
        r = self.recipe
        torch.manual_seed(
            generator.initial_seed()
        )  # of dropout: a resumed run takes the same steps
        rng = host_rng(generator)
        ids, texts, classes = self.draw(step, rng)
        budget = r.config.registers
        if rng.random() < r.coarse_share:
            budget = max(1, budget // int(rng.choice((2, 4))))
        bits = self.bits(ids[:, :, :budget], texts, torch.tensor(classes), forget=rng)
        out = {"loss": bits.mean() * math.log(2)} | _by_register(bits)
        return out | {f"t{ids.shape[1]}": bits.detach().mean()}

    def draw(
        self, step: int, rng: np.random.Generator
    ) -> tuple[Tensor, list[str], list[int]]:  # fmt: skip
        """What a step reads: ids `[B,t,K]`, captions ("": none), numbers of classes."""
        t = next(iter(self.pools))
        if len(self.pools) > 1 and rng.random() < self.recipe.long_share:
            longer = list(self.pools)[1:]
            t = longer[-1] if rng.random() < 0.5 else int(rng.choice(longer))
        count = max(1, round(self.recipe.schedule.batch * min(self.pools) / t))
        pool = self.pools[t]
        index = pool[torch.from_numpy(rng.integers(len(pool), size=count))]
        texts, classes = zip(*(self._condition(rng, int(i)) for i in index))
        return self.sequences.ids[index, :t], list(texts), list(classes)

    def bits(
        self, ids: Tensor, texts: list[str], classes: Tensor,
        forget: np.random.Generator | None = None,
    ) -> Tensor:  # fmt: skip
        """-log2 p of ids `[B,t,k]` -> `[B,k,t]`, in bits."""
        network, c = self.prior.network, self.prior.config
        device, t = self.prior.device, ids.shape[1]
        flat = time_first(ids.long()).to(device)
        assert self.prior.text is not None
        words = sum(len(split_words(t)) for t in texts)
        uniform = None if forget is None else torch.from_numpy(forget.random(words, np.float32))
        states, mask = self.prior.text(texts, forget=uniform, rows=c.n_ctx_null)
        condition = network.over(network.condition(len(flat), classes, states, mask), t)
        hidden = network.trunk(network.inputs(flat[:, :-1], condition), condition)
        nats = network.head.nll(hidden.flatten(0, 1), flat.flatten())
        return (nats / math.log(2)).view(len(flat), -1, t)

    def _condition(self, rng: np.random.Generator, clip: int) -> tuple[str, int]:
        """(caption or "", class number) of a draw."""
        r, none = self.recipe, len(self.recipe.config.classes)
        scene, roll = self.sequences.scenes[clip], rng.random()
        if scene is None or roll < r.null_share:
            return "", none
        main = scene.main
        number = r.config.classes.index(main.motion)
        if main.then:  # neither a class nor a few words say what happens later
            number = none
        elif roll < r.null_share + r.class_share:
            return "", number
        if rng.random() < r.brief_share and not main.then:
            text = captions.brief(rng, color=main.color, shape=main.shape, motion=main.motion)
        else:
            text = scene.caption(rng)
        return self._lossy(rng, text), number if rng.random() < 0.05 else none

    def _lossy(self, rng: np.random.Generator, text: str) -> str:
        """Half of the time, without some of its words."""
        if rng.random() < 0.5:
            return " ".join(w for w in text.split() if rng.random() >= self.recipe.word_loss)
        return text

    @torch.inference_mode()
    def samples(self, out: Path, step: int) -> None:
        """Bits on held-out clips, and a strip of generated ones."""
        self.eval()
        if not self.held_out:
            return
        none, data = len(self.recipe.config.classes), self.sequences
        row: dict[str, float] = {"step": step}
        for t in {int(data.rows[i]) for i in self.held_out}:
            some = torch.tensor([i for i in self.held_out if int(data.rows[i]) == t][:256])
            for name in ("caption", "class", "null"):
                parts = []
                for part in some.split(32):
                    scenes = [s for i in part if (s := data.scenes[int(i)]) is not None]
                    texts = [s.caption() if name == "caption" else "" for s in scenes]
                    classes = [
                        self.recipe.config.classes.index(s.main.motion) if name == "class" else none
                        for s in scenes
                    ]
                    parts.append(self.bits(data.ids[part, :t], texts, torch.tensor(classes)))
                bits = torch.cat(parts)
                row[f"{name}_t{t}"] = float(bits.mean())
                row |= {f"{name}_t{t}_{k}": float(v) for k, v in _by_register(bits).items()}
        self._show(out, step, row, SHOWN)

    def _show(self, out: Path, step: int, row: dict[str, float], captions: Sequence[str]) -> None:
        with (out / "validation.jsonl").open("a", encoding="utf-8") as f:
            f.write(json.dumps({k: round(v, 4) for k, v in row.items()}) + "\n")
        tokens = self.prior.generate(captions, seed=0, frames=self.frozen[0].config.chunk_frames)
        save_strip(out / f"samples-{step:06d}.png", list(self.frozen[0].decode(tokens)))


class ShardsPriorTask(PriorTask):
    """The same on clips of shards, which come in batches of one length: a step reads all of it, or
    of a longer one in half of the steps a stretch that begins where a chunk does."""

    def _take(self, data: Any) -> None:
        self.batches: Batches = data
        index = data.order.index
        self.data = f" of shards {index.mark}"
        held = index.records(range(len(index.shards)), held_out=True)[:256]
        self.held_records: list[Record] = index.read(held)

    def draw(
        self, step: int, rng: np.random.Generator
    ) -> tuple[Tensor, list[str], list[int]]:  # fmt: skip
        r, c = self.recipe, self.recipe.config
        t, found = self.batches.at(step)
        if rng.random() < 0.5:
            t = int(rng.choice([n for n in c.lengths if n <= t]))
        texts, ids = [], []
        for record, _ in found:
            text = record.caption or ""
            texts.append("" if rng.random() < r.null_share else self._lossy(rng, text))
            stride = max(1, c.chunk - 1) if c.chunk else c.latent_frames  # no chunk: no overlap
            begin = stride * int(rng.integers((len(record.ids) - t) // stride + 1))
            rows = record.ids[begin : begin + t, : c.registers]
            ids.append(torch.from_numpy(rows.astype(np.int64)))
        return torch.stack(ids), texts, [len(c.classes)] * len(ids)

    @torch.inference_mode()
    def samples(self, out: Path, step: int) -> None:
        """Bits on held-out clips with their captions and without, and a strip of generated ones."""
        self.eval()
        c = self.recipe.config
        row: dict[str, float] = {"step": step}
        for t in c.lengths:
            some = [r for r in self.held_records if longest(c.lengths, len(r.ids)) == t]
            for name in ("caption", "null") if some else ():
                parts = []
                for i in range(0, len(some), 32):
                    part = some[i : i + 32]
                    ids = np.stack([r.ids[:t, : c.registers] for r in part]).astype(np.int64)
                    texts = [(r.caption or "") if name == "caption" else "" for r in part]
                    none = torch.full((len(part),), len(c.classes))
                    parts.append(self.bits(torch.from_numpy(ids), texts, none))
                row[f"{name}_t{t}"] = float(torch.cat(parts).mean())
        _, found = self.batches.at(max(0, step - 1))
        self._show(out, step, row, [record.caption or "" for record, _ in found[:4]])


def recipe_for(
    recipe: PriorRecipe, tokenizer: Tokenizer, index: Index, init: Prior | None
) -> PriorRecipe:  # fmt: skip
    """`recipe` for clips of shards: as long as they are, of the tokenizer that they were made with,
    with the words of their captions; with `init`, built like that prior, which knows more words
    afterwards. VftError where they do not go together."""
    plan, t = index.plan, tokenizer.config
    if plan.fingerprint != tokenizer.fingerprint or plan.settings.fps != t.fps:
        raise VftError(
            f"the shards hold ids of {plan.tokenizer} {plan.fingerprint} at {plan.settings.fps} "
            f"fps, this tokenizer is {t.name} {tokenizer.fingerprint} at {t.fps:g}: name theirs "
            "with --tokenizer, or tokenize anew, without --fps"
        )
    c = recipe.config if init is None else init.config
    text, words = c.text_encoder, words_of(index)
    if text is None:
        raise VftError(f"--init: {c.name} has no text encoder of its own, which could be trained")
    if init is not None:
        more = tuple(w for w in words if w not in set(text.words))
        text = dataclasses.replace(text, words=text.words + more)
        c = dataclasses.replace(c, name=f"{c.name}-tuned", text_encoder=text)
    else:
        chunk, step = t.token_frames, t.token_frames - 1
        rows, registers = chunk, min(plan.settings.budget, c.registers)
        if t.overlap:
            there = max(n for shard in index.shards for n in shard.rows)
            rows += (min(there, c.latent_frames) - chunk) // step * step
        c = dataclasses.replace(
            c, name=f"{t.name}-prior", tokenizer=t.name, vocab=t.vocab, fsq_levels=t.fsq_levels,
            latent_frames=rows, chunk=chunk if t.overlap else 0, seq_len=rows * registers,
            size=t.size, fps=t.fps, cond="text", classes=(),
            text_encoder=dataclasses.replace(text, words=words),
        )  # fmt: skip
    if plan.settings.budget < c.registers:
        raise VftError(
            f"--init: {c.name} takes {c.registers} ids a latent frame, the shards hold "
            f"{plan.settings.budget}: tokenize with a larger -k"
        )
    return dataclasses.replace(recipe, config=c)


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
