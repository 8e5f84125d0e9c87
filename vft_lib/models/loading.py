"""Models by their names: ours, published, or the defaults in the package; and published to ours."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..checkpoints.checkpoint import (
    PREVIEW,
    fingerprint,
    header_of,
    read_prior,
    read_tokenizer,
    save_image_encoder,
    save_prior,
    save_tokenizer,
)
from ..checkpoints.convert import TOKENIZER_ENTRIES, read_published
from ..checkpoints.convert_prior import PRIOR_ENTRIES, is_prior, read_published_prior
from ..checkpoints.dino import KIND, build_dino, read_dino_config
from ..checkpoints.published import parse_config, read_config
from ..config.preview import PreviewConfig
from ..config.tokenizer import TokenizerConfig
from ..errors import CheckpointError
from ..files.atomic import check_place
from ..files.packaged import packaged
from ..files.tensor_files import Gathered, Source, digest
from ..image_features import PUBLISHED, ImageEncoder
from ..prior.prior import Prior
from ..tokenizer.tokenizer import Tokenizer
from ..transformer.offload import offloaded
from .catalog import locate

EMBEDDED = {
    "tokenizer": {"default": "default.safetensors"},
    "prior": {"default": "prior.safetensors"},
    "image encoder": {},
}
"""Models that come with this program: files in `weights/`, by kind and name."""


def resolve(name: str | Path, kind: str = "tokenizer") -> Path:
    """The file or folder that `name` means: a name in `EMBEDDED`, an existing path, or the name of
    a model that has been downloaded. CheckpointError says how to get what is not there."""
    if str(name) in EMBEDDED[kind]:
        return packaged(EMBEDDED[kind][str(name)])
    return Path(name) if Path(name).exists() else locate(str(name), kind)


def load_tokenizer(
    name: str | Path = "default", *, device: str | torch.device | None = None,
    dtype: torch.dtype | None = None, ops: Any = nn,
) -> Tokenizer:  # fmt: skip
    """A tokenizer ready to use: `"default"` (in the package), a path to a file of ours or to a
    published folder or file (which is converted in memory; `vft convert` does it once and for all),
    or the catalogue name or hub id of a model that `vft download` has fetched. Never downloads
    anything itself.

    `device` defaults to CUDA where there is one, `dtype` to :func:`usual_dtype` of the device. The
    decoder's modulation weights stay in the host's memory: see `Decoder.offload_modulation`. `ops`
    has the layer classes to build with, those of `torch.nn` unless given. Raises CheckpointError,
    with one line, for anything but a sound file.
    """
    source, config, mark, weights = stored_tokenizer(name)
    with torch.device("meta"):
        tokenizer = Tokenizer(config, mark, ops)
    if config.distilled:
        tokenizer.decoder_mark = f"{mark} {header_of(source, 'tokenizer')[0].get('digest')}"
    tokenizer.decoder.offload_modulation()
    return _filled(tokenizer, weights, device, dtype)


def stored_tokenizer(
    name: str | Path,
) -> tuple[Source, TokenizerConfig, str, Mapping[str, Tensor]]:
    """The file that `name` means, as :func:`load_tokenizer` reads it: with its config, fingerprint
    and weights as they are stored, read when asked for."""
    source = Source.open(resolve(name))
    if "vft" in source.metadata:
        return source, *read_tokenizer(source)
    config, weights = read_published(source)
    return source, config, fingerprint(config, weights), weights


def licence_of(source: Source) -> str:
    """What a file of ours says, or words that send to the published one."""
    return source.metadata.get("license") or "that of the published file it was converted from"


def add_preview(
    name: str | Path, dst: str | Path, preview: PreviewConfig, weights: Mapping[str, Tensor]
) -> str:
    """Write the tokenizer `name` (as :func:`load_tokenizer` takes it) with a preview decoder, in
    place of one that it has: `weights` are those of `PreviewDecoder`, stored in float16, all others
    stay as they are stored. Returns the fingerprint, which stays the same."""
    source, config, mark, stored = stored_tokenizer(name)
    own = {f"{PREVIEW}{k}": v.half() for k, v in weights.items()}
    places: dict[str, Mapping[str, Tensor]] = {
        k: stored for k in stored if not k.startswith(PREVIEW)
    }
    places |= dict.fromkeys(own, own)
    check_place(dst, source.size + sum(v.nbytes for v in own.values()))
    config = replace(config, preview=preview)
    return save_tokenizer(
        dst, config, Gathered(places), None, mark=mark, license=licence_of(source)
    )


def load_prior(
    name: str | Path = "default", *, device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Prior:  # fmt: skip
    """A prior ready to use; `name`, `device`, `dtype` and errors as in :func:`load_tokenizer`."""
    source = Source.open(resolve(name, "prior"))
    if "vft" in source.metadata:
        config, mark, weights = read_prior(source)
    else:
        config, weights = read_published_prior(source)
        mark = digest(config.to_json(), weights)
    with torch.device("meta"):
        prior = Prior(config, mark)
    return _filled(prior, weights, device, dtype)


def load_image_encoder(
    name: str | Path = PUBLISHED, *, device: str | torch.device | None = None
) -> ImageEncoder:
    """The DINOv2 network that SemanTok's tokenizers encode with, for
    `Tokenizer.use_image_encoder`: the catalogue name of one that `vft download` has fetched, its
    file, or a published folder (`config.json` and safetensors). `device` as in
    :func:`load_tokenizer`; its weights are float32, on a GPU it computes in bfloat16. Raises
    CheckpointError for any other network, VftError where transformers is not installed."""
    source = Source.open(resolve(name, "image encoder"))
    if "vft" in source.metadata:
        data = parse_config(header_of(source, "image encoder")[1], str(source.path))
    elif source.path.is_dir():
        data = read_config(source, frozenset())
    else:
        raise CheckpointError(
            f"{source.path} does not say what network it is: give its folder, with config.json"
        )
    source.check_dtypes()
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    config = read_dino_config(data, str(source.path))
    return build_dino(config, source, str(source.path), torch.device(device))


def usual_dtype(device: torch.device) -> torch.dtype:
    """What models compute in unless told otherwise: on a CUDA or ROCm device bfloat16, float16 on
    cards that have no instructions for it (before Ampere), float32 everywhere else."""
    if device.type != "cuda":
        return torch.float32
    if torch.version.hip or torch.cuda.get_device_capability(device) >= (8, 0):
        return torch.bfloat16
    return torch.float16


Model = TypeVar("Model", bound=nn.Module)


def _filled(
    model: Model, weights: Mapping[str, Tensor], device: str | torch.device | None,
    dtype: torch.dtype | None,
) -> Model:  # fmt: skip
    """One tensor at a time: a large model is never held in two dtypes at once."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    dtype = dtype or usual_dtype(device)
    at_home = {f"{n}.{k}" for n, m in offloaded(model).items() for k in m.state_dict()}
    state = {k: weights[k].to("cpu" if k in at_home else device, dtype) for k in weights}
    model.load_state_dict(state, strict=True, assign=True)
    return model.to(device).eval().requires_grad_(False)  # .to: buffers that are no weights


def kind_of(source: Source) -> str:
    """What a file of ours, or a published one, holds: a key of `EMBEDDED`; "tokenizer" where it is
    of ours, but nothing that we know. CheckpointError if it is neither."""
    if "vft" not in source.metadata:
        published = is_prior(read_config(source, TOKENIZER_ENTRIES | PRIOR_ENTRIES))
        return "prior" if published else "tokenizer"
    for kind in EMBEDDED:
        with suppress(CheckpointError):
            header_of(source, kind)
            return kind
    return "tokenizer"


def convert(
    src: str | Path, dst: str | Path, *, dtype: torch.dtype | None = None,
    vae: str | Path | None = None, name: str | None = None, license: str | None = None,
) -> str:  # fmt: skip
    """Write a published tokenizer, prior or DINOv2 network (folder or single file) as our single
    file, its weights cast to `dtype` (None: as they are). Where a tokenizer's file has no video
    autoencoder it is taken from `vae`. Returns the fingerprint, of a tokenizer the same whatever
    `dtype` is."""
    source = Source.open(src)
    if "vft" in source.metadata:
        raise CheckpointError(f"{src} is a file of ours already; use it as it is")
    check_place(dst, source.bytes_in(dtype))
    license = license or licence_of(source)
    data = read_config(source, frozenset()) if source.path.is_dir() else {}
    if data.get("model_type") == KIND:
        dino = read_dino_config(data, str(src))
        source.check_dtypes()
        return save_image_encoder(dst, dino, source, dtype, license=license)
    if kind_of(source) == "prior":
        prior, weights = read_published_prior(source, name)
        return save_prior(dst, prior, weights, dtype, license=license)
    config, weights = read_published(source, vae=Source.open(vae) if vae else None, name=name)
    mark = fingerprint(config, weights)
    return save_tokenizer(dst, config, weights, dtype, mark=mark, license=license)
