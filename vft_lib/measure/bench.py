"""`vft bench`: what each stage costs on this machine, beside what the machine could do.

Sizes: `default` is the model of the package; `k600` (d18-d18 at 128 px), `d28` (d18-d28 at 256 px)
and `prior-d16` are the published architectures on made-up weights, which cost the same.
"""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..config.prior import PriorConfig
from ..config.sampling import UNMEASURED
from ..config.tokenizer import (
    DecoderConfig,
    EncoderConfig,
    PosembConfig,
    TokenizerConfig,
    TransformerConfig,
    VAEConfig,
)
from ..errors import VftError
from ..models.loading import load_prior, load_tokenizer
from ..prior.prior import Prior
from ..tokenizer.flow import Schedule
from ..tokenizer.parts import Progress
from ..tokenizer.sampling import Sampling
from ..tokenizer.tokenizer import Tokenizer
from ..tokenizer.velocity import Modulations

SIZES = ("default", "k600", "d28", "prior-d16")
PUBLISHED = {"k600": (128, 18, 1), "d28": (256, 28, 2)}  # pixels, depth, patch
OPTIONS = {
    "30 steps, guided": Sampling(30, 3.0),
    "30 steps, guided from 0 to 0.5": Sampling(30, 3.0, interval=(0.0, 0.5)),
    "15 steps, guided": Sampling(15, 3.0),
    "30 steps, not guided": Sampling(30, 1.0),
    "4 steps, not guided": Sampling(4, 1.0),
    "draft: 2 steps, guided": Sampling(2, 3.0),
    "1 step, not guided": Sampling(1, 1.0),
}  # reuse is not among them: how many passes it leaves out depends on the weights
BUDGETS = (1, 4, 16, 64, 256)
MODULATED = 30  # steps whose modulation is measured; it is computed once for a schedule
PRIOR_IDS = 32  # ids written to measure a prior
TEXT_ROWS = 128  # of the text that it reads: as long as published priors take
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Row:
    """One stage. `gflop`: billions of floating-point operations (a multiply-add is two);
    `share`: of the matmul rate that the machine reached in the same number format."""

    size: str
    stage: str
    seconds: float
    gflop: float
    share: float


def published(size: str) -> TokenizerConfig:
    """A published architecture: 256 patches and 256 registers a latent frame."""
    pixels, depth, patch = PUBLISHED[size]
    grid, patches = (5, pixels // 8, pixels // 8), (1, patch, patch)
    tall = PosembConfig(tuple(n // p for n, p in zip(grid, patches)))
    return TokenizerConfig(
        name=size, size=pixels, registers=256, vae=VAEConfig(),
        encoder=EncoderConfig(TransformerConfig(64 * 18, 18), patches, tall, register_frames=5),
        decoder=DecoderConfig(
            TransformerConfig(64 * depth, depth, modulation_kinds=2), patches, tall,
            PosembConfig((5, 256)),
        ),
    )  # fmt: skip


def published_prior() -> PriorConfig:
    """The text-conditioned d16."""
    return PriorConfig(
        name="prior-d16", tokenizer="made-up", tokenizer_fingerprint="made-up", depth=16,
        width=1024, seq_len=1280, cond="text", ctx_dim=4096, size=128,
    )  # fmt: skip


def made_up(model: Model, device: torch.device, dtype: torch.dtype) -> Model:
    """A model built on `meta`, filled with numbers of a usual size."""
    model = model.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, p[0].numel() ** -0.5 if p.ndim > 1 else 0.02, generator=generator)
    return model.eval().requires_grad_(False)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a 4096 x 4096 matrix product, the best of five."""
    n = 4096 if device.type != "cpu" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / _best(lambda: a @ b, device, 5)


def run_bench(
    sizes: Sequence[str], device: torch.device, dtype: torch.dtype, *, repeat: int = 1,
    attention: str = "auto", progress: Progress | None = None,
) -> tuple[list[Row], dict[str, object]]:  # fmt: skip
    """The stages of every size, and facts on the machine. `repeat`: the best of so many runs, after
    the one in which operations are counted. `attention`: as `Tokenizer.use_attention` takes it."""
    for size in sizes:
        if size not in SIZES:
            raise VftError(f"no size {size!r}; choose among {', '.join(SIZES)}")
    rate = matmul_rate(device, dtype)
    rows: list[Row] = []
    for i, size in enumerate(sizes):
        for stage, run in stages(size, device, dtype, attention):
            flops = operations(run)
            seconds = _best(run, device, repeat)
            rows.append(Row(size, stage, seconds, flops / 1e9, flops / seconds / rate))
        if progress is not None:
            progress(i + 1, len(sizes))
    cuda = device.type == "cuda"
    facts = {
        "device": torch.cuda.get_device_name(device) if cuda else "CPU",
        "threads": torch.get_num_threads(), "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__, "matmul_gflops": round(rate / 1e9, 1),
        "peak_memory_gb": round(peak_memory(device) / 1e9, 2),
    }  # fmt: skip
    return rows, facts


@dataclass(frozen=True)
class Counted:
    """An option of the sampler for one chunk: passes of the flow decoder, and trillions of
    floating-point operations of the sampler, and of the autoencoder behind it."""

    size: str
    option: str
    passes: int
    sampler_tflop: float
    autoencoder_tflop: float


def count_options(size: str, budget: int) -> list[Counted]:
    """What OPTIONS cost, exactly: counted on `meta`, where nothing is computed. A step costs the
    same at every time, so one is counted with guidance and one without."""
    if size not in PUBLISHED:
        raise VftError(f"options are counted for {', '.join(PUBLISHED)}; got {size!r}")
    with torch.device("meta"):
        tok = Tokenizer(published(size), "made-up")
    tok = tok.eval().requires_grad_(False)
    c = tok.config
    ids = torch.zeros(1, c.token_frames, tok.check_budget(budget), dtype=torch.int64)
    noise = torch.zeros(1, *c.latent_shape)
    decoded = operations(lambda: tok.vae.decode(noise.to("meta")))

    def sampled(sampling: Sampling) -> int:
        tok.modulations = Modulations()
        return operations(partial(tok.sample_latents, ids, noise, sampling))

    step, begin = {}, {}
    for scale in (1.0, 3.0):
        one, two = (sampled(Sampling(n, scale)) for n in (1, 2))
        step[scale > 1], begin[scale > 1] = two - one, 2 * one - two
    rows = []
    for option, sampling in OPTIONS.items():
        settled = sampling.settled(UNMEASURED)
        guided = [settled.guided_at(t) for t in settled.schedule().asked()]
        flops = begin[any(guided)] + sum(step[g] for g in guided)
        passes = len(guided) + sum(guided)
        rows.append(Counted(size, option, passes, flops / 1e12, decoded / 1e12))
    return rows


def stages(
    size: str, device: torch.device, dtype: torch.dtype, attention: str = "auto"
) -> Iterator[tuple[str, Callable[[], object]]]:
    """(name, what runs) for every stage of a size, on a batch of one."""
    if size == "prior-d16":
        with torch.device("meta"):
            prior = Prior(published_prior())
        prior = made_up(prior, device, dtype)
        for clips in (1, 8):
            yield writing(prior, clips)
            yield writing(prior, clips, anew=True)
        return
    if size == "default":
        tok = load_tokenizer("default", device=device, dtype=dtype)
    else:
        with torch.device("meta"):
            tok = Tokenizer(published(size), "made-up")
        tok = made_up(tok, device, dtype)
    tok.use_attention(attention)
    if size != "default":  # which is loaded so
        tok.decoder.offload_modulation()
    c = tok.config
    video = torch.zeros(1, 3, c.chunk_frames, c.size, c.size, device=device, dtype=dtype)
    latents = torch.zeros(1, *c.latent_shape, device=device, dtype=dtype)
    yield "autoencoder, encode", lambda: tok.vae.encode(video)
    yield "encoder", lambda: tok.encoder(latents)
    yield "autoencoder, decode", lambda: tok.vae.decode(latents)
    if (preview := tok.preview) is not None:
        yield "preview decoder", lambda: preview(latents)
    times = torch.tensor(Schedule(MODULATED).asked(), device=device)
    yield f"modulation of {MODULATED} steps", lambda: tok.decoder.modulate(times, dtype)
    tok.modulations.of(tok.decoder, Schedule(1).asked(), tok.device, dtype)
    for scale in (1.0, 3.0):
        for k in (k for k in BUDGETS if k <= c.registers):
            name = f"decoder step, k = {k}" + (", guided" if scale != 1 else "")
            yield name, partial(decoder_step, tok, k, scale)
    if size == "default":
        yield writing(load_prior("default", device=device, dtype=dtype))


def decoder_step(tok: Tokenizer, k: int, guidance: float) -> Tensor:
    """One step of the flow decoder at budget k for one chunk, its modulation being remembered."""
    c = tok.config
    ids = torch.zeros(1, c.token_frames, k, dtype=torch.int64)
    noise = torch.zeros(1, *c.latent_shape)
    return tok.sample_latents(ids, noise, Sampling(1, guidance, apg=False, interval=(0.0, 1.0)))


def writing(prior: Prior, clips: int = 1, anew: bool = False) -> tuple[str, Callable[[], object]]:
    """A prior that writes ids under guidance from text. `anew`: with the text's keys and values
    computed for every id, to compare with."""
    rows = min(TEXT_ROWS, prior.config.max_text_len)
    states = torch.ones(clips, rows, prior.config.ctx_dim)
    mask = torch.ones(clips, rows, dtype=torch.bool)

    def write() -> Tensor:
        for _ in range(PRIOR_IDS if anew else 1):
            condition = prior.network.condition(clips, None, states, mask, guided=True)
        return prior.sample(condition, PRIOR_IDS, guidance=2.0)

    name = f"prior, {PRIOR_IDS} ids from text, guided"
    return name + f", {clips} clips" * (clips > 1) + ", keys anew" * anew, write


def operations(run: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products, attentions and convolutions in `run`."""
    cpu_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def attention(q: list[int], k: list[int], v: list[int], *_: Any, **__: Any) -> int:
        return 2 * math.prod(q[:3]) * k[2] * (q[3] + v[3])

    counter = FlopCounterMode(display=False, custom_mapping={cpu_attention: attention})
    with counter, torch.inference_mode():
        run()
    return counter.get_total_flops()


def peak_memory(device: torch.device) -> int:
    """Bytes: of the device where it says, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@torch.inference_mode()
def _best(run: Callable[[], object], device: torch.device, repeat: int) -> float:
    """Seconds."""
    times = []
    for _ in range(repeat):
        if device.type == "cuda":  # what is queued already does not count
            torch.cuda.synchronize(device)
        began = perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(perf_counter() - began)
    return min(times)
