"""Our weight file, of a tokenizer or a prior: one safetensors file whose header carries the config
and a fingerprint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor

from ..autoencoder.vae import VideoAutoencoder
from ..config.fields import canonical, typed_value
from ..config.prior import PriorConfig
from ..config.tokenizer import TokenizerConfig, VAEConfig
from ..errors import CheckpointError, ConfigError
from ..files.atomic import replacing
from ..files.tensor_files import Cast, Source, digest, digests, write_safetensors
from ..files.untrusted import read_json
from ..prior.prior import Prior
from ..tokenizer.tokenizer import Tokenizer
from .dino import DinoConfig

FORMAT = "1"
PREVIEW = "preview."  # how the names of the preview decoder's tensors begin
CHECKED_BYTES = 1 << 28  # hashing a file up to 256 MiB takes less than a second
Config = TypeVar("Config", TokenizerConfig, PriorConfig)


def fingerprint(config: TokenizerConfig, weights: Mapping[str, Tensor]) -> str:
    """16 hex digits that name a tokenizer: whoever has them can read its ids.

    Over the weights as trained and what the ids depend on in the config; a file's name, its
    storage dtype, the defaults for sampling and a preview decoder make no difference.
    """
    return digest(config.identity(), weights, [k for k in weights if not k.startswith(PREVIEW)])


def save_tokenizer(
    path: str | Path, config: TokenizerConfig, weights: Mapping[str, Tensor],
    dtype: torch.dtype | None, *, mark: str | None = None, license: str = "Apache-2.0",
) -> str:  # fmt: skip
    """Write a tokenizer in one file, atomically, its weights cast to `dtype` (None: as they are)
    and held one at a time. Returns the fingerprint: `mark`, or that of the cast weights."""
    text, identity, cast = config.to_json(), config.identity(), Cast(weights, dtype)
    if config.preview is not None:
        mark = mark or fingerprint(config, cast)
    return _save(path, "tokenizer", text, identity, cast, license, mark)


def save_prior(
    path: str | Path, config: PriorConfig, weights: Mapping[str, Tensor],
    dtype: torch.dtype | None, *, license: str = "Apache-2.0",
) -> str:  # fmt: skip
    """Write a prior, as :func:`save_tokenizer` does. Returns the fingerprint, which is over the
    whole config and the cast weights."""
    text = config.to_json()
    return _save(path, "prior", text, text, Cast(weights, dtype), license)


def save_image_encoder(
    path: str | Path, config: DinoConfig, weights: Mapping[str, Tensor],
    dtype: torch.dtype | None, *, license: str = "Apache-2.0",
) -> str:  # fmt: skip
    """Write an image network under its published names, which ComfyUI's Load CLIP Vision reads too,
    as :func:`save_tokenizer` does. Returns the fingerprint."""
    text = canonical(dataclasses.asdict(config))
    return _save(path, "image encoder", text, text, Cast(weights, dtype), license)


def _save(
    path: str | Path, kind: str, text: str, identity: str, weights: Cast, license: str,
    mark: str | None = None,
) -> str:  # fmt: skip
    """Write a file of ours with the config `text`. Returns its fingerprint: `mark`, or that over
    `identity` and the weights."""
    found = digests({text} if mark else {text, identity}, weights)
    mark = mark or found[identity]
    meta = {"format": FORMAT, "kind": kind, "fingerprint": mark, "digest": found[text]}
    header = {"vft": json.dumps(meta), "config": text, "license": license}
    with replacing(path) as tmp:
        write_safetensors(tmp, weights, header)
    return mark


def save_vae(path: str | Path, vae: VideoAutoencoder) -> None:
    """Write an autoencoder on its own: what `vft train vae` hands to `vft train tokenizer`."""
    header = {"vft": json.dumps({"format": FORMAT, "kind": "vae"})}
    with replacing(path) as tmp:
        write_safetensors(tmp, Cast(vae.state_dict(), torch.float32), header)


def load_vae(path: str | Path, config: VAEConfig) -> VideoAutoencoder:
    """Read what :func:`save_vae` wrote; it must fit `config`."""
    vae = VideoAutoencoder(config)
    try:
        vae.load_state_dict(dict(Source.open(path)))
    except RuntimeError as e:
        raise CheckpointError(f"{path} does not hold this autoencoder: {e}") from None
    return vae.eval().requires_grad_(False)


def read_tokenizer(source: Source) -> tuple[TokenizerConfig, str, Mapping[str, Tensor]]:
    """Config, fingerprint and weights of a file of ours. The weights are known to be complete and
    of the right shapes, and are read when asked for. Raises CheckpointError."""
    return _read(source, "tokenizer", TokenizerConfig)


def read_prior(source: Source) -> tuple[PriorConfig, str, Mapping[str, Tensor]]:
    """The same of a prior."""
    return _read(source, "prior", PriorConfig)


def _read(
    source: Source, kind: str, config_type: type[Config]
) -> tuple[Config, str, Mapping[str, Tensor]]:
    path = source.path
    meta, text = header_of(source, kind)
    try:
        config = config_type.from_json(text)
        mark = typed_value(str, meta.get("fingerprint"), "its fingerprint")
    except ConfigError as e:
        raise CheckpointError(f"{path}: {e}") from None
    source.check_dtypes()
    check_shapes(source.shapes, config, str(path))
    if source.size < CHECKED_BYTES and digest(text, source) != meta.get("digest"):
        raise CheckpointError(f"{path} is damaged: its weights do not match its digest")
    return config, mark, source


def header_of(source: Source, kind: str) -> tuple[dict[str, object], str]:
    """What the header of a file of ours says: facts, and the config's text. CheckpointError if it
    is of another kind than `kind`, or of another format."""
    try:
        meta = read_json(source.metadata.get("vft", "null"))
    except ValueError:
        meta = None
    found = meta.get("kind") if isinstance(meta, dict) else None
    if not isinstance(meta, dict) or found != kind:
        what = f"a VFT {found}" if isinstance(found, str) else "a safetensors file"
        raise CheckpointError(f"{source.path} is {what[:40]}, but not a VFT {kind}")
    if meta.get("format") != FORMAT:
        raise CheckpointError(
            f"{source.path} has format {meta.get('format')!r}; this program reads {FORMAT}: "
            "update it"
        )
    return meta, source.metadata.get("config", "null")


def check_shapes(
    shapes: Mapping[str, list[int]], config: TokenizerConfig | PriorConfig, where: str,
    names: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """CheckpointError unless exactly the tensors of such a model are there. `names` are the ones
    that the reader of a message knows, where they differ from ours."""
    names, wanted = names or {}, weight_shapes(config)
    for key in wanted.keys() ^ shapes.keys():
        state = "misses" if key in wanted else "has an unexpected"
        known = f" ({names[key]!r} in the file)" if key in names else ""
        raise CheckpointError(f"{where} {state} tensor {key!r}{known}")
    for key, shape in shapes.items():
        if shape != list(wanted[key]):
            name = names.get(key, key)
            says = list(wanted[key])
            raise CheckpointError(f"{where}: {name!r} is {shape}, its config says {says}")


@lru_cache(maxsize=8)
def weight_shapes(config: TokenizerConfig | PriorConfig) -> Mapping[str, torch.Size]:
    """The names and shapes of the weights of such a model."""
    with torch.device("meta"):
        model = Tokenizer(config) if isinstance(config, TokenizerConfig) else Prior(config)
    return MappingProxyType({k: v.shape for k, v in model.state_dict().items()})
