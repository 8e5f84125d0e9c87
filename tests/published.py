"""Published-format files for tests, from the parity cases: every tensor under its published name.

The video autoencoder of these files is VidTok's at an eighth of its width, so that a file is small.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vft_lib.autoencoder.vae import VideoAutoencoder
from vft_lib.checkpoints import convert
from vft_lib.checkpoints.parity import made_up
from vft_lib.config.tokenizer import VAEConfig

GOLDEN = Path(__file__).parent / "golden"
VAE_ID = "vidtok_kl_causal_488_16chn"
SMALL_VAE = VAEConfig(width=16)


def config_of(case: str) -> dict[str, Any]:
    return json.loads((GOLDEN / case / "config.json").read_text())


def tensors_of(case: str, prefix: str = "video_tokenizer.") -> dict[str, Tensor]:
    """The tensors of a parity case, all under `prefix`, with a small autoencoder."""
    state = json.loads((GOLDEN / case / "state.json").read_text())
    tensors = {}
    for key, entry in state.items():
        key = key.removeprefix("video_tokenizer.")
        if not key.startswith("vae."):
            value = torch.from_numpy(made_up(key, entry["shape"], entry["std"]) + entry["mean"])
            tensors[prefix + key] = value.float()
    return tensors | {prefix + k: v for k, v in vae_tensors().items()}


def vae_tensors() -> dict[str, Tensor]:
    state = json.loads((GOLDEN / "vae" / "state.json").read_text())
    small = {k: v.shape for k, v in VideoAutoencoder(SMALL_VAE).state_dict().items()}
    tensors = {}
    for key, entry in state.items():
        key = key.removeprefix("video_tokenizer.")
        if key.startswith("vae."):
            ours = small[convert.vae_name(key.removeprefix("vae.vidtok."))]
            shape = [*ours[:2], *entry["shape"][2:]] if len(entry["shape"]) > 1 else list(ours)
            value = torch.from_numpy(made_up(key, shape, entry["std"]) + entry["mean"])
            tensors[key] = value.float()
    return tensors


def write_folder(folder: Path, config: Any, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def renamed(config: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict, dict]:
    """Every module called something else, every key that modules pass on called something else."""
    net = copy.deepcopy(config)
    names: dict[str, str] = {}
    for side in ("encoder", "decoder"):
        modules = net["video_flex_tok"][side]["module_dict"]
        names |= {
            f"{side}.module_dict.{k}.": f"{side}.module_dict.m{i}." for i, k in enumerate(modules)
        }
        net["video_flex_tok"][side]["module_dict"] = {
            f"m{i}": v for i, v in enumerate(modules.values())
        }

    def keys(value: Any, parent: str = "") -> Any:
        if isinstance(value, dict):
            return {k: keys(v, k) for k, v in value.items()}
        if isinstance(value, list) and parent.endswith("_keys"):
            return [f"x_{v}" for v in value]
        return f"x_{value}" if parent.endswith("_key") and isinstance(value, str) else value

    moved = {}
    for key, value in tensors.items():
        for old, new in names.items():
            key = key.replace(old, new)
        moved[key] = value
    return keys(net), moved


def full_size(
    pixels: int, encoder_depth: int, decoder_depth: int, patch: int, overlap: int
) -> dict[str, Any]:
    """A published config at a published size: width 64 x depth, 256 patches and registers."""
    config = config_of("time-causal")
    config |= {"vae_video_sizes": [5, pixels // 8, pixels // 8], "overlap_size_frames": overlap}
    config["video_preprocess_args"] |= {"size": pixels, "overlap_size_frames": overlap}
    for side, depth in (("encoder", encoder_depth), ("decoder", decoder_depth)):
        modules = config["video_flex_tok"][side]["module_dict"]
        modules.pop("dec_repa_head", None)  # only in training
        for module in modules.values():
            if "dim" in module:
                module["dim"] = 64 * depth
            if "depth" in module:
                module |= {"depth": depth, "head_dim": 64}
            if "patch_sizes" in module:
                module["patch_sizes"] = [1, patch, patch]
            if "n_max" in module:
                module |= {"n_max": 256, "n_min": 256}
            if module.get("max_sizes") == [16, 16] and "registers" in module["read_key"]:
                module["max_sizes"] = [5, 256]
    return config


D18_D28 = full_size(256, 18, 28, patch=2, overlap=1)
D18_D18 = full_size(128, 18, 18, patch=1, overlap=0)
