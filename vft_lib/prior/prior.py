"""Start here for words to tokens: the autoregressive prior.

    generate: caption -> text states -> ids, one after another, time-first
    refine:   the same, continuing ids that are there
    surprise: how many bits each id of a clip carries

`order.py` says in which order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.prior import PriorConfig
from ..errors import VftError
from ..tokenizer.parts import Progress, part_of
from ..tokenizer.tokenizer import Tokenizer
from ..tokens import Tokens
from ..transformer.graphs import Compiled, Graphs, Pace
from .checks import (
    check_bound,
    check_budget,
    check_even,
    check_frames,
    check_tokens,
    class_number,
    count_clips,
    held,
)
from .network import Cache, Condition, PriorNetwork
from .order import rows_of, time_first, to_grid, windows
from .sampling import AHEAD, Sampler, seeds_of
from .text import TextEncoder
from .umt5 import prepare_states
from .writing import write_ids


class Prior(nn.Module):
    """A prior of one checkpoint. Build it with :func:`vft_lib.load_prior`.

    `fingerprint` names its weights. `config.tokenizer` says whose ids it writes; :meth:`bind`
    checks a tokenizer against that.
    """

    def __init__(self, config: PriorConfig, fingerprint: str = "", ops: Any = nn) -> None:
        super().__init__()
        self.config, self.fingerprint = config, fingerprint
        self.network = PriorNetwork(config, ops)
        encoder = config.text_encoder
        self.text = None if encoder is None else TextEncoder(encoder, ops)
        self.compiled: Compiled | None = None
        self.graphs = Graphs()
        """The step of one id as a CUDA graph; `graphs.use` is its switch."""
        self._device: torch.device | None = None

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device or self.network.positions.device

    @device.setter
    def device(self, device: torch.device | None) -> None:
        self._device = device

    @property
    def dtype(self) -> torch.dtype:
        return self.network.positions.dtype

    # ------------------------------------------------------------------ words -> tokens

    def generate(
        self, caption: str | Sequence[str] | None = None, *, budget: int | None = None,
        class_name: str | Sequence[str] | None = None, states: Tensor | None = None,
        mask: Tensor | None = None, frames: int | None = None, count: int | None = None,
        seed: int | Sequence[int] = 0, guidance: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None, top_p: float | None = None,
        progress: Progress | None = None, partial: Callable[[Tokens], None] | None = None,
    ) -> Tokens:  # fmt: skip
        """Write tokens `[B,t,budget]` for a caption, a class, or neither (B: how many are given;
        `count` clips of one condition).

        `states` `[B,S,ctx_dim]` and `mask` `[B,S]` are text states of an encoder of your own, in
        place of `caption`. `budget` defaults to the largest, `frames` to the longest clip,
        `guidance` (1: none) to what suits the budget, `temperature` (0: the likeliest id) to what
        suits the prior.
        Every clip draws from its own `seed`; one given seed serves clip i as seed + i. Its ids
        are the same alone and anywhere in a batch.
        `progress(done, total)` is called after every id, raise in it to cancel; `partial(tokens)`
        whenever all latent frames have got one more register. Raises VftError for what this prior
        cannot do.
        """
        c = self.config
        budget = self.check_budget(c.registers if budget is None else budget)
        frames = check_frames(c, frames)
        captions, classes = _listed(caption), _listed(class_name)
        batch = self._count(captions, classes, states, count)
        sampler = self._sampler(batch, seed, temperature, top_k, top_p)
        tokens = self._blank(batch, frames)
        unknown = torch.full((*tokens.ids.shape[:2], budget), -1)
        ids = self._write(
            tokens, unknown, captions, classes, states, mask, guidance, sampler, progress, partial
        )
        return dataclasses.replace(tokens, ids=ids)

    def refine(
        self, tokens: Tokens, budget: int | None = None, *,
        caption: str | Sequence[str] | None = None, class_name: str | Sequence[str] | None = None,
        states: Tensor | None = None, mask: Tensor | None = None,
        seed: int | Sequence[int] = 0, guidance: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None, top_p: float | None = None,
        progress: Progress | None = None, partial: Callable[[Tokens], None] | None = None,
    ) -> Tokens:  # fmt: skip
        """Go on from coarse `tokens` to `budget`: plausible detail for them, what is there stays,
        of every latent frame as much as it holds.
        A long clip is refined chunk by chunk, each knowing the latent frame before it. The other
        arguments are :meth:`generate`'s; `partial` is called for clips of one chunk only."""
        c = self.config
        budget = self.check_budget(c.registers if budget is None else budget)
        self.check_tokens(tokens)
        if budget < tokens.budget:
            raise VftError(
                f"these tokens hold {held(tokens)} per latent frame already; choose a budget of "
                f"{tokens.budget} to {c.registers}, or truncate them"
            )
        captions, classes = _listed(caption), _listed(class_name)
        self._count(captions, classes, states, len(tokens))
        sampler = self._sampler(len(tokens), seed, temperature, top_k, top_p)
        parts = windows(c, tokens)
        ids = F.pad(tokens.ids, (0, budget - tokens.budget), value=-1)  # (B, t, budget)
        for i, w in enumerate(parts):  # each finds the latent frame before it refined already
            here = slice(w.start, w.start + w.rows)
            ids[:, here] = self._write(
                tokens, ids[:, here], captions, classes, states, mask, guidance, sampler,
                part_of(progress, i, len(parts)), partial if len(parts) == 1 else None,
            )  # fmt: skip
        return tokens.with_ids(ids, [budget] * len(tokens.rows))

    @torch.inference_mode()
    def surprise(
        self, tokens: Tokens, *, caption: str | Sequence[str] | None = None,
        class_name: str | Sequence[str] | None = None, progress: Progress | None = None,
    ) -> Tensor:  # fmt: skip
        """How unexpected each id is: -log2 p(id | ids before it) `[B,t,k]` float32, in bits. Chunks
        of a long clip know the latent frame before. Registers beyond the last count as that one.
        `progress(done, total)` is called after every chunk, raise in it to cancel.
        Raises VftError for latent frames of different budgets: what is missing of one is among
        the ids before another's."""
        check_even(tokens)
        beyond = max(0, tokens.budget - self.config.registers)
        tokens = tokens.truncate(self.config.registers) if beyond else tokens
        self.check_tokens(tokens)
        captions, classes = _listed(caption), _listed(class_name)
        batch = self._count(captions, classes, None, len(tokens))
        words = self.condition(batch, captions, classes)
        rows = []
        parts = windows(self.config, tokens)
        for i, w in enumerate(parts):
            condition = self.network.over(words, w.rows)
            flat = time_first(tokens.ids[:, w.start : w.start + w.rows]).to(self.device)
            x = self.network.inputs(flat[:, :-1], condition)
            hidden = self.network.trunk(x, condition)
            nats = self.network.head.nll(hidden.flatten(0, 1), flat.flatten())
            rows.append(to_grid(nats.view_as(flat) / math.log(2), w.rows)[:, w.known :].cpu())
            if progress is not None:
                progress(i + 1, len(parts))
        bits = torch.cat(rows, dim=1)
        return torch.cat([bits, bits[:, :, -1:].expand(-1, -1, beyond)], dim=2)

    # ------------------------------------------------------------------ the loop

    @torch.inference_mode()
    def sample(
        self, condition: Condition, length: int, *, guidance: float = 1.0,
        choose: Sampler | None = None, prefix: Tensor | None = None,
        known: Tensor | None = None,
        on_id: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:  # fmt: skip
        """Flat ids `[B,length]`, the first of them `prefix` `[B,m]`; where `known` `[B,length]` is
        not negative, its id is taken in place of the chosen one.

        With `guidance` other than 1 the condition holds 2B rows, the second half null, and both
        run as one batch. `choose` defaults to the likeliest id. `on_id(done, flat ids)` is called
        after each; on a GPU, whose queue holds a few more, `flat` has what had been written when
        it is read.
        """
        batch = len(condition.start) // (1 if guidance == 1 else 2)
        choose = choose or Sampler([0] * batch, temperature=0)
        flat = torch.zeros(batch, length, dtype=torch.int64, device=self.device)
        m = 0 if prefix is None else prefix.shape[1]
        if prefix is not None:
            flat[:, :m] = prefix.to(self.device)
        if m == length:
            return flat.cpu()
        pace = Pace(self.device, AHEAD)
        ids = write_ids(self, condition, flat, m, guidance, choose, known)
        try:
            with closing(ids):
                for done in ids:
                    if on_id is not None:
                        pace()
                        on_id(done, flat)
            return flat.cpu()
        finally:
            self.graphs.clear()  # they read this call's cache

    def step(self, ids: Tensor, condition: Condition, cache: Cache, at: int | Tensor) -> Tensor:
        """One id a row `[B]`, chosen for position at-1 -> what the head reads at `at` `[B,1,d]`."""
        return self.network.trunk(self.network.next_input(ids, condition, at), condition, cache, at)

    def compile_step(self, backend: str | Callable[..., Any] = "inductor") -> Prior:
        """Compile the step of one id from now on (torch.compile). Shapes never change
        from step to step: it is compiled once for each batch size and budget, which takes a while,
        so it pays for many clips. The ids are the same. Returns self. Where it cannot be compiled
        it runs as written, and `compiled.problem` says why."""
        self.compiled = Compiled(self.step, backend)
        return self

    def _write(
        self, tokens: Tokens, ids: Tensor, captions: list[str] | None, classes: list[str] | None,
        states: Tensor | None, mask: Tensor | None, guidance: float | None, sampler: Sampler,
        progress: Progress | None, partial: Callable[[Tokens], None] | None,
    ) -> Tensor:  # fmt: skip
        """`ids` `[B,t,budget]` of a sequence of the clips `tokens`, written where they are -1; each
        knows what is there of coarser registers, and of its own in earlier latent frames."""
        c, (batch, t, budget) = self.config, ids.shape
        scale = c.guidance_for(budget) if guidance is None else guidance
        if not math.isfinite(scale):
            raise VftError(f"guidance is {scale}; choose a number, 1 for none")
        with torch.inference_mode():
            condition = self.condition(batch, captions, classes, states, mask, guided=scale != 1)
            condition = self.network.over(condition, t)
        total = budget * t

        def on_id(done: int, flat: Tensor) -> None:
            if partial is not None and done % t == 0:
                grid = to_grid(flat[:, :done], t).cpu().clone()
                partial(tokens.with_ids(grid, [done // t] * t))
            if progress is not None:
                progress(done, total)

        whole = int((ids >= 0).all(0).all(0).long().cumprod(0).sum())  # registers known throughout
        known = time_first(ids)
        flat = self.sample(
            condition, total, guidance=scale, choose=sampler, prefix=known[:, : whole * t],
            known=known if (known[:, whole * t :] >= 0).any() else None, on_id=on_id,
        )  # fmt: skip
        return to_grid(flat, t).clone()

    def condition(
        self, batch: int, captions: list[str] | None = None, classes: list[str] | None = None,
        states: Tensor | None = None, mask: Tensor | None = None, guided: bool = False,
    ) -> Condition:  # fmt: skip
        """Captions (or states) and class names for `batch` clips -> what the network takes; one
        caption or class serves them all."""
        numbers = None
        if classes is not None:
            numbers = torch.tensor([class_number(self.config, name) for name in classes]).expand(
                batch
            )
        rows = None
        if captions is not None:
            assert self.text is not None
            states, mask = self.text(captions, rows=self.config.n_ctx_null)
        elif states is not None:
            states, mask = prepare_states(states, mask, self.config.max_text_len)
            # In a batch the null text is as long as the clip's own text would make it alone.
            place = torch.arange(1, states.shape[1] + 1)
            rows = (place.to(mask.device) * mask).amax(1)
        if states is not None and mask is not None:
            states, mask = states.expand(batch, -1, -1), mask.expand(batch, -1)
            rows = None if rows is None else rows.expand(batch)
        return self.network.condition(batch, numbers, states, mask, null_rows=rows, guided=guided)

    # ------------------------------------------------------------------ checks

    def bind(self, tokenizer: Tokenizer) -> Prior:
        """Take note of the tokenizer that these ids are for; VftError if it is another one than
        this prior was trained on. Returns self. A published prior only knows its tokenizer's name,
        and can write tokens once it has been bound."""
        c, t = self.config, tokenizer.config
        mine, other = (n.rsplit("/", 1)[-1].lower() for n in (c.tokenizer, t.name))
        known = c.tokenizer_fingerprint
        if mine != other or (known and known != tokenizer.fingerprint) or c.vocab != t.vocab:
            raise VftError(
                f"prior {c.name!r} writes ids of tokenizer {c.tokenizer!r}"
                + f" ({known})" * bool(known)
                + f", this one is {t.name!r} ({tokenizer.fingerprint}): they do not belong together"
            )
        self.config = dataclasses.replace(
            c, tokenizer=t.name, tokenizer_fingerprint=tokenizer.fingerprint, size=t.size, fps=t.fps
        )
        return self

    def check_tokens(self, tokens: Tokens) -> None:
        """VftError unless these are ids that this prior knows, in a number it can take."""
        check_tokens(self.config, tokens)

    def check_budget(self, budget: int) -> int:
        """`budget`, or VftError if it is not 1 .. K."""
        return check_budget(self.config, budget)

    def _count(
        self, captions: list[str] | None, classes: list[str] | None, states: Tensor | None,
        count: int | None,
    ) -> int:  # fmt: skip
        return count_clips(self.config, self.text is not None, captions, classes, states, count)

    def _sampler(
        self, batch: int, seed: int | Sequence[int], temperature: float | None,
        top_k: int | None, top_p: float | None,
    ) -> Sampler:  # fmt: skip
        t = self.config.temperature if temperature is None else temperature
        return Sampler(seeds_of(seed, batch), temperature=t, top_k=top_k, top_p=top_p)

    def _blank(self, batch: int, frames: int) -> Tokens:
        """Tokens of budget 0, to be continued."""
        c = self.config
        check_bound(c)
        return Tokens(
            ids=torch.zeros(batch, rows_of(c, frames), 0, dtype=torch.int64), tokenizer=c.tokenizer,
            fingerprint=c.tokenizer_fingerprint, frames=frames, fps=c.fps, size=(c.size, c.size),
        )  # fmt: skip


def bits_budget(bits: Tensor, share: float) -> int:
    """The smallest budget that keeps at least `share` of a clip's information: bits `[t,k]`."""
    if not 0 < share <= 1:
        raise VftError(f"the share of bits to keep is {share}; choose more than 0, at most 1")
    kept = bits.sum(0).cumsum(0)
    return int((kept < share * kept[-1] * (1 - 1e-6)).sum()) + 1


def _listed(value: str | Sequence[str] | None) -> list[str] | None:
    return [value] if isinstance(value, str) else None if value is None else list(value)
