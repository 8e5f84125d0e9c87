"""A model by its name: ours, published, or the default in the package."""

from __future__ import annotations

from pathlib import Path

import torch

from .catalog import locate
from .checkpoint import fingerprint, read_tokenizer
from .convert import read_published
from .tensor_files import Source
from .tokenizer import Tokenizer

DEFAULT = Path(__file__).resolve().parent.parent / "weights" / "default.safetensors"
PACKAGED = Path(__file__).resolve().parent / "weights" / "default.safetensors"


def resolve(name: str | Path) -> Path:
    """The file or folder that `name` means: `"default"`, an existing path, or the name of a model
    that has been downloaded. CheckpointError says how to get what is not there."""
    if str(name) == "default":
        return DEFAULT if DEFAULT.exists() else PACKAGED
    return Path(name) if Path(name).exists() else locate(str(name))


def load_tokenizer(
    name: str | Path = "default", *, device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Tokenizer:  # fmt: skip
    """A tokenizer ready to use: `"default"` (in the package), a path to a file of ours or to a
    published folder or file (which is converted in memory; `vft convert` does it once and for
    all), or the catalogue name or hub id of a model that `vft download` has fetched. Never
    downloads anything itself.

    `device` defaults to CUDA where there is one. `dtype` defaults to bfloat16 on CUDA and float32
    on the CPU. Raises CheckpointError, with one line, for anything but a sound file.
    """
    path = resolve(name)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    source = Source.open(path)
    if "vft" in source.metadata:
        config, mark, weights = read_tokenizer(source)
    else:
        config, weights = read_published(source)
        mark = fingerprint(config, weights)
    with torch.device("meta"):
        tokenizer = Tokenizer(config, mark)
    # One tensor at a time: a large model is never held in two dtypes at once.
    state = {k: weights[k].to(device, dtype) for k in weights}
    tokenizer.load_state_dict(state, strict=True, assign=True)
    return tokenizer.eval().requires_grad_(False)
