"""The part "graphs": the decoder's step launched kernel by kernel, captured and compiled; and which
attention backend wins."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..config.tokenizer import MaskConfig
from ..tokenizer.tokenizer import Tokenizer
from ..transformer.attention import Layout, attend
from . import prior
from .compare import MASKS, error_of, mask_name, refused
from .models import latents_of, timed, tokenizer, with_graphs
from .rows import Measure, Place, Row


def graphs(place: Place) -> Iterator[tuple[str, Measure]]:
    held: list[Tokenizer] = []

    def build() -> list[Row]:
        held.append(tokenizer(place, "d28"))
        return []

    yield "building", build
    for k, batch in ((32, 1), (1, 1), (256, 1), (32, 4), (256, 4)):
        yield f"k = {k}, {batch} clips", partial(_eager_and_graph, place, held, k, batch)
    held.clear()
    for registers in (33, 256):
        yield f"kernels of sdpa, {registers}", partial(_kernels, place, registers)
        yield f"backends, {registers}", partial(_backends, place, MASKS[0], registers)
    yield "backends of the encoder", partial(_backends, place, MASKS[2], 256)
    for mask in (MASKS[1], MASKS[3], MASKS[4]):
        yield f"backends, {mask_name(mask)}", partial(_backends, place, mask, 33)
    # Flex compiles for many seconds: nothing waits behind it.
    for mask, registers in ((MASKS[2], 256), (MASKS[0], 33), (MASKS[0], 256)):
        name = f"flex, {mask_name(mask)}, {registers}"
        yield name, partial(_backends, place, mask, registers, ("flex",))


def _eager_and_graph(place: Place, held: list[Tokenizer], k: int, batch: int) -> list[Row]:
    tok, found, times = held[0], {}, {}
    for use in ("off", "on"):
        with_graphs(tok, place, use)
        steps = 4 if place.tiny else 8
        found[use] = latents_of(tok, place, batch, k, steps)
        times[use] = timed(place, lambda: latents_of(tok, place, batch, k, 8), 2, 0) / 8
        failures = tok.graphs.failures
        tok.graphs.clear()
    error = error_of(found["on"], found["off"])
    name = f"d28, k = {k}, {batch} clip" + "s" * (batch > 1)
    return [
        Row(f"{name}: a guided step, eager", 1e3 * times["off"], "ms"),
        Row(f"{name}: a guided step, graph", 1e3 * times["on"], "ms",
            note=f"{times['off'] / times['on']:.2f} × as fast. " + "; ".join(failures)),
        Row(f"{name}: graph against eager", error, "", "0", error == 0),
    ]  # fmt: skip


def compiled(place: Place) -> Iterator[tuple[str, Measure]]:
    """Late, as a compiler takes its time."""
    times: dict[str, float] = {}
    found: dict[str, Tensor] = {}
    held: list[Tokenizer] = []
    for name in ("eager", "graph", "compiled", "compiled, graph"):
        yield f"four blocks of d28, {name}", partial(_compiled, place, name, held, times, found)
    held.clear()
    yield "the prior's step", partial(prior.compiled, place, "d16, 1 clip")


def _kernels(place: Place, registers: int) -> list[Row]:
    """Which of the kernels behind sdpa is the fastest for d28's frames."""
    rows = []
    for kind in (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION,
                 SDPBackend.CUDNN_ATTENTION):  # fmt: skip
        if not place.cuda:
            return [Row("kernels of sdpa", note="a CPU has one")]
        try:
            with sdpa_kernel(kind):
                found = _backends(place, MASKS[0], registers, ("sdpa",))
        except RuntimeError as e:
            found = [Row(f"sdpa, {registers} registers", note=str(e).splitlines()[0])]
        rows += [dataclasses.replace(r, what=f"{r.what}, {kind.name.lower()}") for r in found]
    return rows


def _compiled(
    place: Place, name: str, held: list[Tokenizer], times: dict[str, float],
    found: dict[str, Tensor],
) -> list[Row]:  # fmt: skip
    """A decoder of d28's width, four blocks deep: compiling all 28 takes too long here."""
    rows = []
    if not held:
        held.append(tokenizer(place, "d28", 2 if place.tiny else 4))
    tok = held[0]
    if name == "compiled":
        began = time.perf_counter()
        tok.compile_decoder("inductor" if place.cuda else "aot_eager")
        latents_of(tok, place, 1, 32, 1, guidance=1.0)
        rows.append(Row("compiling four blocks", time.perf_counter() - began, "s"))
    with_graphs(tok, place, "on" if "graph" in name else "off")
    found[name] = latents_of(tok, place, 1, 32, 8, guidance=1.0)
    seconds = timed(place, lambda: latents_of(tok, place, 1, 32, 8, guidance=1.0), 2, 0)
    times[name] = seconds / 8
    error = error_of(found[name], found["eager"])
    rows.append(Row(f"four blocks, k = 32, unguided step, {name}", 1e3 * times[name], "ms",
                    note=f"{times['eager'] / times[name]:.2f} ×, off by {error:.2g}"
                    + "".join(tok.graphs.failures)))  # fmt: skip
    tok.graphs.clear()
    return rows


def _backends(
    place: Place, mask: MaskConfig, registers: int, names: Iterable[str] = ("sdpa", "xformers")
) -> list[Row]:
    """Seconds of one attention of d28, one clip, by backend."""
    rows = []
    frames, patches, heads = (2, 4, 2) if place.tiny else (5, 256, 28)
    dtype = torch.float32 if place.tiny else torch.bfloat16
    weight = 224 if registers == 33 and mask.mode in ("full", "time_block_causal") else 1
    for backend in names:
        why = refused(backend, mask, place.device)
        name = f"attention of d28, {mask_name(mask)}, {registers} registers, {backend}"
        if why:
            rows.append(Row(name, note=why))
            continue
        layout = Layout(mask, frames, patches, registers, weight, backend)
        shape = (1, frames * layout.each, heads, 64)
        q, k, v = (
            torch.randn(shape, device=place.device, dtype=dtype).transpose(1, 2) for _ in range(3)
        )

        def run(q: Tensor = q, k: Tensor = k, v: Tensor = v, layout: Layout = layout) -> None:
            for _ in range(10):
                attend(q, k, v, layout, 0.125)

        began = time.perf_counter()
        run()
        first = time.perf_counter() - began
        rows.append(Row(name, 1e5 * timed(place, run), "µs", note=f"the first ten {first:.1f} s"))
    return rows
