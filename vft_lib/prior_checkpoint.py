"""Prior weights: our single file, config and fingerprint in the header, as a tokenizer's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .atomic import replacing
from .checkpoint import CHECKED_BYTES, FORMAT, header_of, same_shapes
from .errors import CheckpointError, ConfigError
from .prior import Prior
from .prior_config import PriorConfig
from .tensor_files import Cast, Source, digest, write_safetensors


def save_prior(
    path: str | Path, config: PriorConfig, weights: Mapping[str, Tensor],
    dtype: torch.dtype | None, *, license: str = "Apache-2.0",
) -> str:  # fmt: skip
    """Write a prior in one file, atomically, its weights cast to `dtype` (None: as they are) and
    held one at a time. Returns the fingerprint."""
    weights, text = Cast(weights, dtype), config.to_json()
    mark = digest(text, weights)
    meta = {"format": FORMAT, "kind": "prior", "fingerprint": mark, "digest": mark}
    header = {"vft": json.dumps(meta), "config": text, "license": license}
    with replacing(path) as tmp:
        write_safetensors(tmp, weights, header)
    return mark


def read_prior(source: Source) -> tuple[PriorConfig, str, Mapping[str, Tensor]]:
    """Config, fingerprint and weights of a file of ours. The weights are known to be complete and
    of the right shapes, and are read when asked for. Raises CheckpointError."""
    meta, text = header_of(source, "prior")
    try:
        config = PriorConfig.from_json(text)
    except ConfigError as e:
        raise CheckpointError(f"{source.path}: {e}") from None
    source.check_dtypes()
    with torch.device("meta"):
        same_shapes(source.shapes, Prior(config).state_dict(), str(source.path))
    if source.size < CHECKED_BYTES and digest(text, source) != meta.get("digest"):
        raise CheckpointError(f"{source.path} is damaged: its weights do not match its digest")
    return config, str(meta.get("fingerprint")), source
