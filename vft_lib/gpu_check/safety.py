"""The part "safety": what must hold on a device whose memory others want, too."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..tokenizer.sampling import Sampling
from ..tokenizer.tokenizer import Tokenizer
from .compare import error_of
from .models import (
    GB,
    GUIDANCE,
    latents_of,
    peak_of,
    tiny_config,
    tokenizer,
    tokens_of,
    with_graphs,
)
from .rows import Measure, Place, Row


class Cancelled(Exception):
    """What a user's cancel raises."""


def safety(place: Place) -> Iterator[tuple[str, Measure]]:
    yield "the same twice", lambda: _twice(place)
    yield "cancel", lambda: _cancel(place)
    yield "out of memory", lambda: _out_of_memory(place)
    yield "weights in parts", lambda: _in_parts(place)
    yield "memory returned", lambda: _returned(place)


def _twice(place: Place) -> list[Row]:
    tok = tokenizer(place, "k600")
    rows = []
    for use in ("off", "on"):
        with_graphs(tok, place, use)
        tokens = tokens_of(tok, place, 2, 32)
        a, b = (tok.decode(tokens, steps=6, guidance=GUIDANCE, seed=3) for _ in range(2))
        rows.append(Row(f"two decodes, graphs {use}: the same bits", float((a != b).float().mean()),
                        "", "0", torch.equal(a, b)))  # fmt: skip
    alone = tok.decode(tokens_of(tok, place, 1, 32), steps=6, guidance=GUIDANCE, seed=3)
    first = tokens_of(tok, place, 2, 32)
    same = torch.equal(first.ids[:1], tokens_of(tok, place, 1, 32).ids)
    if same:
        rows.append(Row("a clip alone against in a batch of two", error_of(a[:1], alone),
                        note="16 bits, sums in another order"))  # fmt: skip
    return rows


def _cancel(place: Place) -> list[Row]:
    tok = tokenizer(place, "k600")
    tokens = tokens_of(tok, place, 1, 32)
    before = _allocated(place)
    steps = []

    def progress(done: int, total: int) -> None:
        steps.append(done)
        if done == 5:
            raise Cancelled

    try:
        tok.decode(tokens, steps=30, guidance=GUIDANCE, progress=progress)
        cancelled = False
    except Cancelled:
        cancelled = True
    gc.collect()
    left = _allocated(place) - before
    return [
        Row("cancel in step 5 of 30", float(steps[-1]), "steps", "5", cancelled and steps[-1] == 5),
        Row("memory that a cancel leaves", left / GB, "GB", "≤ 0.05",
            left <= 0.05 * GB if place.cuda else None),
    ]  # fmt: skip


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def _out_of_memory(place: Place) -> list[Row]:
    """Four clips where there is memory for two or so: smaller batches, the same pictures."""
    tok = tokenizer(place, "k600")
    with_graphs(tok, place, "off")
    tok.limit_memory(None)
    clips = 4
    tokens = tokens_of(tok, place, clips, 32)

    def run() -> Tensor:
        return tok.decode(tokens, steps=2, guidance=GUIDANCE, seed=3)

    plain = run()
    if not place.cuda:
        return [Row("out of memory", note="a CPU's allocator takes no limit here")]
    one = tokens_of(tok, place, 1, 32)
    most = peak_of(place, run) * GB
    least = peak_of(place, lambda: tok.decode(one, steps=2, guidance=GUIDANCE, seed=3)) * GB
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(place.device).total_memory
    limit = least + 0.5 * (most - least)
    heard = _Warnings()
    logging.getLogger("vft_lib").addHandler(heard)
    torch.cuda.set_per_process_memory_fraction(limit / total)
    try:
        less = run()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        logging.getLogger("vft_lib").removeHandler(heard)
    tried = [t for t in heard.texts if "out of memory" in t]
    return [
        Row("four clips in half of their memory: retries", float(len(tried)), "", "≥ 1",
            len(tried) > 0, f"{limit / GB:.2f} GB of {most / GB:.2f}; " + "; ".join(tried)),
        Row("four clips in half of their memory: off by", error_of(less, plain), "", "≤ 0.05",
            error_of(less, plain) <= 0.05),
    ]  # fmt: skip


# ------------------------------------------------------------------ weights elsewhere


class _Moved:
    """Brings weights to where they are used, as ComfyUI's layers do."""

    weight: Any
    bias: Any

    def here(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        bias = None if self.bias is None else self.bias.to(x.device, x.dtype)
        return self.weight.to(x.device, x.dtype), bias


class _Linear(_Moved, nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *self.here(x))


class _Conv2d(_Moved, nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, *self.here(x))


class _Conv3d(_Moved, nn.Conv3d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, *self.here(x))


class _LayerNorm(_Moved, nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, *self.here(x), self.eps)


OPS = SimpleNamespace(Linear=_Linear, Conv2d=_Conv2d, Conv3d=_Conv3d, LayerNorm=_LayerNorm)


def _in_parts(place: Place) -> list[Row]:
    """Every other block's weights on the CPU, brought over when they are used."""
    plain = tokenizer(place, "k600")
    with_graphs(plain, place, "off")
    config = tiny_config() if place.tiny else plain.config
    with torch.device("meta"):
        tok = Tokenizer(config, "made-up", OPS)
    tok.load_state_dict(plain.state_dict(), assign=True)
    tok.eval().requires_grad_(False)
    tok.use_attention("sdpa")
    expected = latents_of(plain, place, 1, 32, 3)
    moved = 0
    for trunk in (tok.decoder.trunk, tok.encoder.trunk):
        for i, block in enumerate(trunk.blocks):
            if i % 2:
                block.to("cpu")
                moved += 1
    with_graphs(tok, place)
    tok.device = place.device
    got = latents_of(tok, place, 1, 32, 3)
    video = torch.rand(1, 3, config.chunk_frames, config.size, config.size) * 2 - 1
    ids = [t.encode(video).ids for t in (tok, plain)]
    return [
        Row(f"{moved} blocks' weights on the CPU: the decoder off by", error_of(got, expected), "",
            "0", torch.equal(got, expected), f"{tok.graphs.captured} captured"),
        Row(f"{moved} blocks' weights on the CPU: other ids", float(
            (ids[0] != ids[1]).float().mean()), "", "0", torch.equal(*ids)),
    ]  # fmt: skip


def _allocated(place: Place) -> int:
    return torch.cuda.memory_allocated() if place.cuda else 0


def _returned(place: Place) -> list[Row]:
    """After a model has gone: what it leaves on the device."""
    gc.collect()
    before = _allocated(place)
    tok = tokenizer(place, "k600")
    with_graphs(tok, place, "on")
    held = _allocated(place) - before
    noise = torch.randn(1, *tok.config.latent_shape)
    ids = tokens_of(tok, place, 1, 32).ids
    tok.sample_latents(ids, noise, Sampling(5, GUIDANCE))
    captured = tok.graphs.captured
    tok.to("cpu")
    tok.graphs.begin(tok.decoder, torch.device("cpu"), 1)  # as its next use would
    gc.collect()
    left = _allocated(place) - before
    return [Row("memory left after unloading", left / GB, "GB", "≤ 0.1",
                left <= 0.1 * GB if place.cuda else None,
                f"of {held / GB:.2f} GB; {captured} steps had been captured")]  # fmt: skip
