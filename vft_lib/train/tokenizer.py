"""Training encoder, quantizer and flow decoder end to end on latents of a finished autoencoder.

The loss is the mean square error of the velocity (rectified flow). Nested dropout makes the tokens
coarse to fine: each clip of a batch keeps a random power of two of its registers, so whatever
helps most must go first.

On procedural clips the main object's cells count more, and `alignment.py` holds tokens and decoder
to what is known of the clip.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from ..autoencoder.vae import VideoAutoencoder
from ..config.tokenizer import TokenizerConfig
from ..errors import VftError
from ..files.atomic import check_space, write_bytes
from ..tokenizer.sampling import Sampling
from ..tokenizer.tokenizer import Tokenizer
from .alignment import Alignment
from .data import RealClips, Window, draw_sources, training_clips
from .loop import Schedule, Task, autocast_dtype, step_generator
from .plots import save_strip


@dataclass(frozen=True)
class TokenizerRecipe:
    """`clips`: how many clips are rendered and encoded once, to train on. Timesteps are
    logit-normal (Esser et al. 2024, arXiv 2403.03206) with standard deviation `timestep_std` and a
    mean that moves from the first of `timestep_means` to the second: near t = 1 only the tokens
    tell the decoder anything, so there the encoder learns what to say; later the decoder learns
    the rest. `null_share`: clips trained without tokens, for guidance. `prefix_share`: clips whose
    first latent frame is given. `object_weight`: how much more the main object's cells count;
    `outline_weight`, `said_weight`, `shown_weight`: of the losses of alignment.py.
    `freeze_encoder`: the flow decoder alone is trained, so the ids stay what they are, and priors
    on them with them; every second clip then has some of its codes, up to `swap_share`, from
    another clip: a prior's ids do not agree with each other as well as a clip's own."""

    config: TokenizerConfig
    schedule: Schedule
    clips: int = 16_384
    real_share: float = 0.2
    timestep_means: tuple[float, float] = (2.5, 0.5)
    timestep_std: float = 1.0
    null_share: float = 0.1
    prefix_share: float = 0.25
    object_weight: float = 6.0
    outline_weight: float = 3.0
    said_weight: float = 0.5
    shown_weight: float = 0.1
    freeze_encoder: bool = False
    swap_share: float = 0.3


BLOCK = 64  # clips that are drawn from one number


def dataset_sources(
    recipe: TokenizerRecipe, real: RealClips | None, clips: int
) -> list[Window | int]:
    """What each clip of :func:`encode_dataset`'s file is: the same draws, nothing rendered."""
    c = recipe.config
    sources: list[Window | int] = []
    for start in range(0, clips // BLOCK * BLOCK, BLOCK):
        generator = step_generator(recipe.schedule.seed + 1, start)
        sources += draw_sources(generator, BLOCK, c.chunk_frames, c.size, real, recipe.real_share)
    return sources


@torch.inference_mode()
def encode_dataset(
    recipe: TokenizerRecipe, vae: VideoAutoencoder, real: RealClips | None, path: Path,
    device: torch.device, dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """Latents `[clips, C,t,h,w]` float16, kept in `path` (raw, memory-mapped). Goes on where it
    stopped; a larger number of clips extends the file. `dtype` as in `loop.train`."""
    c = recipe.config
    dtype = dtype or autocast_dtype(device)
    shape = (recipe.clips // BLOCK * BLOCK, *c.latent_shape)
    count = torch.Size(shape).numel()
    _reserve(path, 2 * count)
    data = torch.from_file(str(path), shared=True, size=count, dtype=torch.float16).view(shape)
    progress = path.with_suffix(".done")
    done = int(progress.read_text()) if progress.exists() else 0
    for start in tqdm(range(done, shape[0], BLOCK), desc="encoding clips", mininterval=1):
        generator = step_generator(recipe.schedule.seed + 1, start)
        clips = training_clips(generator, BLOCK, c.chunk_frames, c.size, real, recipe.real_share)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            for i in range(0, BLOCK, 16):
                latents = vae.encode(clips[i : i + 16].to(device))
                data[start + i : start + i + 16] = latents.half().cpu()
        write_bytes(progress, str(start + BLOCK).encode())
    return data


def _reserve(path: Path, size: int) -> None:
    """Grow the file to `size` bytes, on the disk: where that is full, writing to a mapped file that
    is not all there ends the process. (torch.from_file, left to grow a file, writes a zero over
    its first byte.) VftError if there is no room."""
    with path.open("ab") as f:
        size = max(size, f.tell())
        check_space(path.parent, size - f.tell(), str(path))
        f.truncate(size)
    with path.open("rb+") as f, suppress(AttributeError):  # Windows and macOS have no such call
        os.posix_fallocate(f.fileno(), 0, size)


class TokenizerTask(Task):
    """Everything of the tokenizer but the autoencoder."""

    def __init__(
        self, recipe: TokenizerRecipe, vae: VideoAutoencoder, latents: Tensor,
        sources: list[Window | int],
    ) -> None:  # fmt: skip
        super().__init__()
        self.recipe, self.latents = recipe, latents
        self.ids: Tensor | None = None  # of all clips, where the encoder is frozen
        tokenizer = Tokenizer(recipe.config)
        self.encoder, self.decoder = tokenizer.encoder, tokenizer.decoder
        self.fsq = tokenizer.fsq
        self.frozen = (vae.eval().requires_grad_(False),)  # in a tuple: not a submodule
        self.alignment = Alignment(recipe.config, sources)
        _initialize(self)
        self.encoder.requires_grad_(not recipe.freeze_encoder)

    def start_from(self, tokenizer: Tokenizer, cache: Path) -> None:
        """Take the weights of a trained tokenizer; the autoencoder must be the same one. `cache`
        keeps the ids of a frozen encoder."""
        mine, other = self.recipe.config, tokenizer.config
        frozen, given = self.frozen[0].state_dict(), tokenizer.vae.state_dict()
        if (mine.encoder, mine.decoder, mine.fsq_levels) != (
            other.encoder,
            other.decoder,
            other.fsq_levels,
        ):
            raise VftError(f"--init: {other.name} and {mine.name} are not built alike")
        if any(not torch.equal(v.half(), given[k].half()) for k, v in frozen.items()):
            raise VftError(f"--init: {other.name} has another autoencoder than this run")
        self.encoder.load_state_dict(tokenizer.encoder.state_dict())
        self.decoder.load_state_dict(tokenizer.decoder.state_dict())
        if self.recipe.freeze_encoder:
            self.ids = encode_ids(tokenizer, self.latents, cache).long()

    def hidden_matrices(self) -> list[nn.Parameter]:
        return [
            p for n, p in self.named_parameters()
            if ".blocks." in n and p.ndim == 2 and "modulation" not in n and p.requires_grad
        ]  # fmt: skip

    def forward(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        r, c, align = self.recipe, self.recipe.config, self.alignment
        b, device = r.schedule.batch, self.encoder.registers.device
        _, frames, h, w = c.latent_shape
        index = torch.randint(len(self.latents), (b,), generator=generator)
        clean = self.latents[index].float().to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        begin, end = r.timestep_means
        mean = begin + (end - begin) * min(1.0, step / r.schedule.steps)
        timestep = torch.sigmoid(mean + r.timestep_std * torch.randn(b, generator=generator)).to(
            device
        )
        keep = _budgets(c.registers, b, generator).to(device)
        null = (torch.rand(b, generator=generator) < r.null_share).to(device)
        prefix = (torch.rand(b, generator=generator) < r.prefix_share).long().to(device)

        if self.ids is None:
            codes = self.fsq.quantize(self.encoder(clean))
        else:
            codes = self.fsq.codes(_swapped(self.ids[index], r.swap_share, generator)).to(device)
        registers = self.decoder.prepare(codes, keep, prefix, null)
        t = timestep[:, None, None, None, None]
        given = torch.arange(frames, device=device) < prefix[:, None]  # (B, t)
        given = given[:, None, :, None, None]
        noisy = torch.where(given, clean, (1 - t) * clean + t * noise)
        modulation = self.decoder.modulate(timestep, registers.dtype)
        hidden = self.decoder.hidden(noisy, modulation, registers)
        error = (self.decoder.velocity(hidden, modulation) - (noise - clean)) ** 2
        # Given frames carry no loss; every clip counts the same however many it has.
        touched = align.touched(index, h, w, device)
        weight = (~given * (1 + r.object_weight * touched)).expand_as(error)
        each = (error * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)
        outline = align.outline_loss(hidden, index)
        shown = align.shown_losses(hidden, index)
        said = {} if r.freeze_encoder else align.said_losses(codes, keep, index)
        loss = each.mean() + r.outline_weight * outline
        loss = loss + r.shown_weight * sum(shown.values()) + r.said_weight * sum(said.values())
        out = {"loss": loss, "outline": outline.detach()}
        out |= {f"shown {name}": value.detach() for name, value in shown.items()}
        out |= {f"said {name}": value.detach() for name, value in said.items()}
        for k in (1, c.registers):
            chosen = (keep == k) & ~null
            if chosen.any():
                out[f"k{k}"] = each[chosen].detach().mean()
        return out

    @torch.inference_mode()
    def samples(self, out: Path, step: int) -> None:
        """Four training clips: the autoencoder's picture, then decoded at 1, K/4 and K tokens."""
        tokenizer = Tokenizer(self.recipe.config).to(self.encoder.registers.device)
        tokenizer.vae = self.frozen[0]
        tokenizer.encoder, tokenizer.decoder = self.encoder.eval(), self.decoder.eval()
        latents = self.latents[:: len(self.latents) // 4][:4].float()
        ids = tokenizer.fsq.ids(self.encoder(latents.to(tokenizer.device)))
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        videos = [tokenizer.vae.decode(latents.to(tokenizer.device))]
        for k in (1, self.recipe.config.registers // 4, self.recipe.config.registers):
            sampled = tokenizer.sample_latents(ids[:, :, :k], noise, Sampling(20, 1.0))
            videos.append(tokenizer.vae.decode(sampled))
        strip = [v.cpu() for clip in zip(*videos) for v in clip]
        save_strip(out / f"samples-{step:06d}.png", strip)


def encode_ids(tokenizer: Tokenizer, latents: Tensor, cache: Path) -> Tensor:
    """Latents `[N,C,t,h,w]` -> ids `[N,t,K]` int32, kept in `cache` for this tokenizer."""
    wanted = {"fingerprint": tokenizer.fingerprint, "clips": str(len(latents))}
    try:
        with safe_open(cache, "pt") as f:
            if f.metadata() == wanted:
                return f.get_tensor("ids")
    except (OSError, SafetensorError):
        pass
    ids = ids_of_latents(tokenizer, latents).int()
    cache.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(cache, save({"ids": ids}, wanted))
    return ids


@torch.no_grad()
def ids_of_latents(tokenizer: Tokenizer, latents: Tensor) -> Tensor:
    """Latents `[N,C,t,h,w]` -> ids `[N,t,K]` int64 on the CPU."""
    parts = []
    for part in tqdm(latents.split(64), desc="encoding ids", mininterval=1):
        x = part.to(tokenizer.device, tokenizer.dtype)
        parts.append(tokenizer.fsq.ids(tokenizer.encoder(x)).cpu())
    return torch.cat(parts)


def _swapped(ids: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Ids `[B,t,K]`, in every second clip some of them, up to `share`, those of its neighbour."""
    rate = share * (2 * torch.rand(len(ids), 1, 1, generator=generator) - 1)
    return torch.where(torch.rand(ids.shape, generator=generator) < rate, ids.roll(1, 0), ids)


def _budgets(registers: int, batch: int, generator: torch.Generator) -> Tensor:
    """Budgets `[B]`: powers of two k up to `registers`, drawn in proportion to sqrt(k): late tokens
    are rarely kept, so they learn slowest."""
    powers = torch.tensor([k for k in (1 << i for i in range(20)) if k <= registers])
    drawn = torch.multinomial(powers.float().sqrt(), batch, replacement=True, generator=generator)
    return powers[drawn]


@torch.no_grad()
def _initialize(task: TokenizerTask) -> None:
    """Modulation and head start at zero (DiT, arXiv 2212.09748), but with open gates: at zero
    gates a short run spends its first hundreds of steps opening them."""
    # Positions, registers and stand-ins start about as large as what they are added to. At the
    # usual 0.02 neither network can tell its registers apart for hundreds of steps.
    for name, p in task.named_parameters():
        if name.endswith("posemb.table") and p.requires_grad:
            nn.init.normal_(p, mean=float(p.mean().round()), std=0.5)  # products start around 1
        if name.endswith(("registers", "_mask", "null")):
            nn.init.normal_(p, std=1.0)
    for name, p in task.named_parameters():
        if "modulation" in name or name.startswith("decoder.head."):
            nn.init.zeros_(p)
        if name.endswith("modulation.bias") and ".blocks." in name:
            kinds, dim = task.recipe.config.decoder.trunk.modulation_kinds, p.numel() // 6
            p.view(kinds, 6, dim // kinds)[:, :2] = 1.0  # gate_attn, gate_mlp
        if name.endswith(("attention.proj.weight", "fc2.weight")):
            p.mul_(0.25)
