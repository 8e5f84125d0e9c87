"""Where an encoder's tokens look: attention rollout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..tokenizer.encoder import Encoder
from ..transformer.fused import unit
from ..transformer.layers import Attention
from ..transformer.layout import Layout
from ..transformer.masks import attention_mask


@torch.no_grad()
def rollout(encoder: Encoder, latents: Tensor) -> Tensor:
    """Latents `[B,C,t,h,w]` -> `[B,t,K,h',w']` float32: how much of what token k of a latent frame
    is made of comes from each patch of the same frame, as shares that sum to 1.

    Attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928): each block passes on half of what
    a position held and half of what it attends to, averaged over heads; the product over blocks
    says where it comes from."""
    found: list[tuple[Tensor, Layout]] = []

    def keep(module: Attention, args: tuple[Any, ...], _: Tensor) -> None:
        x, layout = args
        found.append((_weights(module, x, layout), layout))

    hooks = [m.register_forward_hook(keep) for m in encoder.modules() if isinstance(m, Attention)]
    try:
        encoder.hidden(latents)
    finally:
        for hook in hooks:
            hook.remove()
    layout = found[0][1]
    total = torch.eye(found[0][0].shape[-1], device=latents.device).expand_as(found[0][0])
    for weights, _ in found:
        total = (weights @ total + total) / 2
    t, p = layout.frames, layout.patches
    total = total.unflatten(2, (t, layout.each)).unflatten(1, (t, layout.each))
    own = torch.stack([total[:, i, :, i, :p] for i in range(t)], 1)  # (B, t, p+r, p)
    own = own if encoder.c.grid else own[:, :, p:]
    own = own / own.sum(-1, keepdim=True)
    h, w = (s // n for s, n in zip(latents.shape[3:], encoder.patch_size[1:]))
    return own.unflatten(-1, (h, w)).float().cpu()


def seen_share(shares: Tensor) -> Tensor:
    """`[...,h,w]` that sum to 1 -> how much of a frame that is, 0 to 1: the exponential of the
    entropy, divided by the number of patches. 1: all of them alike."""
    x = shares.flatten(-2)
    entropy = torch.special.entr(x).sum(-1)
    return entropy.exp() / x.shape[-1]


def _weights(module: Attention, x: Tensor, layout: Layout) -> Tensor:
    """Attention weights `[B,T,T]` float32, averaged over heads."""
    d = module.head_dim
    q, k = (
        unit(d, w(x).unflatten(-1, (-1, d))).transpose(1, 2).float() for w in (module.wq, module.wk)
    )
    logits = q @ k.transpose(-1, -2) * (8 / d)
    mask = attention_mask(layout.mask, layout.frames, layout.patches, layout.registers, x.device)
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    return logits.softmax(-1).mean(1)
