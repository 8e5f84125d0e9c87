"""Parts of `vft gpu-check` that compare numbers: attention with its formula, models with those that
the published code gave."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ..checkpoints.parity import run_case
from ..config.tokenizer import MaskConfig, MaskMode
from ..errors import VftError
from ..transformer.attention import Layout, attend, merges_registers, refusal
from ..transformer.layout import key_bias
from ..transformer.masks import attention_mask
from .rows import Measure, Place, Row

FLEXIBLE: MaskMode = "flexible_time_block_causal_last"
MASKS = (
    MaskConfig("time_block_causal"), MaskConfig("full"), MaskConfig("time_block_causal_last"),
    MaskConfig("causal"), MaskConfig(FLEXIBLE),
    MaskConfig(FLEXIBLE, "none", "full", "full", "causal"),
)  # fmt: skip
# ‖got − expected‖ / ‖expected‖; float32 without TF32, the others as many bits as they have.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
DTYPES = tuple(TOLERANCES)


def short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def mask_name(mask: MaskConfig) -> str:
    """The mode, and for the flexible one its switches."""
    switches = (mask.prefix2prefix, mask.prefix2nonprefix, mask.nonprefix2prefix,
                mask.nonprefix2nonprefix)  # fmt: skip
    return mask.mode + (" " + "/".join(switches) if mask.mode == FLEXIBLE else "")


def error_of(got: Tensor, expected: Tensor) -> float:
    """‖got − expected‖ / ‖expected‖ in float64 on the CPU; NaN where there is one."""
    a, b = got.detach().cpu().double(), expected.detach().cpu().double()
    return float((a - b).norm() / b.norm())


def formula(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> Tensor:
    """Attention with the whole mask, in float64 on the CPU."""
    cpu = torch.device("cpu")
    q, k, v = (x.cpu().double() for x in (q, k, v))
    seen = attention_mask(layout.mask, layout.frames, layout.patches, layout.registers, cpu)
    scores = q @ k.transpose(2, 3) * scale + key_bias(layout, cpu).double()
    if seen is not None:
        scores = scores.masked_fill(~seen, -math.inf)
    return scores.softmax(-1) @ v


KINDS = tuple(itertools.product(MASKS, DTYPES, (64, 32, 16)))


def attention(place: Place) -> Iterator[tuple[str, Measure]]:
    """sdpa and xformers on every kind of mask, number and width of heads."""
    strict()
    for backend in ("sdpa", "xformers"):
        for mask in MASKS:
            some = [(d, w) for m, d, w in KINDS if m is mask]
            yield f"{backend}, {mask_name(mask)}", partial(_backend, place, backend, mask, some)


def flex(place: Place) -> Iterator[tuple[str, Measure]]:
    """Flex attention, which compiles for seconds a kind: the usual kinds first."""
    strict()
    kinds = [(m, d, w) for m, d, w in KINDS if w == 64 and d == torch.bfloat16]
    kinds += [(m, d, w) for m, d, w in KINDS if w == 64 and d == torch.float32]
    kinds += [kind for kind in KINDS if kind not in kinds]
    if not place.cuda:
        kinds = [(MASKS[0], torch.float32, 64)]
    for mask, dtype, width in kinds:
        name = f"flex, {mask_name(mask)}, {short(dtype)}, heads of {width}"
        yield name, partial(_backend, place, "flex", mask, [(dtype, width)])


def strict() -> None:
    """float32 products in float32."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def _backend(
    place: Place, backend: str, mask: MaskConfig, kinds: list[tuple[torch.dtype, int]]
) -> list[Row]:
    """The largest error over lengths and weights, for each kind."""
    why = refused(backend, mask, place.device)
    what = f"{backend}, {mask_name(mask)}"
    if why:
        return [Row(what, note=f"not here: {why}")]
    lengths = [(3, 4, 5), (5, 20, 9)] if place.tiny else [(3, 4, 5), (5, 100, 33), (2, 256, 257)]
    if backend == "flex":
        lengths = lengths[1:2]
    rows = []
    for dtype, width in kinds:
        name, tolerance = f"{what}, {short(dtype)}, heads of {width}", TOLERANCES[dtype]
        try:
            worst = _worst(place, backend, mask, dtype, width, lengths)
        except NotImplementedError as e:  # xformers has no kernel for some of them
            rows.append(Row(name, note=f"not here: {(str(e).splitlines() or [''])[0]}"))
            continue
        rows.append(Row(name, worst, "", f"≤ {tolerance:g}", worst <= tolerance))
    return rows


def _worst(
    place: Place, backend: str, mask: MaskConfig, dtype: torch.dtype, width: int,
    lengths: list[tuple[int, int, int]],
) -> float:  # fmt: skip
    """The largest error over lengths and weights; infinite where a number is not finite."""
    worst, scale = 0.0, width**-0.5
    merged = (1, 248) if merges_registers(mask) else (1,)
    for (frames, patches, registers), weight in itertools.product(lengths, merged):
        layout = Layout(mask, frames, patches, registers, weight, backend)
        shape = (2, 2, frames * layout.each, width)
        q, k, v = (torch.randn(shape).to(place.device, dtype) for _ in range(3))
        got = attend(q, k, v, layout, scale)
        error = error_of(got, formula(q, k, v, layout, scale))
        worst = max(worst, error) if math.isfinite(error) else math.inf
    return worst


def refused(backend: str, mask: MaskConfig, device: torch.device) -> str:
    """Why a backend has nothing to measure here; whether its numbers are right is not asked."""
    if device.type != "cuda" or mask.mode not in ("full", "causal", "time_block_causal"):
        if backend == "xformers" or device.type != "cuda":
            return refusal(backend, mask, device, 64, torch.bfloat16)
        return ""
    if backend == "xformers":
        try:
            import xformers.ops  # noqa: F401
        except ImportError as e:
            return f"{type(e).__name__}: {e}"
    return ""


def parity(place: Place) -> Iterator[tuple[str, Measure]]:
    """Every case in float32 within its tolerances; then in 16 bits, with the errors."""
    strict()
    cases = sorted(p.parent for p in place.cases.glob("*/case.json"))
    if not cases:
        raise FileNotFoundError(f"no parity cases in {place.cases}")
    if place.tiny:
        cases = [c for c in cases if c.name in ("options2", "prior-class")]
    for dtype in DTYPES:
        for case in cases:
            yield f"{case.name}, {short(dtype)}", partial(_case, place, case.name, dtype)


def _case(place: Place, case: str, dtype: torch.dtype) -> list[Row]:
    try:
        results = list(run_case(place.cases / case, place.device, dtype, "sdpa"))
    except VftError as e:  # a case that needs transformers, where it is not installed
        if "pip install" not in str(e):
            raise
        return [Row(f"{case}, {short(dtype)}", note=f"not run: {e}")]
    by_op: dict[str, list[tuple[float, float]]] = {}
    for r in results:
        by_op.setdefault(r.op, []).append((r.error, r.tol))
    rows = []
    for op, found in by_op.items():
        worst = max(found, key=lambda pair: pair[0] if math.isfinite(pair[0]) else math.inf)
        strictly = dtype == torch.float32
        rows.append(Row(
            f"{case}: {op} ×{len(found)}, {short(dtype)}", worst[0], "",
            f"≤ {worst[1]:g}" if strictly else "",
            all(e <= t for e, t in found) if strictly else None,
        ))  # fmt: skip
    return rows
