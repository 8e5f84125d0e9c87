"""The readers, and what is asked of each. A target takes any bytes; see `oracle.judge` for what it
may do with them.

The first byte of an input says how the rest becomes a file: `R` it is the file; `H` it is the
header of a safetensors file, whose length and zeros for data are added (so that an input is small,
and a changed header does not need a changed length); `S` the same, and the header's digest is made
right; `F` a `config.json`, a separator, and a
header; `C` a config alone, to which sound tensors are added.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from vft_lib.checkpoints import convert
from vft_lib.checkpoints.checkpoint import read_prior, read_tokenizer, weight_shapes
from vft_lib.checkpoints.convert import read_published
from vft_lib.checkpoints.convert_prior import _config, published_name, read_published_prior
from vft_lib.config.preview import PreviewConfig
from vft_lib.config.prior import PriorConfig, TextEncoderConfig
from vft_lib.config.tokenizer import (
    DecoderConfig,
    EncoderConfig,
    PosembConfig,
    TokenizerConfig,
    TransformerConfig,
    VAEConfig,
)
from vft_lib.errors import VftError
from vft_lib.files.packaged import packaged
from vft_lib.files.tensor_files import Source, digest
from vft_lib.models import loading
from vft_lib.models.catalog import Entry, read_catalog
from vft_lib.models.loading import kind_of, load_prior, load_tokenizer
from vft_lib.tokens import Tokens

from .oracle import FOLDER, Finding, printable, same

PAD = 4 << 20  # bytes of zeros that are added at most
SEPARATOR = b"\n----\n"
GOLDEN = Path(__file__).parent.parent / "golden"
ITEM = {"F32": 4, "BF16": 2, "F16": 2, "U16": 2, "I64": 8, "F64": 8, "U8": 1, "I32": 4}

SMALL_VAE = VAEConfig(8, (1, 1, 1, 1), 1, 1, 4)
TOKENIZER = TokenizerConfig(
    "small", 16, 2, SMALL_VAE,
    EncoderConfig(TransformerConfig(8, 1, 8), (1, 2, 2), PosembConfig((5, 1, 1)), 5),
    DecoderConfig(
        TransformerConfig(8, 1, 8, modulation_kinds=2), (1, 2, 2), PosembConfig((5, 1, 1)),
        PosembConfig((5, 2)),
    ),
)  # fmt: skip
PREVIEWED = dataclasses.replace(TOKENIZER, preview=PreviewConfig(4, 1, 2, 2))
PRIOR = PriorConfig(
    "small", "small", 1, 8, 10, "both", vocab=16, head_dim=8, classes=("run", "sit"), ctx_dim=8,
    n_ctx_null=2, max_text_len=4, embedding="factorized", fsq_levels=(4, 4), size=16,
    text_encoder=TextEncoderConfig(("a", "dog"), 4, 8, 1, 8, 4), tokenizer_fingerprint="ab",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """`run` reads an input; `examples` are sound ones, which a hunt begins with; `modes` are the
    first bytes it knows (none: the input is the file)."""

    run: Callable[[bytes], None]
    examples: Callable[[], list[bytes]]
    modes: bytes = b""


# ------------------------------------------------------------------ from an input to a file


def header_file(header: bytes) -> bytes:
    """A safetensors file with this header, and as many zeros as its tensors ask for."""
    end = 0
    try:
        entries = json.loads(header.decode("utf-8"))
        for entry in entries.values() if isinstance(entries, dict) else ():
            if isinstance(entry, dict) and isinstance(entry.get("data_offsets"), list):
                ends = [n for n in entry["data_offsets"] if type(n) is int]
                end = max([end, *(n for n in ends if n <= PAD)])
    except (ValueError, RecursionError):
        pass
    return len(header).to_bytes(8, "little") + header + bytes(end)


def write(data: bytes, path: Path) -> Path:
    """The file that an input stands for."""
    mode, rest = data[:1], data[1:]
    if mode == b"C":
        mode, rest = b"S", completed(rest)
    if mode == b"F":
        folder = path.with_suffix("")
        folder.mkdir(exist_ok=True)
        config, _, header = rest.partition(SEPARATOR)
        (folder / "config.json").write_bytes(config)
        (folder / "model.safetensors").write_bytes(header_file(header))
        return folder
    path.write_bytes(rest if mode == b"R" else header_file(rest))
    if mode == b"S":
        sign(path, rest)
    return path


def sign(path: Path, header: bytes) -> None:
    """Make the digest right, where a reader would get as far as that."""
    try:
        entries = json.loads(header.decode("utf-8"))
        meta = json.loads(entries["__metadata__"]["vft"])
        source = Source.open(path)
        source.check_dtypes()
        meta["digest"] = digest(entries["__metadata__"]["config"], source)
        entries["__metadata__"]["vft"] = json.dumps(meta)
    except (VftError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return
    path.write_bytes(header_file(json.dumps(entries).encode()))


def completed(rest: bytes) -> bytes:
    """A header around a config of ours, with the tensors it asks for; around the entries of a
    published one, with those of the example."""
    try:
        data = json.loads(rest.decode("utf-8"))
        assert isinstance(data, dict)
        if "vae" not in data and "cond" not in data:
            return json.dumps({"__metadata__": data} | layout(published_tokenizer()[1])).encode()
        kind: Any = PriorConfig if "cond" in data else TokenizerConfig
        header = our_header(kind.from_json(rest.decode()))
        header["__metadata__"]["config"] = rest.decode()
        return json.dumps(header).encode()
    except (VftError, ValueError, AssertionError, RecursionError):
        return rest


def layout(shapes: dict[str, list[int]], dtype: str = "BF16") -> dict[str, Any]:
    """The entries of a header for tensors of these shapes, one after the other."""
    entries: dict[str, Any] = {}
    start = 0
    for name, shape in shapes.items():
        end = start + ITEM.get(dtype, 1) * math.prod(shape)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        start = end
    return entries


# ------------------------------------------------------------------ tokens


def tokens(data: bytes) -> None:
    path = write(data, FOLDER / "a.vft")
    found = Tokens.load(path)
    printable(found.tokenizer, found.fingerprint, found.fit)
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    begin, end = json.loads(raw[8:start])["ids"]["data_offsets"]
    ids = np.frombuffer(raw[start + begin : start + end], "<u2").astype(np.int64)
    same(found.ids[0][found.there].tolist(), ids.tolist(), "ids")
    if not 0 < found.seconds < math.inf:
        raise Finding(f"a clip of {found.seconds} s")
    found.save(FOLDER / "b.vft")
    again = Tokens.load(FOLDER / "b.vft")
    same(torch.equal(found.ids, again.ids), True, "ids")
    same(_fields(found), _fields(again), "metadata")


def _fields(t: Tokens) -> dict[str, Any]:
    return {k: v for k, v in vars(t).items() if k != "ids"}


def tokens_examples() -> list[bytes]:
    meta = {
        "version": 1, "tokenizer": "small", "fingerprint": "ab", "frames": 17, "fps": 8.0,
        "size": [16, 16], "source_size": [20, 30], "fit": "crop", "source": "clip.mp4",
    }  # fmt: skip
    header = {"__metadata__": {"vft": json.dumps(meta), "workflow": "{}"}}
    header |= layout({"ids": [5, 2]}, "U16")
    uneven = Tokens(torch.tensor([[[1, -1], [2, 3]]]), "small", "ab", 5, 8.0, (16, 16),
                    budgets=(1, 2))  # fmt: skip
    uneven.save(FOLDER / "uneven.vft")
    return [
        b"H" + json.dumps(header).encode(), b"R" + packaged("example.vft").read_bytes(),
        b"R" + (FOLDER / "uneven.vft").read_bytes(),
    ]  # fmt: skip


# ------------------------------------------------------------------ our checkpoints


def checkpoint(data: bytes) -> None:
    path = write(data, FOLDER / "a.safetensors")
    with_prior = kind_of(Source.open(path)) == "prior"
    if "vft" not in Source.open(path).metadata:
        raise VftError("published: the other target's")
    model = (load_prior if with_prior else load_tokenizer)(path, device="cpu")
    printable(model.fingerprint)
    check_config(model.config)


def check_config(config: TokenizerConfig | PriorConfig) -> None:
    """It comes back from its JSON, a model of it can be described, its words can be printed."""
    text = config.to_json()
    same(config, type(config).from_json(text), "config")
    same(text, type(config).from_json(text).to_json(), "its JSON")
    printable(config.name)
    if isinstance(config, PriorConfig):
        words = config.text_encoder.words if config.text_encoder else ()
        printable(config.tokenizer, config.tokenizer_fingerprint, *config.classes, *words)
    else:
        config.identity()
    weight_shapes(config)


def our_header(config: TokenizerConfig | PriorConfig) -> dict[str, Any]:
    kind = "prior" if isinstance(config, PriorConfig) else "tokenizer"
    meta = {"format": "1", "kind": kind, "fingerprint": "ab", "digest": ""}
    header = {"vft": json.dumps(meta), "config": config.to_json(), "license": "Apache-2.0"}
    shapes = {k: list(v) for k, v in weight_shapes(config).items()}
    return {"__metadata__": header} | layout(shapes)


def checkpoint_examples() -> list[bytes]:
    published_tokenizer()  # read once
    configs = (TOKENIZER, PREVIEWED, PRIOR)
    files = [b"S" + json.dumps(our_header(c)).encode() for c in configs]
    return files + [b"C" + c.to_json().encode() for c in configs]


# ------------------------------------------------------------------ configs alone


def config(data: bytes) -> None:
    kind = PriorConfig if data[:1] == b"P" else TokenizerConfig
    found: Any = kind.from_json(data[1:].decode("utf-8", "replace"))
    check_config(found)


def config_examples() -> list[bytes]:
    tokenizers = [b"T" + c.to_json().encode() for c in (TOKENIZER, PREVIEWED)]
    return [*tokenizers, b"P" + PRIOR.to_json().encode()]


# ------------------------------------------------------------------ published files

VAE_ID = "vidtok_kl_causal_488_4chn"


def published(data: bytes) -> None:
    path = write(data, FOLDER / "p.safetensors")
    convert.VAES[VAE_ID] = SMALL_VAE
    if "vft" in Source.open(path).metadata:
        raise VftError("ours: the other target's")
    out = FOLDER / "out.safetensors"
    loading.convert(path, out)
    source, again = Source.open(path), Source.open(out)
    config: TokenizerConfig | PriorConfig
    if kind_of(again) == "prior":
        config, _, weights = read_prior(again)
        same(read_published_prior(source)[0], config, "config")
    else:
        config, _, weights = read_tokenizer(again)
        same(read_published(source)[0], config, "config")
    check_config(config)
    if any(w.any() for w in weights.values()) and data[:1] != b"R":
        raise Finding("weights out of nothing")


@lru_cache(maxsize=1)
def published_tokenizer() -> tuple[dict[str, Any], dict[str, list[int]]]:
    """A published config, and the shapes of its tensors (with a small autoencoder)."""
    text = (GOLDEN / "time-causal" / "config.json").read_text()
    config = json.loads(text.replace("vidtok_kl_causal_488_16chn", VAE_ID))
    net = config["video_flex_tok"]
    net["decoder"]["module_dict"].pop("dec_repa_head")
    for side in ("encoder", "decoder"):
        for module in net[side]["module_dict"].values():
            sizes = {"dim": 8, "depth": 1, "head_dim": 8, "channels_in": 4, "channels_out": 4}
            module |= {k: v for k, v in sizes.items() if k in module}
    net["pipeline"] |= {k: 4 for k in ("out_channels",) if k in net["pipeline"]}
    convert.VAES[VAE_ID] = SMALL_VAE
    found, rename = convert.architecture(config, {}, "small")
    wanted, shapes = weight_shapes(found), {}
    for case in ("time-causal", "vae"):
        for key in json.loads((GOLDEN / case / "state.json").read_text()):
            key = key.removeprefix("video_tokenizer.")
            ours = rename(key)
            if ours in wanted and key.startswith("vae.") == (case == "vae"):
                shapes[key] = list(wanted[str(ours)])
    return config, shapes


def published_prior(case: str) -> tuple[dict[str, Any], dict[str, list[int]]]:
    config = json.loads((GOLDEN / case / "config.json").read_text())
    config |= {"depth": 1, "vocab": 8}
    with_class = config["cond"] == "class"
    config |= {"n_classes": 2, "classes": ["a", "b"]} if with_class else {"ctx_dim": 8}
    ours = _config(config, "small")
    return config, {published_name(k): list(v) for k, v in weight_shapes(ours).items()}


def published_examples() -> list[bytes]:
    config, shapes = published_tokenizer()
    files = []
    for write_as in (json.dumps, repr, as_yaml):
        files.append(b"C" + json.dumps({k: write_as(v) for k, v in config.items()}).encode())
    for case in ("prior-class", "prior-text"):
        prior, tensors = published_prior(case)
        entries = {k: repr(v) for k, v in prior.items()}
        header = {"__metadata__": entries} | layout(tensors)
        files.append(b"H" + json.dumps(header).encode())
        folder = json.dumps(prior).encode() + SEPARATOR + json.dumps(layout(tensors)).encode()
        files.append(b"F" + folder)
    return files


def as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False)


# ------------------------------------------------------------------ the catalogue


def catalogue(data: bytes) -> None:
    path = FOLDER / "catalog.toml"
    path.write_bytes(data)
    entries = read_catalog(path)
    for name, entry in entries.items():
        same(name, entry.name, "name")
        printable(*(v for v in vars(entry).values() if isinstance(v, str)), *entry.files)
        printable(entry.facts, entry.hub_id)
        if ".." in entry.hub_id.split("/") or Path(entry.file_name).name != entry.file_name:
            raise Finding(f"a path that leaves its folder: {entry}")
    path.write_text("".join(map(as_toml, entries.values())) or "model = []", encoding="utf-8")
    same(list(entries.values()), list(read_catalog(path).values()), "catalogue")


def as_toml(entry: Entry) -> str:
    values = {k: v for k, v in vars(entry).items() if v is not None}
    lines = [f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in values.items()]
    return "[[model]]\n" + "\n".join(lines) + "\n"


def catalogue_examples() -> list[bytes]:
    entries = packaged("catalog.toml").read_text().split("[[model]]")
    names = ('name = "k600-videoflextok"\n', 'name = "k600-videoflextok-d10"\n')
    return ["[[model]]".join(["", *(e for e in entries if any(n in e for n in names))]).encode()]


TARGETS = {
    "tokens": Target(tokens, tokens_examples, b"RH"),
    "checkpoint": Target(checkpoint, checkpoint_examples, b"RHSC"),
    "config": Target(config, config_examples, b"TP"),
    "published": Target(published, published_examples, b"RHFC"),
    "catalog": Target(catalogue, catalogue_examples),
}
