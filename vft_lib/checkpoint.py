"""Our weight file: one safetensors file whose header carries the config and a fingerprint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .atomic import replacing
from .catalog import locate
from .config import TokenizerConfig, VAEConfig
from .errors import CheckpointError, ConfigError
from .tokenizer import Tokenizer
from .vae import VideoAutoencoder

FORMAT = "1"
CHECKED_BYTES = 1 << 28  # hashing a file up to 256 MiB takes less than a second
DEFAULT = Path(__file__).resolve().parent.parent / "weights" / "default.safetensors"
PACKAGED = Path(__file__).resolve().parent / "weights" / "default.safetensors"


def fingerprint(config: TokenizerConfig, weights: dict[str, Tensor]) -> str:
    """16 hex digits over the config and every weight: what makes ids readable to a tokenizer."""
    h = hashlib.sha256(config.to_json().encode())
    for name in sorted(weights):
        w = weights[name].detach().cpu().contiguous()
        h.update(f"{name} {w.dtype} {list(w.shape)}".encode())
        h.update(w.flatten().view(torch.uint8).numpy().tobytes())
    return h.hexdigest()[:16]


def save_tokenizer(
    path: str | Path, config: TokenizerConfig, weights: dict[str, Tensor], dtype: torch.dtype
) -> str:
    """Write a tokenizer in one file, atomically, its weights cast to `dtype`. Returns the
    fingerprint."""
    weights = {k: v.detach().cpu().to(dtype).contiguous() for k, v in weights.items()}
    mark = fingerprint(config, weights)
    meta = {"format": FORMAT, "kind": "tokenizer", "fingerprint": mark}
    header = {"vft": json.dumps(meta), "config": config.to_json(), "license": "Apache-2.0"}
    with replacing(path) as tmp:
        save_file(weights, tmp, header)
    return mark


def save_vae(path: str | Path, vae: VideoAutoencoder) -> None:
    """Write an autoencoder on its own: what `vft train vae` hands to `vft train tokenizer`."""
    weights = {k: v.detach().cpu().float().contiguous() for k, v in vae.state_dict().items()}
    with replacing(path) as tmp:
        save_file(weights, tmp, {"vft": json.dumps({"format": FORMAT, "kind": "vae"})})


def load_vae(path: str | Path, config: VAEConfig) -> VideoAutoencoder:
    """Read what :func:`save_vae` wrote; it must fit `config`."""
    vae = VideoAutoencoder(config)
    try:
        vae.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as e:
        raise CheckpointError(f"{path} does not hold this autoencoder: {e}") from None
    return vae.eval().requires_grad_(False)


def resolve(name: str | Path) -> Path:
    """The file that `name` means: `"default"`, an existing path, or a downloaded model's name."""
    if str(name) == "default":
        return DEFAULT if DEFAULT.exists() else PACKAGED
    return Path(name) if Path(name).is_file() else locate(str(name))


def load_tokenizer(
    name: str | Path = "default", *, device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Tokenizer:  # fmt: skip
    """A tokenizer ready to use: `"default"` (in the package, no download), a path to a file, or a
    catalogue name or hub id that `vft download` has fetched. Never downloads anything itself.

    `device` defaults to CUDA where there is one. `dtype` defaults to bfloat16 on CUDA and float32
    on the CPU. Raises CheckpointError, with one line, for anything but a sound file.
    """
    path = resolve(name)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    try:
        with safe_open(path, "pt") as f:
            header = f.metadata() or {}
            meta = json.loads(header.get("vft", "null"))
            if not isinstance(meta, dict) or meta.get("kind") != "tokenizer":
                raise CheckpointError(f"{path} is a safetensors file, but not a VFT tokenizer")
            if meta.get("format") != FORMAT:
                raise CheckpointError(
                    f"{path} has format {meta.get('format')!r}; this program reads {FORMAT}: "
                    "update it"
                )
            config = TokenizerConfig.from_json(header.get("config", "null"))
            with torch.device("meta"):
                tokenizer = Tokenizer(config, str(meta.get("fingerprint")))
            weights = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118  (no mapping)
    except ConfigError as e:
        raise CheckpointError(f"{path}: {e}") from None
    except CheckpointError:
        raise
    except (OSError, SafetensorError, ValueError, RecursionError) as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise CheckpointError(f"{path} is not a readable tokenizer file: {reason}") from None
    wanted = tokenizer.state_dict()
    for key in wanted.keys() ^ weights.keys():
        state = "misses" if key in wanted else "has an unexpected"
        raise CheckpointError(f"{path} {state} tensor {key!r}")
    for key, w in weights.items():
        if w.shape != wanted[key].shape:
            raise CheckpointError(
                f"{path}: {key!r} is {list(w.shape)}, its config says {list(wanted[key].shape)}"
            )
    if (
        path.stat().st_size < CHECKED_BYTES
        and fingerprint(config, weights) != tokenizer.fingerprint
    ):
        raise CheckpointError(f"{path} is damaged: its weights do not match its fingerprint")
    # One tensor at a time: a large model is never held in two dtypes at once.
    weights = {k: weights.pop(k).to(device, dtype) for k in list(weights)}
    tokenizer.load_state_dict(weights, strict=True, assign=True)
    return tokenizer.eval().requires_grad_(False)
