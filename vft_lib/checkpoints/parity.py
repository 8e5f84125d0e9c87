"""Parity cases: our code against recorded outputs of the published code, on made-up weights.

A case is a folder: `config.json` in the published format, `state.json` with the shape, mean and
standard deviation of every tensor, `io.safetensors` with inputs and expected outputs, `case.json`
with the checks. Values of a tensor follow from its name alone (:func:`made_up`), so no weights are
stored and every option can be covered.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..config.prior import PriorConfig
from ..config.tokenizer import FeatureAggregate, GlobalMode, TokenizerConfig
from ..errors import CheckpointError, VftError
from ..image_features import ImageEncoder, ImageFeatures, image_features
from ..prior.network import Condition
from ..prior.prior import Prior
from ..tokenizer import flow
from ..tokenizer.sampling import Sampling
from ..tokenizer.tokenizer import Tokenizer
from ..tokens import Tokens
from .checkpoint import weight_shapes
from .convert import fit, plan
from .convert_prior import is_prior, prior_plan
from .dino import build_dino, read_dino_config
from .published import parse_config

MAX_ELEMENTS = 1 << 32


@dataclass(frozen=True)
class Result:
    """One check: the relative error ‖got − expected‖ / ‖expected‖, or for ids the share that
    differs."""

    case: str
    op: str
    expect: str
    error: float
    tol: float

    @property
    def ok(self) -> bool:
        return self.error <= self.tol  # not if it is nan


def made_up(name: str, shape: list[int], std: float = 1.0) -> np.ndarray:
    """float32 array that depends on `name` only: uniform, zero mean, standard deviation `std`.

    The generator PCG64 is seeded with the first eight bytes (little-endian) of the name's SHA-256,
    and the upper 53 bits of each of its raw 64-bit outputs make a number in [0, 1), in row-major
    order: the same on every machine and NumPy version.
    """
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    bits = np.random.PCG64(seed).random_raw(math.prod(shape))
    unit = (bits >> np.uint64(11)) * 2.0**-53
    return ((unit * 2 - 1) * math.sqrt(3) * std).astype(np.float32).reshape(shape)


def run_case(
    folder: str | Path, device: torch.device | None = None, dtype: torch.dtype = torch.float32,
    attention: str = "auto",
) -> Iterator[Result]:  # fmt: skip
    """Run the checks of one case on `device` (default: the CPU) with weights in `dtype`: the
    tolerances are for float32. `attention` as `Tokenizer.use_attention` takes it. Raises VftError
    for a folder that is no case."""
    device = torch.device("cpu") if device is None else device
    folder = Path(folder)
    case, config, state = (
        parse_config(_read(folder / name), str(folder / name))
        for name in ("case.json", "config.json", "state.json")
    )
    try:
        io = load_file(folder / "io.safetensors")
    except (OSError, SafetensorError, ValueError) as e:
        raise CheckpointError(f"{folder}/io.safetensors is not readable: {e}") from None
    model = _model(folder, config, state, bool(case.get("has_vae")), device, dtype)
    if isinstance(model, Tokenizer):
        model.use_attention(attention)
    here = {name: value.to(device) for name, value in io.items()}
    run = _ops(model)
    for check in case.get("checks", []):
        try:
            op, tol = check["op"], float(check["tol"])
            if op not in run:
                raise VftError(f"{folder}: unknown op {op!r}; known: {', '.join(run)}")
            for name, got in run[op](check, here):
                yield Result(folder.name, op, name, _error(got, io[name]), tol)
        except (KeyError, TypeError) as e:
            raise VftError(f"{folder}: a check lacks or mistypes {e}: {str(check)[:80]}") from None


def _read(file: Path) -> bytes:
    if not file.is_file():
        raise VftError(f"{file} does not exist: {file.parent} is not a parity case")
    return file.read_bytes()


def _error(got: Tensor, expected: Tensor) -> float:
    if got.shape != expected.shape:
        return math.inf
    if not expected.is_floating_point():
        return (got.cpu() != expected).float().mean().item()
    return ((got.cpu().float() - expected).norm() / expected.norm()).item()


def make_weights(
    state: Mapping[str, Mapping[str, Any]], key: str, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The tensor that `state.json` describes under `key`."""
    entry = state[key]
    return torch.from_numpy(
        np.float32(entry["mean"]) + made_up(key, list(entry["shape"]), entry["std"])
    ).to(dtype)


def _model(
    folder: Path, config: dict[str, Any], state: dict[str, Any], has_vae: bool,
    device: torch.device, dtype: torch.dtype,
) -> Tokenizer | Prior | ImageEncoder:  # fmt: skip
    """The case's model on made-up weights; without those of an autoencoder unless it `has_vae`."""
    shapes = _shapes(folder, state)
    if "dinov2" in config:
        made = {key: make_weights(state, key) for key in state}
        dino = read_dino_config(config["dinov2"], folder.name)
        return build_dino(dino, made, folder.name, device, dtype)
    ours: TokenizerConfig | PriorConfig
    if is_prior(config):
        ours, table = prior_plan(config, shapes, folder.name)
    else:
        shapes, names = fit(shapes)
        ours, table = plan(config, shapes, folder.name, str(folder), has_vae=has_vae)
        table = {k: names[key] for k, key in table.items()}
    wanted = weight_shapes(ours)
    weights = {k: make_weights(state, key).reshape(wanted[k]) for k, key in table.items()}
    with torch.device("meta"):
        model = Tokenizer(ours, "parity") if isinstance(ours, TokenizerConfig) else Prior(ours)
    weights = {k: w.to(device, dtype) for k, w in weights.items()}
    model.load_state_dict(weights, strict=has_vae or isinstance(model, Prior), assign=True)
    if isinstance(model, Prior):
        model.to(device)  # its buffers are no weights
    else:
        model.decoder.offload_modulation()  # as `load_tokenizer` does
    return model.eval().requires_grad_(False)


def _shapes(folder: Path, state: dict[str, Any]) -> dict[str, list[int]]:
    try:
        shapes = {k: [int(n) for n in v["shape"]] for k, v in state.items()}
        for entry in state.values():
            float(entry["mean"]), float(entry["std"])
    except (KeyError, TypeError, ValueError) as e:
        raise CheckpointError(f"{folder}/state.json: an entry lacks or mistypes {e}") from None
    if sum(map(math.prod, shapes.values())) > MAX_ELEMENTS:
        raise CheckpointError(f"{folder}/state.json describes more than {MAX_ELEMENTS} numbers")
    return shapes


Op = Callable[[dict[str, Any], dict[str, Tensor]], Iterator[tuple[str, Tensor]]]


def single(compute: Callable[[dict[str, Any], dict[str, Tensor]], Tensor]) -> Op:
    """An op that computes one expected tensor."""

    @torch.inference_mode()
    def op(check: dict[str, Any], io: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        yield check["expect"], compute(check, io)

    return op


def _ops(model: Tokenizer | Prior | ImageEncoder) -> dict[str, Op]:
    """Each op: (check, tensors of the case) -> names of expected tensors and what we compute."""
    if isinstance(model, Tokenizer):
        return _tokenizer_ops(model)
    return _prior_ops(model) if isinstance(model, Prior) else _feature_ops(model)


def _feature_ops(encoder: ImageEncoder) -> dict[str, Op]:
    def features(c: dict[str, Any], io: dict[str, Tensor]) -> Tensor:
        kind = "agg" if c.get("agg") is not None else "global"
        value = c[kind]
        known = {"agg": get_args(FeatureAggregate), "global": get_args(GlobalMode)}[kind]
        if value not in known:
            raise VftError(f"{kind} is {str(value)[:40]!r}; expected one of {', '.join(known)}")
        if kind == "agg":
            made = image_features(encoder, io[c["video"]], aggregate=value).grids
        else:
            made = image_features(encoder, io[c["video"]], vectors=value).vectors
        assert made is not None
        return made

    return {"image_features": single(features)}


def _prior_ops(prior: Prior) -> dict[str, Op]:
    def condition(c: dict[str, Any], io: dict[str, Tensor], batch: int, guided: bool) -> Condition:
        classes = torch.tensor(c["class_ids"]) if c.get("class_ids") else None
        states = io[c["text"]] if c.get("text") else None
        mask = io[c["text_mask"]] if c.get("text_mask") else None
        return prior.network.condition(batch, classes, states, mask, guided=guided)

    def logits(c: dict[str, Any], io: dict[str, Tensor]) -> Tensor:
        ids = io[c["ids"]].long()
        return prior.network(ids, condition(c, io, len(ids), guided=False))

    def greedy(c: dict[str, Any], io: dict[str, Tensor]) -> Tensor:
        guidance, batch = float(c["guidance"]), len(io[c["expect"]])
        given = condition(c, io, batch, guided=guidance != 1)
        return prior.sample(given, c["length"], guidance=guidance)

    return {"prior_logits": single(logits), "prior_greedy": single(greedy)}


def _tokenizer_ops(tok: Tokenizer) -> dict[str, Op]:
    def encode(c: dict[str, Any], io: dict[str, Tensor]) -> Tensor:
        given = [io[c[k]] if c.get(k) else None for k in ("grids", "global_vectors")]
        return tok.encoder(io[c["latents"]].to(tok.dtype), ImageFeatures(*given))

    def velocity(c: dict[str, Any], io: dict[str, Tensor]) -> Tensor:
        codes = tok.fsq.codes(io[c["ids"]].long())
        each = torch.ones(len(codes), dtype=torch.long, device=codes.device)
        registers = tok.decoder.prepare(
            codes, torch.tensor(c["keep"], device=codes.device), each * c["prefix_frames"],
            each.bool() & bool(c["drop_condition"]),
        )  # fmt: skip
        merged, weight = tok.decoder.merge(registers, 0 if c["drop_condition"] else max(c["keep"]))
        modulation = tok.decoder.modulate(each[:1] * float(c["timestep"]), merged.dtype)
        return tok.decoder(io[c["noisy"]], modulation, merged, weight)

    def sample(c: dict[str, Any], io: dict[str, Tensor]) -> Tensor:
        ids = io[c["ids"]].long()
        channels, _, h, w = tok.config.latent_shape
        frames = ids.shape[1] * tok.config.encoder.patch_size[0]
        sampling = Sampling(
            c["steps"], c["guidance"], bool(c["apg"]),
            generator=torch.Generator().manual_seed(c["seed"]),
        )  # fmt: skip
        noise = sampling.noise(len(ids))((channels, frames, h, w))
        pinned = io[c["cond_latents"]] if c.get("cond_latents") else None
        return tok.sample_latents(
            ids, noise, sampling, pinned=pinned, keep=torch.tensor(c["keep"])
        )  # fmt: skip

    def detokenize(c: dict[str, Any], io: dict[str, Tensor]) -> Tensor:
        ids = io[c["ids"]].long().cpu()
        config, chunks = tok.config, ids.shape[1]
        count = -(-(chunks - config.token_frames) // (config.token_frames - config.overlap))
        tokens = Tokens(
            ids=ids, tokenizer=config.name, fingerprint=tok.fingerprint, fps=config.fps,
            frames=config.chunk_frames + count * config.stride,
            size=(config.size, config.size), source_size=(config.size, config.size),
        )  # fmt: skip
        return tok.decode(
            tokens, steps=c["steps"], guidance=c["guidance"], apg=bool(c["apg"]),
            budgets=c["keep"], generator=torch.Generator().manual_seed(c["seed"]), clamp=False,
            first_frame=io[c["first_frames"]] if c.get("first_frames") else None,
        )  # fmt: skip

    def sequence(c: dict[str, Any], io: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        guide = flow.Guidance(c["scale"], True, c["eta"], c["momentum"], c["norm_threshold"])
        for i in range(c["n"]):
            cond, uncond = io[f"{c['cond']}{i}"], io[f"{c['uncond']}{i}"]
            yield f"{c['expect']}{i}", guide(cond, uncond)

    return {
        "vae_encode": single(lambda c, io: tok.vae.encode(io[c["video"]].to(tok.dtype))),
        "vae_decode": single(lambda c, io: tok.vae.decode(io[c["latents"]].to(tok.dtype))),
        "encode_latents": single(encode),
        "quantize": single(lambda c, io: tok.fsq.ids(io[c["pre"]])),
        "velocity": single(velocity),
        "sample_latents": single(sample),
        "guidance_sequence": sequence,
        "tokenize": single(lambda c, io: tok.encode(io[c["video"]]).ids),
        "detokenize": single(detokenize),
    }
