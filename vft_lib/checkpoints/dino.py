"""DINOv2 from published weights, through transformers: `pip install .[dino]`.

Tensors under the names of any release of transformers; its config as data. Nothing is looked up on
the hub, and nothing that a file names is imported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..config.fields import build
from ..errors import CheckpointError, ConfigError, VftError, one_line
from ..image_features import PIXELS, SIDE, ImageEncoder, autocast

KIND = "dinov2"  # config.json's model_type
RENAMED = (  # the published file, and transformers before 5 -> transformers 5
    (".attention.attention.query.", ".attention.q_proj."),
    (".attention.attention.key.", ".attention.k_proj."),
    (".attention.attention.value.", ".attention.v_proj."),
    (".attention.output.dense.", ".attention.o_proj."),
)
# What a config.json says beside the network itself.
BESIDE = frozenset({
    "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path",
    "apply_layernorm", "out_features", "out_indices", "reshape_hidden_states", "stage_names",
    "return_dict", "output_hidden_states", "output_attentions",
})  # fmt: skip


@dataclass(frozen=True)
class DinoConfig:
    """The arguments of `transformers.Dinov2Config` that make the network, with its defaults.
    Raises ConfigError for one that does not turn 224 px into 16 x 16 patches."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: int = 4
    hidden_act: Literal["gelu"] = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    image_size: int = 224
    patch_size: int = 14
    num_channels: Literal[3] = 3
    qkv_bias: bool = True
    layerscale_value: float = 1.0
    drop_path_rate: float = 0.0
    use_swiglu_ffn: bool = False
    use_mask_token: bool = True

    def __post_init__(self) -> None:
        for name, most in (
            ("hidden_size", 1 << 13), ("num_hidden_layers", 64), ("num_attention_heads", 128),
            ("mlp_ratio", 16), ("image_size", 4096),
        ):  # fmt: skip
            if not 1 <= getattr(self, name) <= most:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 1 to {most}")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(f"{self.num_attention_heads} heads do not divide {self.hidden_size}")
        if self.patch_size * SIDE != PIXELS or self.image_size < self.patch_size:
            raise ConfigError(
                f"patch_size is {self.patch_size}, image_size {self.image_size}; expected patches "
                f"of {PIXELS // SIDE} px, and one at least"
            )


def read_dino_config(data: Mapping[str, Any], name: str) -> DinoConfig:
    """`config.json` of a DINOv2 network. CheckpointError for any other, and for an option that we
    do not know."""
    kind = data.get("model_type", KIND)
    if kind != KIND:
        raise CheckpointError(
            f"{name} is a {one_line(repr(kind), 60)} network; SemanTok's tokenizers read features "
            "of DINOv2-L (facebook/dinov2-large)"
        )
    try:
        return build(DinoConfig, {k: v for k, v in data.items() if k not in BESIDE}, "config")
    except ConfigError as e:
        raise CheckpointError(f"{name}: {e}") from None


def build_dino(
    config: DinoConfig, weights: Mapping[str, Tensor], name: str,
    device: torch.device | None = None, dtype: torch.dtype | None = None,
) -> ImageEncoder:  # fmt: skip
    """:func:`dino_network` on `device` (default: the CPU) as an image encoder; `dtype` as
    `autocast` takes it."""
    device = device or torch.device("cpu")
    network = dino_network(config, weights, name).to(device)

    def states(pictures: Tensor) -> Tensor:
        with autocast(device, dtype):
            return network(pixel_values=pictures).last_hidden_state

    return ImageEncoder(name, config.hidden_size, device, states)


def dino_network(config: DinoConfig, weights: Mapping[str, Tensor], name: str) -> Any:
    """transformers' `Dinov2Model` in float32 on the CPU. CheckpointError unless the tensors are
    exactly its own; VftError where transformers is missing."""
    try:
        from transformers import Dinov2Config, Dinov2Model
    except ImportError:
        raise VftError(
            "DINOv2 features need transformers: pip install '.[dino]' (not in ComfyUI: connect "
            "Load CLIP Vision there)"
        ) from None
    with torch.device("meta"):
        network: Any = Dinov2Model(Dinov2Config(**dataclasses.asdict(config)))
    wanted = {_canonical(key): (key, list(v.shape)) for key, v in network.state_dict().items()}
    state = {}
    for key in weights:
        own, shape = wanted.pop(_canonical(key), (None, []))
        if own is None:
            raise CheckpointError(f"{name} has an unexpected tensor {key!r}: is it a DINOv2-L?")
        value = weights[key].float()
        if list(value.shape) != shape:
            raise CheckpointError(
                f"{name}: {key!r} is {list(value.shape)}, its config says {shape}"
            )
        state[own] = value
    if wanted:
        raise CheckpointError(f"{name} misses tensor {min(wanted)!r}")
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def _canonical(key: str) -> str:
    """A tensor's name in transformers 5."""
    for old, new in RENAMED:
        key = key.replace(old, new)
    return key
