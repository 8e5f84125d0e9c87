"""Prior weights: our single file, or a published folder (`config.json` and `*.safetensors`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .atomic import replacing
from .checkpoint import CHECKED_BYTES, FORMAT
from .convert_prior import prior_plan
from .errors import CheckpointError, ConfigError
from .prior import Prior
from .prior_config import PriorConfig

DEFAULT = Path(__file__).resolve().parent.parent / "weights" / "prior.safetensors"
PACKAGED = Path(__file__).resolve().parent / "weights" / "prior.safetensors"


def digest(text: str, weights: Mapping[str, Tensor]) -> str:
    """16 hex digits over a text and every weight."""
    h = hashlib.sha256(text.encode())
    for name in sorted(weights):
        w = weights[name].detach().cpu().contiguous()
        h.update(f"{name} {w.dtype} {list(w.shape)}".encode())
        h.update(w.flatten().view(torch.uint8).numpy().tobytes())
    return h.hexdigest()[:16]


def save_prior(
    path: str | Path, config: PriorConfig, weights: Mapping[str, Tensor],
    dtype: torch.dtype | None, *, license: str = "Apache-2.0",
) -> str:  # fmt: skip
    """Write a prior in one file, atomically, its weights cast to `dtype` (None: as they are).
    Returns the fingerprint."""
    kept = {k: v.detach().cpu().to(dtype or v.dtype).contiguous() for k, v in weights.items()}
    mark = digest(config.to_json(), kept)
    meta = {"format": FORMAT, "kind": "prior", "fingerprint": mark}
    header = {"vft": json.dumps(meta), "config": config.to_json(), "license": license}
    with replacing(path) as tmp:
        save_file(kept, tmp, header)
    return mark


def resolve_prior(name: str | Path) -> Path:
    """The file or folder that `name` means: `"default"`, or a path that must exist."""
    if str(name) == "default":
        path = DEFAULT if DEFAULT.exists() else PACKAGED
        if not path.exists():
            raise CheckpointError(
                "this installation has no default prior; train one (vft train prior) and name it "
                "with --prior FILE"
            )
        return path
    if not Path(name).exists():
        raise CheckpointError(f"no prior {str(name)!r}: neither 'default' nor an existing file")
    return Path(name)


def load_prior(
    name: str | Path = "default", *, device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Prior:  # fmt: skip
    """A prior ready to use: `"default"` (in the package, no download), a file of ours, or a
    published folder.

    `device` defaults to CUDA where there is one. `dtype` defaults to bfloat16 on CUDA and float32
    on the CPU. Raises CheckpointError, with one line, for anything but a sound file.
    """
    path = resolve_prior(name)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    try:
        read = _read_published if path.is_dir() else _read_ours
        config, mark, weights = read(path)
    except (CheckpointError, ConfigError) as e:
        text = str(e)
        raise CheckpointError(text if str(path) in text else f"{path}: {text}") from None
    except (OSError, SafetensorError, ValueError, RecursionError) as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise CheckpointError(f"{path} is not a readable prior: {reason}") from None
    with torch.device("meta"):
        prior = Prior(config, mark)
    wanted = prior.state_dict()
    for key in wanted.keys() ^ weights.keys():
        state = "misses" if key in wanted else "has an unexpected"
        raise CheckpointError(f"{path} {state} tensor {key!r}")
    for key, w in weights.items():
        if w.shape != wanted[key].shape:
            raise CheckpointError(
                f"{path}: {key!r} is {list(w.shape)}, its config says {list(wanted[key].shape)}"
            )
    # One tensor at a time: a large model is never held in two dtypes at once.
    weights = {k: weights.pop(k).to(device, dtype) for k in list(weights)}
    prior.load_state_dict(weights, strict=True, assign=True)
    return prior.to(device).eval().requires_grad_(False)


def _read_ours(path: Path) -> tuple[PriorConfig, str, dict[str, Tensor]]:
    with safe_open(path, "pt") as f:
        header = f.metadata() or {}
        meta = json.loads(header.get("vft", "null"))
        if not isinstance(meta, dict) or meta.get("kind") != "prior":
            kind = meta.get("kind") if isinstance(meta, dict) else None
            what = f"a VFT {kind}" if isinstance(kind, str) else "a safetensors file"
            raise CheckpointError(f"{path} is {what}, but not a VFT prior")
        if meta.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} has format {meta.get('format')!r}; this program reads {FORMAT}: update it"
            )
        config = PriorConfig.from_json(header.get("config", "null"))
        weights = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118  (no mapping)
    mark = str(meta.get("fingerprint"))
    if path.stat().st_size < CHECKED_BYTES and digest(config.to_json(), weights) != mark:
        raise CheckpointError(f"{path} is damaged: its weights do not match its fingerprint")
    return config, mark, weights


def _read_published(path: Path) -> tuple[PriorConfig, str, dict[str, Tensor]]:
    found: dict[str, Tensor] = {}
    files = sorted(path.glob("*.safetensors"))
    if not files or not (path / "config.json").is_file():
        raise CheckpointError(
            f"the folder {path} holds no config.json with *.safetensors beside it"
        )
    data: Any = json.loads((path / "config.json").read_text(encoding="utf-8"))
    for file in files:
        with safe_open(file, "pt") as f:
            found |= {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118  (no mapping)
    config, table = prior_plan(data, {k: list(v.shape) for k, v in found.items()}, path.name)
    weights = {ours: found.pop(published) for ours, published in table.items()}
    return config, digest(config.to_json(), weights), weights
