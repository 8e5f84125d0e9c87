"""Published priors -> our config and names. Nothing else knows their names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..config.fields import MAX_NAMES, typed_value
from ..config.prior import PriorConfig
from ..errors import CheckpointError, ConfigError, one_line
from ..files.tensor_files import Source
from .checkpoint import check_shapes, weight_shapes
from .published import Renamed, read_config

ENTRIES: dict[str, Any] = {
    "depth": int, "vocab": int, "seq_len": int, "n_classes": int, "ctx_dim": int,
    "n_ctx_null": int, "head_bias": bool, "cond": str, "classes": tuple[str, ...],
    "max_text_len": int, "tokenizer": str,
}  # fmt: skip
PRIOR_ENTRIES = frozenset({"seq_len"})  # by which a header is known to hold a prior's config
REQUIRED = ("depth", "vocab", "seq_len", "cond", "tokenizer")

NAMES = {
    "network.embedding.weight": "tok_emb.weight",
    "network.positions": "pos_emb",
    "network.start": "sos",
    "network.class_embedding.weight": "cls_emb.weight",
    "network.context_in.weight": "ctx_in.weight",
    "network.null_context": "ctx_null",
    "network.norm.weight": "norm.weight",
    "network.head.weight": "head.weight",
    "network.head.bias": "head.bias",
}
IN_BLOCK = {
    "norm1": "n1", "norm_cross": "nx", "norm2": "n2",
    "attention.qkv": "attn.qkv", "attention.proj": "attn.proj",
    "cross.q": "xattn.q", "cross.kv": "xattn.kv", "cross.proj": "xattn.proj",
    "mlp.fc1": "ffn.w1", "mlp.fc3": "ffn.w3", "mlp.fc2": "ffn.w2",
}  # fmt: skip

# What the published priors were measured best at: K600 (classes) and uCO3D (captions).
GUIDANCE_K600 = ((1, 3.0), (8, 2.0), (64, 1.0))
GUIDANCE_UCO3D = ((1, 3.0),)


def read_published_prior(
    source: Source, name: str | None = None
) -> tuple[PriorConfig, Mapping[str, Tensor]]:
    """A published folder as a config of ours and our weights, read when asked for."""
    source.check_dtypes()
    name = one_line(name or source.path.name)
    config, table = prior_plan(read_config(source, PRIOR_ENTRIES), source.shapes, name)
    return config, Renamed({ours: (source, key) for ours, key in table.items()})


def is_prior(config: Mapping[str, Any]) -> bool:
    """Whether a published config is a prior's."""
    return "seq_len" in config and "video_flex_tok" not in config


def prior_plan(
    config: Mapping[str, Any], shapes: Mapping[str, list[int]], name: str
) -> tuple[PriorConfig, dict[str, str]]:
    """A published config and the shapes of its tensors -> our config, and for each tensor of our
    `Prior` the published one. `name` is the prior's name, used in messages too.

    Raises CheckpointError, with one line, for entries that are unknown, missing or of another type
    and for tensors that are missing, left over or of another shape.
    """
    ours = _config(config, name)
    table = {key: published_name(key) for key in weight_shapes(ours)}
    for key in table.values():
        if key not in shapes:
            raise CheckpointError(f"prior {name}: tensor {key!r} is missing")
    for key in shapes:
        if key not in table.values():
            raise CheckpointError(f"prior {name}: tensor {key!r} is left over: nothing takes it")
    check_shapes({k: list(shapes[key]) for k, key in table.items()}, ours, f"prior {name}", table)
    return ours, table


def published_name(key: str) -> str:
    """Our tensor name -> the published one."""
    block = re.fullmatch(r"network\.blocks\.(\d+)\.(.+)\.weight", key)
    if block:
        return f"blocks.{block[1]}.{IN_BLOCK[block[2]]}.weight"
    return NAMES[key]


def _config(config: Mapping[str, Any], name: str) -> PriorConfig:
    def fail(what: str) -> CheckpointError:
        return CheckpointError(f"prior {name}: {what}")

    if not isinstance(config, Mapping):
        raise fail(f"its config is {type(config).__name__}, expected an object")
    for key, value in config.items():
        if key not in ENTRIES:
            raise fail(f"unknown config entry {key[:40]!r}")
        try:
            typed_value(ENTRIES[key], value, f"config entry {key!r}")
        except ConfigError as e:
            raise fail(str(e)) from None
    for key in REQUIRED:
        if key not in config:
            raise fail(f"config entry {key!r} is missing")
    cond, count = config["cond"], config.get("n_classes", 0)
    if cond not in ("class", "text"):
        raise fail(f"cond is {cond[:40]!r}; expected 'class' or 'text'")
    text = cond == "text"
    if count > MAX_NAMES:
        raise fail(f"n_classes is {count}; expected at most {MAX_NAMES}")
    if text and count:
        raise fail(f"cond is 'text' with {count} classes; expected none")
    if not text and not count:
        raise fail("cond is 'class', but n_classes is 0 or missing")
    if text and not config.get("ctx_dim"):
        raise fail("cond is 'text', but ctx_dim is 0 or missing")
    if not text and config.get("ctx_dim"):
        raise fail(f"cond is 'class' with ctx_dim {config['ctx_dim']}; expected 0")
    classes = config.get("classes") or [f"class {i}" for i in range(count)]
    if len(classes) != count:
        raise fail(f"{len(classes)} class names for n_classes {count}")
    k600 = "k600" in name.lower() or (not text and "uco3d" not in name.lower())
    try:
        return PriorConfig(
            name=name, tokenizer=config["tokenizer"], depth=config["depth"],
            width=64 * config["depth"], seq_len=config["seq_len"], cond=cond,
            vocab=config["vocab"], classes=tuple(classes), ctx_dim=config.get("ctx_dim", 0),
            n_ctx_null=config.get("n_ctx_null", 16), max_text_len=config.get("max_text_len", 128),
            head_bias=config.get("head_bias", False),
            guidance=GUIDANCE_K600 if k600 else GUIDANCE_UCO3D,
        )  # fmt: skip
    except ConfigError as e:
        raise CheckpointError(str(e)) from None
