"""What the parts of `vft gpu-check` share: the published architectures on made-up weights, which
cost what real ones cost, clocks, and the two ceilings of the device."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..config.tokenizer import (
    DecoderConfig,
    EncoderConfig,
    PosembConfig,
    TokenizerConfig,
    TransformerConfig,
    VAEConfig,
)
from ..measure.bench import made_up, published
from ..tokenizer.sampling import Sampling
from ..tokenizer.tokenizer import Tokenizer
from ..tokens import Tokens
from ..transformer.graphs import Capture, Graphs, Use, cuda_capture, rehearse
from .rows import Place

GB = 1e9
STEPS = 30
GUIDANCE = 3.0
AUTOENCODER = int(0.5 * GB)  # what it may take beside its weights, as on the command line


def tiny_config() -> TokenizerConfig:
    """What stands in for every architecture on a CPU."""
    grid, patches = (5, 4, 4), (1, 2, 2)
    trunk = TransformerConfig(64, 2, 32, modulation_kinds=2)
    return TokenizerConfig(
        name="tiny", size=32, registers=8,
        vae=VAEConfig(8, (1, 1, 2, 2), 1, 1, 4),
        encoder=EncoderConfig(dataclasses.replace(trunk, modulation_kinds=0), patches,
                              PosembConfig(grid), 5),
        decoder=DecoderConfig(trunk, patches, PosembConfig(grid), PosembConfig((5, 8))),
    )  # fmt: skip


def tokenizer(place: Place, size: str, depth: int | None = None) -> Tokenizer:
    """One of `published` in bfloat16, or the tiny one in float32; attention by sdpa. `depth` of
    the decoder in place of its own."""
    config = tiny_config() if place.tiny else published(size)
    if depth is not None:
        trunk = dataclasses.replace(config.decoder.trunk, depth=depth)
        config = dataclasses.replace(
            config, decoder=dataclasses.replace(config.decoder, trunk=trunk)
        )
    with torch.device("meta"):
        tok = Tokenizer(config, "made-up")
    tok = made_up(tok, place.device, torch.float32 if place.tiny else torch.bfloat16)
    tok.decoder.offload_modulation()  # as `load_tokenizer` does
    tok.use_attention("sdpa")
    tok.limit_memory(AUTOENCODER)
    return with_graphs(tok, place)


def with_graphs(model: Any, place: Place, use: Use | None = None) -> Any:
    """`model` with CUDA graphs, or on a CPU with their rehearsal; `use` as in `Graphs`."""
    capture: Capture = cuda_capture if place.cuda else rehearse
    model.graphs = Graphs(capture, use or ("auto" if place.cuda else "on"))
    return model


def budget(place: Place, k: int) -> int:
    return min(k, 4) if place.tiny else k


def timed(place: Place, run: Callable[[], object], repeat: int = 3, warm: int = 1) -> float:
    """Seconds, the median of `repeat` runs after `warm`; of an even number the lower one."""
    for _ in range(warm):
        run()
    times = []
    for _ in range(repeat):
        wait(place)
        began = time.perf_counter()
        run()
        wait(place)
        times.append(time.perf_counter() - began)
    return sorted(times)[(len(times) - 1) // 2]


def wait(place: Place) -> None:
    if place.cuda:
        torch.cuda.synchronize()


def peak_of(place: Place, run: Callable[[], object]) -> float:
    """GB of the device at most during `run`, the weights included; NaN on a CPU."""
    if not place.cuda:
        run()
        return float("nan")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / GB


def latents_of(
    tok: Tokenizer, place: Place, batch: int, k: int, steps: int = STEPS,
    guidance: float = GUIDANCE, progress: Callable[[int, int], None] | None = None,
) -> Tensor:  # fmt: skip
    """The flow sampler on made-up ids."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, tok.config.token_frames, budget(place, k))
    ids = torch.randint(tok.config.vocab, shape, generator=generator)
    noise = torch.randn((batch, *tok.config.latent_shape), generator=generator)
    return tok.sample_latents(ids, noise, Sampling(steps, guidance), progress=progress)


def tokens_of(tok: Tokenizer, place: Place, batch: int, k: int) -> Tokens:
    """Made-up tokens of one chunk."""
    c = tok.config
    shape = (batch, c.token_frames, budget(place, k))
    ids = torch.randint(c.vocab, shape, generator=torch.Generator().manual_seed(0))
    return Tokens(ids=ids, tokenizer=c.name, fingerprint=tok.fingerprint, frames=c.chunk_frames,
                  fps=c.fps, size=(c.size, c.size))  # fmt: skip


# ------------------------------------------------------------------ ceilings


def matmul_rate(place: Place) -> float:
    """Operations a second of a large bf16 matrix product on random data."""
    n = 8192 if place.cuda else 512
    dtype = torch.bfloat16 if place.cuda else torch.float32
    a, b = (torch.randn(n, n, device=place.device, dtype=dtype) for _ in range(2))
    many = 10 if place.cuda else 1

    def run() -> None:
        for _ in range(many):
            a @ b

    return many * 2 * n**3 / timed(place, run)


def bandwidth(place: Place) -> float:
    """Bytes a second of a large copy, those read plus those written."""
    n = 1 << (30 if place.cuda else 20)
    a = torch.randint(256, (n,), device=place.device, dtype=torch.uint8)
    b = torch.empty_like(a)
    return 2 * n / timed(place, lambda: b.copy_(a), repeat=5)
