"""The velocity of one chunk's latents under its ids, with all that is the same for every step done
once: registers prepared and merged, both passes of guidance in one batch, CUDA graphs; and what is
the same for every chunk too: modulation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..transformer.graphs import Graphs, Outputs
from ..transformer.offload import offloaded
from .decoder import Decoder, Modulation
from .flow import Velocity
from .sampling import Sampling

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

ONE_BATCH = 0.1  # guidance runs as one batch if that takes at most this share of tokens more
AT_ONCE = 64  # timesteps whose modulation is held


@dataclass
class Passes:
    """Passes of the flow decoder so far, for one clip each: how many its steps stand for, with two
    a velocity under guidance, and how many did `run`. `previewed`: chunks whose pixels the preview
    decoder made."""

    asked: int = 0
    run: int = 0
    previewed: int = 0

    def since(self, before: Passes) -> Passes:
        return Passes(
            self.asked - before.asked, self.run - before.run, self.previewed - before.previewed
        )

    def __str__(self) -> str:
        count = f"{self.run} of {self.asked}" if self.run < self.asked else f"{self.run}"
        text = f"{count} {'pass' if self.asked == 1 else 'passes'}"
        return f"{text}, preview decoder" if self.previewed else text


class Modulations:
    """What :meth:`Decoder.modulate` makes of the times of a schedule. Where its weights stay in the
    host's memory, so does what they gave last: the next chunk, and the next clip of the same
    schedule, do not bring them over again."""

    def __init__(self) -> None:
        self.computed = 0
        """How many times they were computed, not remembered."""
        self._key: tuple[object, ...] = ()
        self._kept: list[Tensor] = []

    def of(
        self, decoder: Decoder, times: Sequence[float], device: torch.device, dtype: torch.dtype
    ) -> Modulation:
        """Of at most `AT_ONCE` times, on `device`."""
        weights = tuple(layer.state() for layer in offloaded(decoder).values())
        key = (tuple(times), device, dtype, weights)
        head = decoder.head_modulation is not None
        if weights and key == self._key:
            return Modulation.of([t.to(device) for t in self._kept], head)
        made = decoder.modulate(torch.tensor(times, device=device), dtype)
        self.computed += 1
        self._key, self._kept = (), []
        if weights:
            # On `meta` there are no numbers to bring home.
            home = device if device.type == "meta" else torch.device("cpu")
            self._key, self._kept = key, [t.to(home) for t in made.tensors()]
        return made


def modulation_memory(decoder: Decoder) -> int:
    """Bytes that modulation takes of a device at most: the vectors of `AT_ONCE` times, and the
    weights of one layer that does not stay there; 0 where all of them do."""
    layers = [layer.layer for layer in offloaded(decoder).values()]
    weights = [[*layer.parameters()] for layer in layers]
    vectors = sum(len(w[0]) for w in weights) * decoder.from_codes.weight.itemsize
    return AT_ONCE * vectors + max((sum(p.nbytes for p in w) for w in weights), default=0)


def chunk_velocity(
    tok: Tokenizer, ids: Tensor, shape: torch.Size, sampling: Sampling, pinned: Tensor | None,
    keep: Tensor | None, low_memory: bool,
) -> Velocity:  # fmt: skip
    """For ids `[B,t,k]` and latents of `shape` (B,C,t,h,w), with `sampling` settled; the other
    arguments as in `Tokenizer.sample_latents`."""
    b, t, k = ids.shape
    decoder = tok.decoder
    times = sampling.schedule().asked()
    guided = [sampling.guided_at(time) for time in times]
    tok.passes.asked += b * len(times) * (1 if sampling.guidance == 1 else 2)
    codes = tok.fsq.codes(ids.to(tok.device).clamp_min(0))  # -1: not there, and masked
    codes = nn.functional.pad(codes, (0, 0, 0, tok.config.registers - k))  # beyond k: masked
    keep = torch.full((b,), k) if keep is None else keep.cpu()
    most = int(keep.max())  # of a chunk: what other chunks hold costs this one nothing
    span = tok.config.encoder.patch_size[0]  # latent frames per row of ids
    prefix = torch.full((b,), 0 if pinned is None else pinned.shape[2] // span)
    keep, prefix = keep.to(tok.device), prefix.to(tok.device)
    no = torch.zeros_like(prefix, dtype=torch.bool)
    full = decoder.prepare(codes, keep, prefix, no)
    registers, weight = decoder.merge(full, most)
    patches = math.prod(shape[2:]) // (t * math.prod(decoder.patch_size[1:]) * span)
    both = short = registers
    short_weight, together = 1, False
    if any(guided):
        null = decoder.prepare(codes, keep, prefix, ~no)
        short, short_weight = decoder.merge(null, 0)
        more = registers.shape[2] - short.shape[2]
        together = not low_memory and more <= ONE_BATCH * (patches + short.shape[2])
        if together:  # merged alike: beyond the largest budget the null's slots are equal too
            both = torch.cat([registers, null[:, :, : registers.shape[2]]])
    # The same for all clips, so computed once; in parts, as it takes memory.
    index = {time: i for i, time in enumerate(times)}
    modulation: dict[int, Modulation] = {}

    def modulate(time: float) -> Modulation:
        part, i = divmod(index[time], AT_ONCE)
        if part not in modulation:
            modulation.clear()
            some = times[part * AT_ONCE :][:AT_ONCE]
            modulation[part] = tok.modulations.of(decoder, some, tok.device, registers.dtype)
        return modulation[part].at(i)

    step = decoder if tok.compiled is None else tok.compiled

    def one(x: Tensor, first: Tensor, *modulation: Tensor) -> Outputs:
        m = Modulation.of(modulation, decoder.head_modulation is not None)
        return (step(x, m, first, weight),)

    def two(x: Tensor, first: Tensor, second: Tensor, *modulation: Tensor) -> Outputs:
        m = Modulation.of(modulation, decoder.head_modulation is not None)
        if not together:
            return step(x, m, first, weight), step(x, m, second, short_weight)
        return step(torch.cat([x, x]), m, first, weight).chunk(2)

    rows = (patches + both.shape[2]) * len(both) * t
    graphs = None if low_memory else tok.graphs.begin(decoder, tok.device, rows)
    run = Graphs.plain if graphs is None else graphs.run
    key = id(tok.compiled), together, weight, short_weight, decoder.trunk.backend

    def velocity(x: Tensor, time: float) -> tuple[Tensor, Tensor | None]:
        m = modulate(time).tensors()
        tok.passes.run += b * (1 + sampling.guided_at(time))
        if not sampling.guided_at(time):
            return run((False, *key), one, x, registers, *m)[0], None
        return run((True, *key), two, x, both, short, *m)  # type: ignore[return-value]

    return velocity
