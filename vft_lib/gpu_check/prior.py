"""The part "prior": ids a second, launched kernel by kernel and as a graph."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ..config.prior import PriorConfig
from ..measure.bench import made_up, published_prior
from ..prior.network import Condition
from ..prior.prior import Prior
from ..prior.sampling import Sampler
from ..transformer.graphs import Graphs, rehearse
from .models import GB, bandwidth, timed, with_graphs
from .rows import Measure, Place, Row


def prior_config(place: Place, depth: int) -> PriorConfig:
    c = published_prior()
    if place.tiny:
        return dataclasses.replace(c, depth=2, width=64, head_dim=32, seq_len=80, ctx_dim=32,
                                   vocab=100)  # fmt: skip
    return dataclasses.replace(c, name=f"prior-d{depth}", depth=depth, width=64 * depth)


def prior(place: Place) -> Iterator[tuple[str, Measure]]:
    held: list[Prior] = []
    copy: list[float] = []

    def build(depth: int) -> list[Row]:
        held.clear()
        with torch.device("meta"):
            model = Prior(prior_config(place, depth))
        dtype = torch.float32 if place.tiny else torch.bfloat16
        held.append(made_up(model, place.device, dtype))
        copy[:] = copy or [bandwidth(place)]
        return []

    for depth in (16, 24):
        yield f"d{depth}: building", partial(build, depth)
        for clips in (1, 8):
            name = f"d{depth}, {clips} clip" + "s" * (clips > 1)
            yield name, partial(_ids_a_second, place, held, copy, name, clips)


def _ids_a_second(
    place: Place, held: list[Prior], copy: list[float], name: str, clips: int
) -> list[Row]:
    model = held[0]
    condition = _condition(place, model, clips)
    few, many = (5, 20) if place.tiny else (32, 96)

    def write(count: int, temperature: float = 1.0, top_p: float | None = None) -> Tensor:
        sampler = Sampler(range(clips), temperature=temperature, top_p=top_p)
        return model.sample(condition, count, guidance=2.0, choose=sampler)

    def per_id() -> float:
        # Warm: a library plans its attention once for every length of the cache.
        long, brief = (timed(place, partial(write, n), 1) for n in (many, few))
        return (long - brief) / (many - few)

    with_graphs(model, place, "off")
    eager = per_id()
    likeliest = write(many, 0.0)
    with_graphs(model, place, "on")
    graph = per_id()
    whole = timed(place, partial(write, many), 1, 0) / many
    again = write(many, 0.0)
    short, long = (timed(place, partial(write, n, 1.0, 0.95), 1, 0) for n in (few, many))
    nucleus = (long - short) / (many - few)
    failures, captured = model.graphs.failures, model.graphs.captured
    model.graphs = Graphs(rehearse, "on")  # the same path, its kernels launched one by one
    same = write(few, 0.0)
    with_graphs(model, place, "on")
    equal = torch.equal(write(few, 0.0), same)
    with_graphs(model, place)
    size = _bytes_an_id(model)
    floor = size / copy[0]
    ratio, reach = eager / graph, floor / graph
    ok = (ratio >= 5 or reach >= 0.6) if clips == 1 and place.cuda else None
    return [
        Row(f"{name}: eager", 1 / eager, "ids/s"),
        Row(f"{name}: static cache and graph", 1 / graph, "ids/s", "5 × eager, or 60 % of reading"
            if clips == 1 else "", ok,
            f"{ratio:.2f} × eager, {reach:.0%} of reading {size / GB:.2f} GB an id; "
            f"{captured} captured" + "".join(f"; {f}" for f in failures)),
        Row(f"{name}: with the capture, {many} ids", 1 / whole, "ids/s", note="of each clip"),
        Row(f"{name}: graph, top_p 0.95", 1 / nucleus, "ids/s"),
        Row(f"{name}: graph against the same path launched one by one", float(not equal), "", "0",
            equal),
        Row(f"{name}: likeliest ids that are eager's too",
            float((likeliest == again).float().mean()), "",
            note="16 bits, sums in another order"),
    ]  # fmt: skip


def compiled(place: Place, name: str) -> list[Row]:
    """The step of d16, compiled and then captured: fewer kernels."""
    with torch.device("meta"):
        model = Prior(prior_config(place, 16))
    model = made_up(model, place.device, torch.float32 if place.tiny else torch.bfloat16)
    condition = _condition(place, model, 1)
    few, many = (5, 20) if place.tiny else (40, 160)

    def write(count: int) -> Tensor:
        known = torch.zeros(1, many - count, dtype=torch.int64)  # the cache is always as long
        return model.sample(condition, many, guidance=2.0, choose=Sampler([0]), prefix=known)

    began = time.perf_counter()
    model.compile_step("inductor" if place.cuda else "aot_eager")
    with_graphs(model, place, "on")
    write(few)
    rows = [Row(f"{name}: compiling", time.perf_counter() - began, "s")]
    brief, long = (timed(place, partial(write, n), 1, 0) for n in (few, many))
    rate = (many - few) / (long - brief)
    return [*rows, Row(f"{name}: compiled, and a graph", rate, "ids/s",
                       note="; ".join(model.graphs.failures))]  # fmt: skip


def _condition(place: Place, model: Prior, clips: int) -> Condition:
    """Made-up text states, guided."""
    c = model.config
    rows = min(128, c.max_text_len)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(clips, rows, c.ctx_dim, generator=generator).to(place.device)
    mask = torch.ones(clips, rows, dtype=torch.bool, device=place.device)
    return model.network.condition(clips, None, states, mask, guided=True)


def _bytes_an_id(model: Prior) -> int:
    """Bytes of the weights that each id has to read: all but those that only the text or the
    chosen rows of a table need."""
    once = ("text", "embedding", "positions", "context_in", "null_context")
    total = 0
    for name, p in model.network.named_parameters():
        if name.split(".")[0] not in once and ".cross.kv" not in name:
            total += p.nbytes
    return total
