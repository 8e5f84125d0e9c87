"""Who sees whom: boolean attention masks over the packed sequence. Pure functions.

A clip is packed frame by frame: the `p` patches of latent frame 0, its `r` registers, the patches
of frame 1, … In the published configs patches are called "prefix" and registers "nonprefix".
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .config import MaskConfig


@lru_cache(maxsize=16)
def attention_mask(
    config: MaskConfig, t: int, p: int, r: int, device: torch.device
) -> Tensor | None:
    """`[t·(p+r), t·(p+r)]` bool, True where row (query) sees column (key); None: all see all."""
    if config.mode == "full":
        return None
    n = p + r
    flat = torch.arange(t * n, device=device)
    frame, slot = flat // n, flat % n
    is_register = slot >= p
    q = flat[:, None], frame[:, None], slot[:, None], is_register[:, None]
    k = flat[None], frame[None], slot[None], is_register[None]
    (q_flat, q_frame, q_slot, q_register), (k_flat, k_frame, k_slot, k_register) = q, k

    if config.mode == "causal":
        return k_flat <= q_flat
    if config.mode == "time_block_causal":
        return k_frame <= q_frame
    # Inside a frame: everyone sees all patches; a register also sees registers up to itself.
    own = (k_frame == q_frame) & (~k_register | (q_register & (k_slot <= q_slot)))
    earlier = k_frame < q_frame
    if config.mode == "time_block_causal_last":
        return own | earlier
    switches = {
        (False, False): config.prefix2prefix,
        (False, True): config.prefix2nonprefix,
        (True, False): config.nonprefix2prefix,
        (True, True): config.nonprefix2nonprefix,
    }
    seen = own
    for (from_register, to_register), switch in switches.items():
        pair = (q_register == from_register) & (k_register == to_register) & earlier
        if switch == "full":
            seen = seen | pair
        elif switch == "causal":
            seen = seen | (pair & (k_slot <= q_slot))
    return seen
