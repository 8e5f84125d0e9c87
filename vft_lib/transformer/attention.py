"""Self-attention over the packed sequence: only the work that the mask leaves.

One interface, :func:`attend`, and three backends behind it (`attention_backends.py`). None makes a
`T x T` mask where blocks of frames say it all, and none looks at later frames where the mask
forbids it. A register may stand for several equal ones; as a key it then counts that often, which
is ln(weight) added to its logits, in float32.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config.tokenizer import MaskConfig
from ..errors import VftError
from .backends import flex, sdpa, xformers
from .layout import Layout, merges_registers

BACKENDS = {"sdpa": sdpa, "xformers": xformers, "flex": flex}
NAMES = ("auto", *BACKENDS)

__all__ = ["BACKENDS", "NAMES", "Layout", "attend", "choose", "merges_registers", "refusals"]


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout | Tensor, scale: float) -> Tensor:
    """Queries, keys and values `[B,heads,T,head_dim]` in packed order -> `[B,heads,T,head_dim]`.
    In place of a layout: a mask `[B,1,1,T]`, True for the keys that are seen."""
    if isinstance(layout, Tensor):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=layout, scale=scale)
    assert layout.weight == 1 or merges_registers(layout.mask)
    name = layout.backend
    if name == "auto":
        name = preferred(layout.mask, q.device)
    return BACKENDS[name](q, k, v, layout, scale)


def preferred(mask: MaskConfig, device: torch.device) -> str:
    """What "auto" means. Plain attention calls, one a frame, reach the fastest kernels wherever
    blocks of frames say it all; other masks would take a slower one on a GPU, so there flex
    compiles its own."""
    plain = mask.mode in ("full", "causal", "time_block_causal")
    if plain or device.type != "cuda" or refusals(mask, device)["flex"]:
        return "sdpa"
    return "flex"


def choose(name: str, mask: MaskConfig, device: torch.device) -> str:
    """The backend that `name` ("auto" or one of BACKENDS) stands for; VftError says why one cannot
    run here."""
    if name not in NAMES:
        raise VftError(f"no attention backend {name!r}; choose {', '.join(NAMES)}")
    if name == "auto":
        return preferred(mask, device)
    why = refusals(mask, device)[name]
    if why:
        raise VftError(f"attention backend {name!r} cannot run here: {why}; choose auto or sdpa")
    return name


@lru_cache(maxsize=64)
def refusals(mask: MaskConfig, device: torch.device) -> dict[str, str]:
    """Every backend, and why it does not run here ("" where it does): each is tried on a few
    numbers and held against plain attention."""
    found = {"sdpa": ""}
    if device.type != "cuda":
        found["xformers"] = "its kernels need a CUDA device"
    elif mask.mode not in ("full", "causal", "time_block_causal"):
        found["xformers"] = f"it has no bias for masks of the mode {mask.mode!r}"
    else:
        found["xformers"] = _trial("xformers", mask, device)
    found["flex"] = _trial("flex", mask, device)
    return found


def _trial(name: str, mask: MaskConfig, device: torch.device) -> str:
    """What goes wrong when a backend is tried, "" if nothing does."""
    weight = 3 if merges_registers(mask) else 1
    layout = Layout(mask, frames=2, patches=3, registers=2, weight=weight, backend=name)
    half = torch.bfloat16 if device.type == "cuda" else torch.float32
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 10, 64, generator=g).to(device, half) for _ in range(3))
    try:
        with torch.inference_mode():
            here = BACKENDS[name](q, k, v, layout, 0.125)
            plain = sdpa(q.float(), k.float(), v.float(), replace(layout, backend="sdpa"), 0.125)
    except Exception as e:  # whatever a compiler or a driver may raise
        return f"{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else ''}"
    error = float((here.float() - plain).abs().max())
    return "" if error < 0.05 else f"its result is off by {error:.2g}"
