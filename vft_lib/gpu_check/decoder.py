"""The part "decoder": speed and memory of the flow decoder, the autoencoder and the encoder."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ..measure.bench import operations
from ..tokenizer.eight_bit import Storage, store_in_eight_bits
from ..tokenizer.flow import Schedule
from ..tokenizer.tokenizer import Tokenizer
from ..transformer.graphs import Use
from ..transformer.offload import device_bytes, offloaded
from .models import (
    GB,
    GUIDANCE,
    STEPS,
    bandwidth,
    latents_of,
    matmul_rate,
    peak_of,
    timed,
    tokenizer,
    tokens_of,
    with_graphs,
)
from .rows import Measure, Place, Row


def decoder(place: Place) -> Iterator[tuple[str, Measure]]:
    rates: dict[str, float] = {}

    def ceilings() -> list[Row]:
        rates["matmul"], rates["copy"] = matmul_rate(place), bandwidth(place)
        return [Row("matrix product 8192³, bf16", rates["matmul"] / 1e12, "TFLOP/s"),
                Row("copy, bytes read and written", rates["copy"] / 1e12, "TB/s")]  # fmt: skip

    yield "ceilings", ceilings
    held: list[Tokenizer] = []

    def build(size: str, storage: Storage | None = None) -> list[Row]:
        held.clear()
        tok = tokenizer(place, size)
        if storage:
            store_in_eight_bits(tok, storage)
        held.append(tok)
        return []

    def share(k: int, batch: int, target: float | None) -> list[Row]:
        return _share(place, held[0], k, batch, rates["matmul"], target)

    def chunk(k: int, batch: int, limit: float | None, what: str) -> list[Row]:
        return _chunk(place, held[0], k, batch, limit, what)

    yield "d28, bf16: building", partial(build, "d28")
    yield "d28, bf16, k = 32", partial(chunk, 32, 1, 6.0, "d28, bf16")
    yield "d28, k = 256, 4 clips", partial(share, 256, 4, 0.4)
    yield "no waiting, eager", lambda: _no_waiting(place, held[0], "off")
    yield "no waiting, graph", lambda: _no_waiting(place, held[0], "on")
    yield "d28, autoencoder and encoder", lambda: _encoding(place, held[0], "d28")
    for storage in ("int8", "fp8"):
        yield f"d28, {storage}: building", partial(build, "d28", storage)
        yield f"d28, {storage}, k = 32", partial(chunk, 32, 1, 4.5, f"d28, {storage}")
    yield "k600: building", partial(build, "k600")
    yield "k600, bf16, k = 32", partial(chunk, 32, 1, None, "k600, bf16")
    yield "k600, k = 256, 4 clips", partial(share, 256, 4, None)
    yield "k600, autoencoder and encoder", lambda: _encoding(place, held[0], "k600")
    yield "k600, bf16, k = 32, 4 clips", partial(chunk, 32, 4, None, "k600, bf16")
    # Long ones last: measured on an H200, they took half of this part's time.
    yield "d28, bf16: building again", partial(build, "d28")
    yield "d28, k = 32, 1 clip, a step", partial(share, 32, 1, None)
    yield "d28, k = 32, 4 clips, a step", partial(share, 32, 4, None)
    yield "d28, bf16, k = 32, 4 clips", partial(chunk, 32, 4, None, "d28, bf16")


def _chunk(
    place: Place, tok: Tokenizer, k: int, batch: int, limit: float | None, what: str
) -> list[Row]:
    """Seconds and memory from tokens to pixels, one chunk, 30 guided steps."""
    tokens = tokens_of(tok, place, batch, k)
    steps = 4 if place.tiny else STEPS
    name = f"{what}, k = {k}, {batch} clip" + "s" * (batch > 1)

    def run() -> Tensor:
        return tok.decode(tokens, steps=steps, guidance=GUIDANCE)

    finite = bool(run().isfinite().all())
    seconds = timed(place, run, repeat=2, warm=0)
    peak = peak_of(place, run)
    sampling = timed(place, lambda: latents_of(tok, place, batch, k, steps), repeat=2, warm=0)
    tok.graphs.clear()
    times = torch.tensor(Schedule(steps).asked(), device=place.device)
    modulating = timed(place, lambda: tok.decoder.modulate(times, tok.dtype), repeat=2, warm=0)
    at_home = sum(layer.nbytes for layer in offloaded(tok).values())
    note = f"{steps} guided steps and the autoencoder" + "" if finite else "NOT FINITE"
    target = "" if limit is None else f"≤ {limit:g} GB"
    return [
        Row(f"{name}: a chunk", seconds, "s", ok=None if finite else False, note=note),
        Row(f"{name}: of it the sampler", sampling, "s"),
        Row(f"{name}: modulation, once a schedule", modulating, "s",
            note="its weights brought over from the host's memory"),
        Row(f"{name}: peak memory", peak, "GB", target,
            None if limit is None or not place.cuda else peak <= limit,
            f"weights there {device_bytes(tok) / GB:.3g}, in the host's memory {at_home / GB:.3g}"),
    ]  # fmt: skip


def _share(
    place: Place, tok: Tokenizer, k: int, batch: int, rate: float, target: float | None
) -> list[Row]:
    """A guided step's share of the matmul rate, over six steps."""
    use: Use = tok.graphs.use
    tok.graphs.use = "off"
    one = operations(lambda: latents_of(tok, place, batch, k, 1))
    tok.graphs.use = use
    many = 2 if place.tiny else 12
    # The first run of a schedule brings its modulation weights over; captured where that is on.
    long, brief = (
        timed(place, lambda n=n: latents_of(tok, place, batch, k, n), repeat=2)  # type: ignore[misc]
        for n in (many, many // 2)
    )
    tok.graphs.clear()
    step = (long - brief) / (many - many // 2)
    share = one / step / rate
    name = f"{tok.config.name}, k = {k}, {batch} clip" + "s" * (batch > 1)
    return [
        Row(f"{name}: a guided step", 1e3 * step, "ms", note=f"{one / 1e12:.3g} TFLOP"),
        Row(f"{name}: share of the matmul rate", share, "", f"≥ {target}" if target else "",
            share >= target if target and place.cuda else None),
    ]  # fmt: skip


def _no_waiting(place: Place, tok: Tokenizer, use: Use) -> list[Row]:
    """Nothing in a step waits for the GPU: it is an error, from torch itself, if something does."""
    with_graphs(tok, place, use)

    def progress(done: int, total: int) -> None:
        if place.cuda and done in (4, total):
            torch.cuda.set_sync_debug_mode("error" if done == 4 else "default")

    try:
        latents_of(tok, place, 1, 32, 8, progress=progress)
    finally:
        if place.cuda:
            torch.cuda.set_sync_debug_mode("default")
    name, why = ("graph" if tok.graphs.replayed else "eager"), "; ".join(tok.graphs.failures)
    with_graphs(tok, place)
    return [Row(f"no host synchronization in a step, {name}", 0, "waits", "0",
                True if place.cuda and not why else None, why)]  # fmt: skip


def _encoding(place: Place, tok: Tokenizer, what: str) -> list[Row]:
    c = tok.config
    generator = torch.Generator(place.device).manual_seed(0)
    video = torch.rand(1, 3, c.chunk_frames, c.size, c.size, device=place.device,
                       generator=generator).to(tok.dtype) * 2 - 1  # fmt: skip
    latents = torch.randn(1, *c.latent_shape, device=place.device, generator=generator)
    latents = latents.to(tok.dtype)
    rows = []
    for name, run in (
        ("autoencoder, encode 17 frames", lambda: tok.vae.encode(video, tok.frames_at_once)),
        ("autoencoder, decode 17 frames", lambda: tok.vae.decode(latents, tok.frames_at_once)),
        ("autoencoder, encode in one piece", lambda: tok.vae.encode(video)),
        ("autoencoder, decode in one piece", lambda: tok.vae.decode(latents)),
        ("encoder, sdpa", lambda: tok.encoder(latents)),
    ):
        seconds = timed(place, run, repeat=3)
        rows.append(Row(f"{what}: {name}", 1e3 * seconds, "ms",
                        note=f"peak {peak_of(place, run):.2f} GB"))  # fmt: skip
    return rows
