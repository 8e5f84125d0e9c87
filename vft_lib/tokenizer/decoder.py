"""Codes and noisy latents -> velocity: one step of the flow decoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.tokenizer import DecoderStep, TokenizerConfig
from ..transformer.attention import merges_registers
from ..transformer.fused import norm
from ..transformer.layers import (
    Block,
    PositionEmbedding,
    TimestepEmbedding,
    Transformer,
    patchify,
    unpatchify,
)
from ..transformer.offload import OffloadedLinear


@dataclass(frozen=True)
class Modulation:
    """What the blocks `[N,kinds,6,d]` and the head `[N,2d]` take of N timesteps."""

    blocks: list[Tensor]
    head: Tensor | None

    def at(self, i: int) -> Modulation:
        """That of timestep i alone."""
        return Modulation.of([t[i : i + 1] for t in self.tensors()], self.head is not None)

    def tensors(self) -> list[Tensor]:
        """The blocks', then the head's, if there is one."""
        return [*self.blocks] if self.head is None else [*self.blocks, self.head]

    @staticmethod
    def of(tensors: Sequence[Tensor], head: bool) -> Modulation:
        """Inverse of :meth:`tensors`."""
        return Modulation([*tensors[:-1]], tensors[-1]) if head else Modulation([*tensors], None)


class Decoder(nn.Module):
    """Predicts the rectified-flow velocity (noise - clean) of the latents under the kept registers.

    Three learned vectors stand in for registers that are not there: beyond the budget
    (`nested_mask`), under given frames (`prefix_mask`), and in the unconditional pass (`null`).
    """

    def __init__(self, config: TokenizerConfig, ops: Any = nn) -> None:
        super().__init__()
        c, dim = config.decoder, config.decoder.trunk.dim
        channels = config.vae.latent_channels
        pt, ph, pw = self.patch_size = c.patch_size
        self.steps = c.steps
        self.from_codes = ops.Linear(len(config.fsq_levels), dim)
        if "posemb" in c.steps:
            self.register_posemb = PositionEmbedding(c.register_posemb, dim)
        self.nested_mask = nn.Parameter(torch.randn(dim) * 0.02)
        if "prefix_masking" in c.steps:
            self.prefix_mask = nn.Parameter(torch.randn(dim) * 0.02)
        self.null = nn.Parameter(torch.randn(dim) * 0.02)
        self.patch_proj = ops.Linear(pt * ph * pw * channels, dim)
        self.patch_posemb = PositionEmbedding(c.patch_posemb, dim)
        self.time = TimestepEmbedding(dim, c.max_timestep, ops)
        self.trunk = Transformer(c.trunk, c.mask, ops)
        self.head_modulation = ops.Linear(dim, 2 * dim) if c.head_modulation else None
        self.head = ops.Linear(dim, pt * ph * pw * channels)

    def prepare(
        self, codes: Tensor, keep: Tensor, prefix_frames: Tensor, drop_condition: Tensor
    ) -> Tensor:
        """Codes `[B,t,K,6]` -> registers `[B,t,K,d]`, in the order that the checkpoint was trained
        with. `keep` `[B]` or `[B,t]`: budget; `prefix_frames` `[B]`: latent frames that are
        given; `drop_condition` `[B]` bool: the unconditional pass."""
        x = self.from_codes(codes.to(self.from_codes.weight.dtype))
        t, k = x.shape[1:3]
        frame = torch.arange(t, device=x.device)[None, :, None, None]
        slot = torch.arange(k, device=x.device)[None, None, :, None]
        keep = keep.view(len(keep), -1, 1, 1)
        prefix_frames, drop_condition = (
            v.view(-1, 1, 1, 1) for v in (prefix_frames, drop_condition)
        )
        for step in self.steps:
            if step == "posemb":
                x = self.register_posemb(x)
            elif step == "nested_dropout":
                x = torch.where(slot < keep, x, self.nested_mask.to(x))
            elif step == "prefix_masking":
                x = torch.where(frame < prefix_frames, self.prefix_mask.to(x), x)
            else:
                x = torch.where(drop_condition, self.null.to(x), x)
        return x

    def merge(self, registers: Tensor, keep: int) -> tuple[Tensor, int]:
        """Registers of :meth:`prepare` `[B,t,K,d]` -> the first `keep` + 1 of each frame, and how
        many equal ones the last stands for: all beyond a budget of `keep` are the same vector; in
        the unconditional pass, `keep` 0, all there are. As they are, with 1, where merging would
        change the result: a position embedding told them apart, or the mask orders them."""
        writer: DecoderStep = "nested_dropout" if keep else "null_condition"
        after = self.steps[self.steps.index(writer) + 1 :]
        rest = registers.shape[2] - keep
        if rest < 2 or {"posemb", "nested_dropout"} & set(after):
            return registers, 1
        if not merges_registers(self.trunk.mask):
            return registers, 1
        return registers[:, :, : keep + 1], rest

    def offload_modulation(self) -> None:
        """Keep the weights that :meth:`modulate` alone needs, half of those of a published decoder,
        in the host's memory from now on; they take no gradients then. The same results."""
        for block in cast("Iterable[Block]", self.trunk.blocks):
            if block.kinds:
                block.modulation = OffloadedLinear(block.modulation)
        if self.head_modulation is not None:
            self.head_modulation = OffloadedLinear(self.head_modulation)
        for i in (0, 2):
            self.time.mlp[i] = OffloadedLinear(self.time.mlp[i])

    def modulate(self, timesteps: Tensor, dtype: torch.dtype) -> Modulation:
        """Timesteps `[N]` in 0 (clean) .. 1 (noise) -> all that :meth:`forward` takes of them.
        The same for all clips and chunks, so once for a schedule is enough."""
        time = self.time(timesteps, dtype)
        head = None if self.head_modulation is None else self.head_modulation(F.silu(time))
        return Modulation(self.trunk.modulate(time), head)

    def forward(
        self, noisy: Tensor, modulation: Modulation, registers: Tensor, weight: int = 1
    ) -> Tensor:
        """noisy `[B,C,t,h,w]`, modulation of B timesteps or one for all, registers from
        :meth:`prepare` or :meth:`merge` -> velocity `[B,C,t,h,w]` float32."""
        return self.velocity(self.hidden(noisy, modulation, registers, weight), modulation)

    def hidden(
        self, noisy: Tensor, modulation: Modulation, registers: Tensor, weight: int = 1
    ) -> Tensor:
        """What the trunk makes of the patches, normed: `[B,t,h',w',d]`."""
        x = patchify(noisy.to(registers.dtype), self.patch_size)
        h, w = x.shape[2:4]
        x = self.patch_posemb(self.patch_proj(x))
        patches, _ = self.trunk(x.flatten(2, 3), registers, modulation.blocks, weight)
        return norm(patches).unflatten(2, (h, w))

    def velocity(self, hidden: Tensor, modulation: Modulation) -> Tensor:
        """Of :meth:`hidden`."""
        if modulation.head is not None:
            shift, scale = modulation.head[:, None, None, None].chunk(2, dim=-1)
            hidden = hidden * (1 + scale) + shift
        return unpatchify(self.head(hidden), self.patch_size).float()
