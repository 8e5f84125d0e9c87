"""ComfyUI's CLIP_VISION as the image network of SemanTok's tokenizers.

The network's blocks are taken, not its `encode_image`: SemanTok's frames are prepared in another
way, and are 224 px, for which old versions of ComfyUI do not interpolate the positions and new ones
do it a little otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..vft_lib import VftError
from ..vft_lib.image_features import ImageEncoder, autocast, positions_at
from . import host
from .types import WIRES

WIRES["CLIP_VISION"] = lambda value: hasattr(value, "encode_image")
NAME = "clip_vision"
AT_ONCE = 17  # frames of a chunk


def image_encoder(vision: Any) -> ImageEncoder:
    """A CLIP_VISION as what `Tokenizer.use_image_encoder` takes. VftError for any other network
    than DINOv2."""
    model = getattr(vision, "model", None)
    kind = type(model).__name__
    # Depth Anything 3 has a class of this name with other blocks.
    if model is None or kind != "Dinov2Model" or getattr(model, "alt_start", -1) != -1:
        raise VftError(
            f"{NAME} is a {kind}; SemanTok's tokenizers read features of DINOv2: connect Load CLIP "
            "Vision with dinov2-large.safetensors (Download VFT Model fetches it)"
        )
    first, device = model.embeddings, vision.patcher.load_device

    def states(pictures: Tensor) -> Tensor:
        with autocast(device):
            x = first.patch_embeddings(pictures)  # (N, 256, D)
            x = torch.cat([first.cls_token.to(x).expand(len(x), -1, -1), x], dim=1)
            x = x + positions_at(first.position_embeddings.to(x.device)).to(x)
            return model.layernorm(model.encoder(x)[0])

    return ImageEncoder(NAME, first.position_embeddings.shape[-1], device, states)


def ready(vision: Any, encoder: ImageEncoder) -> ImageEncoder:
    """The network on its device, with room for the frames of a chunk."""
    activations = 4 * encoder.width * 4 * 3  # of a token: three of the MLP's width, float32
    host.load([vision.patcher], AT_ONCE * 257 * activations)
    return encoder
