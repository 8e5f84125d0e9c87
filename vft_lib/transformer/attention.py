"""Self-attention over the packed sequence: only the work that the mask leaves.

One interface, :func:`attend`, and three backends behind it (`backends.py`), beside which a program
may put its own (:func:`adopt`). None makes a `T x T` mask where blocks of frames say it all, and
none looks at later frames where the mask forbids it. A register may stand for several equal ones;
as a key it then counts that often, which is ln(weight) added to its logits, in float32.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from ..config.tokenizer import MaskConfig
from ..errors import VftError
from .backends import HALF, Backend, Foreign, dot_product, flex, sdpa, xformers
from .layout import Layout, merges_registers

BACKENDS: dict[str, Backend] = {"sdpa": sdpa, "xformers": xformers, "flex": flex}
ROUGH = 0.1  # of the largest value: what eight-bit products may be off by
TRIED = ((5, 4, 1), (3, 4, 5), (5, 4, 4), (5, 8, 2), (5, 20, 9))  # 25, 27, 40, 50, 145 tokens

__all__ = [
    "BACKENDS",
    "Foreign",
    "Layout",
    "absence",
    "adopt",
    "attend",
    "choose",
    "merges_registers",
    "refusal",
    "trial",
]


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout | Tensor, scale: float) -> Tensor:
    """Queries, keys and values `[B,heads,T,head_dim]` in packed order -> `[B,heads,T,head_dim]`.
    In place of a layout: a mask `[B,1,1,T]`, True for the keys that are seen."""
    if isinstance(layout, Tensor):
        return dot_product(q, k, v, layout, scale)
    assert layout.weight == 1 or merges_registers(layout.mask)
    name = layout.backend
    if name == "auto":
        name = preferred(layout.mask, q.device, q.shape[-1], q.dtype)
        if name == "flex" and torch.is_grad_enabled() and q.requires_grad:
            name = "sdpa"  # only its forward pass has been held against plain attention
    return BACKENDS[name](q, k, v, layout, scale)


def preferred(mask: MaskConfig, device: torch.device, width: int, dtype: torch.dtype) -> str:
    """What "auto" means for heads of that width. Plain attention calls, one a frame, reach the
    fastest kernels wherever blocks of frames say it all; other masks would take a slower one on a
    GPU, so there flex compiles its own."""
    plain = mask.mode in ("full", "causal", "time_block_causal")
    if plain or device.type != "cuda" or refusal("flex", mask, device, width, dtype):
        return "sdpa"
    return "flex"


def choose(
    name: str, mask: MaskConfig, device: torch.device, width: int, dtype: torch.dtype
) -> str:
    """The backend that `name` ("auto" or one of BACKENDS) stands for; VftError says why one cannot
    run here."""
    if name != "auto" and name not in BACKENDS:
        raise VftError(f"no attention backend {name!r}; choose {', '.join(('auto', *BACKENDS))}")
    if name == "auto":
        return preferred(mask, device, width, dtype)
    why = refusal(name, mask, device, width, dtype)
    if why:
        raise VftError(f"attention backend {name!r} cannot run here: {why}; choose auto or sdpa")
    return name


def adopt(name: str, backend: Foreign) -> None:
    """Let `name` stand for a program's own attention from now on."""
    if BACKENDS.get(name) != backend:
        BACKENDS[name] = backend
        refusal.cache_clear()


def absence(name: str, device: torch.device) -> str:
    """Why a backend cannot run on a device whatever the model is, as far as can be told without
    trying; "" where it may."""
    if name not in ("xformers", "flex"):
        return ""
    if device.type != "cuda":
        if name == "flex":
            return "on a CPU it gives wrong numbers for some lengths, so it is for CUDA devices"
        return "its kernels need a CUDA device"
    needed = "xformers" if name == "xformers" else "triton"
    return "" if find_spec(needed) else f"the package {needed} is not installed"


@lru_cache(maxsize=64)
def refusal(
    name: str, mask: MaskConfig, device: torch.device, width: int, dtype: torch.dtype
) -> str:
    """Why a backend does not run here on heads of `width` channels in `dtype`; "" where it does."""
    if name == "sdpa":
        return ""
    why = absence(name, device)
    if why:
        return why
    if name == "xformers" and mask.mode not in ("full", "causal", "time_block_causal"):
        return f"it has no bias for masks of the mode {mask.mode!r}"
    backend = BACKENDS[name]
    if isinstance(backend, Foreign) and not backend.takes(Layout(mask, 1, 1, 1), dtype):
        if dtype not in HALF:
            return f"{backend.name} computes with 16-bit numbers only"
        return f"{backend.name} takes no masks, as the mode {mask.mode!r} needs them"
    return trial(name, mask, device, width, dtype)


def trial(name: str, mask: MaskConfig, device: torch.device, width: int, dtype: torch.dtype) -> str:
    """What goes wrong when a backend is held against plain attention in float32, "" if nothing
    does. Sequences of several lengths, as kernels go wrong at the ends of their blocks; with merged
    registers, where the mask allows them."""
    limit = max(4 * torch.finfo(dtype).eps, 1e-4)  # of the largest value
    backend = BACKENDS[name]
    if isinstance(backend, Foreign) and not backend.exact:
        limit = ROUGH
    scale, g = 8 / width, torch.Generator().manual_seed(0)
    for frames, patches, registers in TRIED:
        for weight in (1, 248) if merges_registers(mask) else (1,):
            layout = Layout(mask, frames, patches, registers, weight, name)
            shape = (2, 2, frames * layout.each, width)
            q, k, v = (torch.randn(shape, generator=g).to(device, dtype) for _ in range(3))
            try:
                with torch.inference_mode():
                    here = backend(q, k, v, layout, scale).float()
                    plain = sdpa(q.float(), k.float(), v.float(), layout, scale)
            except Exception as e:  # whatever a compiler or a driver may raise
                said = str(e).strip().splitlines() or [""]
                return f"{type(e).__name__}: {said[0]}"
            error = float((here - plain).abs().max() / plain.abs().max())
            if not error <= limit:  # nor nan
                return f"its result for {shape[2]} tokens is off by {error:.2g}"
    return ""
