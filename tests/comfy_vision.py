"""A CLIP_VISION as ComfyUI's Load CLIP Vision gives it, with a tiny DINOv2."""

from __future__ import annotations

from typing import Any

import torch
from semantok import dino_config, dino_weights
from torch import Tensor, nn

from vft_lib.checkpoints.dino import dino_network


class Dinov2Model(nn.Module):
    """In the shape of ComfyUI's class of this name, its parts those of transformers. (`make
    test-comfyui` has the real one.)"""

    def __init__(self, network: Any) -> None:
        super().__init__()
        first = network.embeddings
        self.embeddings = nn.Module()
        self.embeddings.patch_embeddings = first.patch_embeddings
        self.embeddings.cls_token = first.cls_token
        self.embeddings.position_embeddings = first.position_embeddings
        self.blocks, self.layernorm = network.encoder, network.layernorm

    def encoder(self, x: Tensor) -> tuple[Tensor, None]:
        return self.blocks(x).last_hidden_state, None


class CLIPVisionModelProjection(Dinov2Model):
    """A CLIP, by its name."""


class ClipVision:
    def __init__(self, kind: type[Dinov2Model] = Dinov2Model) -> None:
        import comfy.model_patcher as mp

        self.model = kind(dino_network(dino_config(), dino_weights(), "tiny"))
        cpu = torch.device("cpu")
        self.patcher = mp.ModelPatcher(self.model, cpu, cpu)

    def encode_image(self, image: Tensor, crop: bool = True) -> Any:
        raise AssertionError("its preprocessing is another one")
