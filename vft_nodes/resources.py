"""How a model runs: the loaders' choices of attention, weights, compilation and memory; which of
these cannot run here, and in words what does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from comfy_api.latest import io
from torch import nn

from ..vft_lib import Prior, Tokenizer
from ..vft_lib.tokenizer import eight_bit
from ..vft_lib.transformer import attention
from ..vft_lib.transformer.graphs import Compiled
from . import host
from .types import advanced

OWN = "comfyui"
ATTENTION = {
    "auto": "", OWN: "ComfyUI's own", "sdpa": "PyTorch SDPA", "xformers": "xformers",
    "flex": "PyTorch flex attention",
}  # fmt: skip
"""Backends and what they are called on a node."""
STORAGE = ["as they are", *get_args(eight_bit.Storage)]
COMPILE = ["off", "on"]
MEMORY = {
    "auto": None, **{f"{gb:g} GB": int(gb * 1e9) for gb in (0.25, 0.5, 1, 2, 4, 8, 16)}
}  # fmt: skip
"""The loader's choices, in bytes."""


def resource_inputs() -> list[io.Input]:
    """What the tokenizer's loader asks. Optional, as older workflows have none of it."""
    device = host.compute_device()
    choose = io.Combo.Input(
        "attention", options=list(ATTENTION), default="auto", optional=True,
        tooltip="What computes attention; the results differ by rounding. auto: what is best here. "
        "comfyui: what ComfyUI was started with (--use-sage-attention, …), where it can compute "
        "these masks.",
    )  # fmt: skip
    store = io.Combo.Input(
        "weights", options=STORAGE, default=STORAGE[0], optional=True,
        tooltip="The flow decoder's weights in eight bits: half of bfloat16's memory, and not "
        "quite the same pictures. Tokens do not change.",
    )  # fmt: skip
    memory = io.Combo.Input(
        "memory", options=list(MEMORY), default="auto", optional=True,
        tooltip="About what the autoencoder may take beside the weights. Less is slower, with the "
        "same result. auto: a whole chunk at once where that is free.",
    )  # fmt: skip
    absent = {name: attention.absence(name, device) for name in ATTENTION if name != OWN}
    lacking = {name: eight_bit.refusal(name, device) for name in get_args(eight_bit.Storage)}
    return [
        advanced(choose, vft_refused={k: why for k, why in absent.items() if why}),
        advanced(store, vft_refused={k: why for k, why in lacking.items() if why}),
        compile_input("The flow decoder's step"),
        advanced(memory),
    ]


def compile_input(what: str) -> io.Input:
    return advanced(io.Combo.Input(
        "compile", options=COMPILE, default="off", optional=True,
        tooltip=f"{what} through torch.compile: the first run takes a minute longer, and so does "
        "the first at each new budget; later ones are faster. Its weights are then kept on the "
        "device whole.",
    ))  # fmt: skip


@dataclass(frozen=True)
class Resources:
    """What a loader was asked for: a choice of each of the lists above."""

    attention: str = "auto"
    weights: str = STORAGE[0]
    compile: str = "off"
    memory: str = "auto"

    @classmethod
    def of(cls, inputs: Mapping[str, str | None]) -> Resources:
        """From those inputs of a node that are there."""
        return cls(**{name: value for name, value in inputs.items() if value is not None})

    @property
    def whole(self) -> bool:
        """Compiled code reads its weights where they lie: no part of them may stay elsewhere."""
        return self.compile == "on"

    def layers(self) -> Any:
        """The layer classes to build with."""
        return nn if self.whole else host.layer_classes()

    def apply(self, model: Tokenizer, device: torch.device) -> list[str]:
        """Make a tokenizer run like that on a device; what cannot runs as ever, and is named."""
        model.device = device
        refused = [*_choose(model, self.attention), *_store(model, self.weights, self.whole)]
        if self.whole:
            model.compile_decoder()
        model.limit_memory(MEMORY[self.memory])
        return refused

    def compiled(self, prior: Prior) -> Prior:
        """A prior with its step compiled, if that was asked for."""
        if self.whole:
            prior.compiled = Compiled(prior.step)
        return prior


def _choose(model: Tokenizer, name: str) -> list[str]:
    """Attention by `name`; in a part where that cannot run, by what is best here, and why."""
    if name == OWN:
        attention.adopt(OWN, host.attention())
    if name == "auto":
        return []
    refused: dict[str, list[str]] = {}
    for part, trunk in (("encoder", model.encoder.trunk), ("decoder", model.decoder.trunk)):
        width, dtype = trunk.head_dim, model.dtype
        why = attention.refusal(name, trunk.mask, model.device, width, dtype)
        trunk.backend = "auto" if why else name
        if why:
            refused.setdefault(why, []).append(part)
    return [
        f"attention {name} does not run here ({' and '.join(parts)}): {why}"
        for why, parts in refused.items()
    ]


def _store(model: Tokenizer, storage: Any, plain: bool) -> list[str]:
    """Weights in `storage`, unless this device does not know it; then why."""
    if storage == STORAGE[0]:
        return []
    why = eight_bit.refusal(storage, model.device)
    if why:
        return [f"weights in {storage} cannot be used here: {why}"]
    layer = eight_bit.EightBitLinear if plain else host.eight_bit_layer()
    eight_bit.store_in_eight_bits(model, storage, layer)
    return []


def attention_of(model: Tokenizer) -> str:
    """What computes a tokenizer's attention, in words."""
    names = []
    for trunk in (model.encoder.trunk, model.decoder.trunk):
        width, dtype = trunk.head_dim, model.dtype
        name = attention.choose(trunk.backend, trunk.mask, model.device, width, dtype)
        names.append(ATTENTION[name])
        backend = attention.BACKENDS[name]
        if isinstance(backend, attention.Foreign):
            names[-1] += f" ({backend.name})"
            if not backend.exact:
                names[-1] += " and, where registers are merged, PyTorch SDPA"
    encoder, decoder = names
    return decoder if encoder == decoder else f"{decoder} (encoder: {encoder})"


def facts_of(model: Tokenizer | Prior) -> str:
    """How a model ran, or will: "cuda:0, bfloat16, attention: xformers, decoder in int8"."""
    words = [str(model.device), str(model.dtype).removeprefix("torch.")]
    if isinstance(model, Tokenizer):
        words.append(f"attention: {attention_of(model)}")
        for layer in model.decoder.trunk.modules():
            if isinstance(layer, eight_bit.EightBitLinear):
                words.append(f"decoder in {layer.storage}")
                break
        if model.frames_at_once is not None:
            frames = model.config.latent_frames
            words.append(f"autoencoder on {model.frames_at_once} of {frames} latent frames at once")
    else:
        words.append("attention: PyTorch SDPA")
    if isinstance(model.compiled, Compiled):
        why, done = model.compiled.problem, model.compiled.done
        still = f"not compiled ({why})" if why else "to be compiled in the first run"
        words.append("compiled" if done and not why else still)
    return ", ".join(words)
