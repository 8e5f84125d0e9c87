"""Frames -> features of an image network (DINOv2), as SemanTok's encoders read them.

    frames -> prepare -> the network's last hidden state, CLS first -> one grid or vector for each
    latent frame

The network itself comes from elsewhere: `models/loading.py` builds it with transformers, ComfyUI
has its own. Here it is an :class:`ImageEncoder`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .config.tokenizer import EncoderConfig, FeatureAggregate, GlobalMode
from .errors import VftError

PIXELS = 224  # a side, of what the network sees
SIDE = PIXELS // 14  # patches along an axis
MEAN = (0.485, 0.456, 0.406)  # ImageNet's, of RGB in [0,1]
STD = (0.229, 0.224, 0.225)
PUBLISHED = "dinov2-large"  # what SemanTok's tokenizers were trained with, in our catalogue


@dataclass(frozen=True)
class ImageEncoder:
    """An image network. `states` takes pictures `[N,3,224,224]` float32, normalized as
    :func:`prepare` does, on `device`, and gives its last hidden state `[N,257,width]`, after the
    final norm: CLS, then 16 x 16 patches row by row. `name` is for messages."""

    name: str
    width: int
    device: torch.device
    states: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ImageFeatures:
    """What an encoder reads beside the latents `[B,C,t,h,w]`: patch features `grids` `[B,t,h,w,D]`
    and vectors `[B,t,D]`, or `[B,D]` where one serves all latent frames. None: it reads none."""

    grids: Tensor | None = None
    vectors: Tensor | None = None


def features_of(
    c: EncoderConfig, encoder: ImageEncoder, video: Tensor, at_once: int = 17
) -> ImageFeatures:
    """What an encoder of config `c` reads beside the latents of a chunk; see
    :func:`image_features`."""
    return image_features(
        encoder, video,
        c.feature_aggregate if c.feature_channels else None,
        c.global_mode if c.global_feature else None, at_once,
    )  # fmt: skip


@torch.inference_mode()
def image_features(
    encoder: ImageEncoder, video: Tensor, aggregate: FeatureAggregate | None = None,
    vectors: GlobalMode | None = None, at_once: int = 17,
) -> ImageFeatures:  # fmt: skip
    """One chunk `[B,3,T,H,W]` in [-1,1], T = 1 + 4n, square, of any size -> its features, float32
    on the network's device.

    Latent frame 0 is frame 0, latent frame i is frames 4i-3 to 4i. `aggregate`: patch features
    `[B,t,16,16,D]`, the mean over a latent frame's frames ("avg") or those of its first ("first").
    `vectors`: the CLS states of the first frames, `[B,t,D]` ("per_frame"), or that of frame 0,
    `[B,D]` ("frame0"). The network sees only the frames that count, `at_once` at a time. Raises
    VftError for another shape.
    """
    b, _, count, h, w = video.shape
    if (count - 1) % 4 or h != w:
        raise VftError(
            f"got a video of shape {list(video.shape)}; features are made of square frames, 1 + 4n "
            "of them"
        )
    t = 1 + (count - 1) // 4
    firsts = [0, *range(1, count, 4)]
    seen = firsts if vectors == "per_frame" or aggregate else [0]
    if aggregate == "avg":
        seen = list(range(count))
    frames = video[:, :, seen].transpose(1, 2).flatten(0, 1)  # (B·n, 3, H, W)
    parts = [_states(encoder, part) for part in frames.split(at_once)]
    states = torch.cat(parts).unflatten(0, (b, len(seen)))  # (B, n, 257, D)
    cls, patches = states[:, :, 0], states[:, :, 1:]
    places = firsts if aggregate == "avg" else list(range(len(seen)))
    grids = None
    if aggregate is not None:
        if aggregate == "avg":
            later = patches[:, 1:].unflatten(1, (t - 1, 4)).mean(2)
            patches = torch.cat([patches[:, :1], later], dim=1)
        grids = patches.unflatten(2, (SIDE, SIDE))
    if vectors is None:
        return ImageFeatures(grids)
    return ImageFeatures(grids, cls[:, places] if vectors == "per_frame" else cls[:, 0])


def _states(encoder: ImageEncoder, frames: Tensor) -> Tensor:
    pictures = prepare(frames.to(encoder.device, torch.float32))
    states = encoder.states(pictures).float()
    expected = (len(frames), 1 + SIDE**2, encoder.width)
    if states.shape != expected:
        raise VftError(
            f"{encoder.name} gives states of shape {list(states.shape)}; expected "
            f"{list(expected)}: this is not a DINOv2 network without registers"
        )
    return states


def prepare(frames: Tensor) -> Tensor:
    """Square frames `[N,3,H,W]` in [-1,1] -> `[N,3,224,224]`, resized (bicubic, no antialiasing),
    clamped and normalized as the network was trained."""
    x = F.interpolate((frames + 1) / 2, (PIXELS, PIXELS), mode="bicubic", align_corners=False)
    mean, std = (x.new_tensor(v)[:, None, None] for v in (MEAN, STD))
    return (x.clamp(0, 1) - mean) / std


def positions_at(table: Tensor, side: int = SIDE) -> Tensor:
    """DINOv2's table of positions `[1,1+n²,D]`, CLS first, for pictures of `side`² patches: n x n
    interpolated (bicubic), in float32."""
    n = round((table.shape[1] - 1) ** 0.5)
    grid = table[:, 1:].float().unflatten(1, (n, n)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (side, side), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1].float(), grid.flatten(2).transpose(1, 2)], dim=1)


def autocast(device: torch.device, dtype: torch.dtype | None = None) -> torch.autocast:
    """How the network computes with float32 weights: in `dtype`, by default as the published runs
    did, in bfloat16 on a GPU and in float32 elsewhere."""
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    off = dtype == torch.float32
    return torch.autocast(device.type, torch.bfloat16 if off else dtype, enabled=not off)


def check_encoder(c: EncoderConfig, name: str, encoder: ImageEncoder | None) -> ImageEncoder:
    """`encoder`, or VftError unless tokenizer `name` of config `c` was trained with its kind."""
    width = c.feature_channels or c.global_feature
    if encoder is None:
        raise VftError(
            f"tokenizer {name!r} encodes from DINOv2 features beside the latents: give it the "
            f"network with `--dino` (`vft download {PUBLISHED}` fetches it), in ComfyUI connect "
            "Load CLIP Vision with DINOv2-L to VFT Encode"
        )
    if not c.reads_images:
        raise VftError(f"tokenizer {name!r} reads no image features: encode without {encoder.name}")
    if encoder.width != width:
        raise VftError(
            f"{encoder.name} makes features {encoder.width} wide, tokenizer {name!r} reads "
            f"{width}" + ": give DINOv2-L (facebook/dinov2-large)" * (width == 1024)
        )
    return encoder
