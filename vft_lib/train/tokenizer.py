"""Training encoder, quantizer and flow decoder end to end on latents of a finished autoencoder.

The loss is the mean square error of the velocity (rectified flow), weighted by what the latents'
channels change in the pixels. Nested dropout makes the tokens coarse to fine: each group of clips
of a batch keeps a random power of two of its registers, so whatever helps most must go first. A
layer of the decoder is aligned with features of a frozen image network (REPA, arXiv 2410.06940).
Nothing tells the tokens what a clip shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..autoencoder.vae import VideoAutoencoder
from ..config.tokenizer import TokenizerConfig
from ..errors import VftError
from ..files.atomic import write_bytes
from ..files.tensor_files import digest
from ..footage.footage import host_rng
from ..measure.sheets import save_strip
from ..shards.batches import Batches
from ..shards.tokenizing import autoencoder_mark
from ..tokenizer.sampling import Sampling
from ..tokenizer.tokenizer import Tokenizer
from .dataset import Latents
from .loop import Schedule, Task
from .places import start_registers_at_places
from .vae import pixel_metric, power

JUDGED = 24  # clips whose decoded pixels tell the weight of the latents' channels


@dataclass(frozen=True)
class TokenizerRecipe:
    """`clips`: how many clips are drawn and encoded once, to train on, a `world_share` of them
    procedural. Every batch is cut into `groups`, each with a budget of its own. Timesteps are
    logit-normal (Esser et al. 2024, arXiv 2403.03206) with standard deviation `timestep_std` and a
    mean that moves from the first of `timestep_means` to the second: near t = 1 only the tokens
    tell the decoder anything, so there the encoder learns what to say; later the decoder learns
    the rest. `null_share`: clips trained without tokens, for guidance. `prefix_share`: clips whose
    first latent frame is given. `align_weight`: of the alignment with image features, in the
    decoder's block `align_depth` (a share of its depth).
    `pixel_weight`: the error of the velocity is weighted by this power of
    :func:`~vft_lib.train.vae.pixel_metric` (0: every channel alike), which leaves the best velocity
    what it is, but not what is worth a token: what shows in the pixels.
    `nested`: with nested dropout; without it every clip keeps all registers, and they have no
    order.
    `freeze_encoder`: the flow decoder alone is trained, so the ids stay what they are, and priors
    on them with them; every second clip then has some of its codes, up to `swap_share`, from
    another clip: a prior's ids do not agree with each other as well as a clip's own."""

    config: TokenizerConfig
    schedule: Schedule
    clips: int = 16_384
    world_share: float = 0.4
    groups: int = 4
    timestep_means: tuple[float, float] = (2.5, 0.5)
    timestep_std: float = 1.0
    null_share: float = 0.1
    prefix_share: float = 0.25
    align_weight: float = 0.5
    align_depth: float = 0.4
    pixel_weight: float = 0.5
    nested: bool = True
    freeze_encoder: bool = False
    swap_share: float = 0.3


class Alignment(nn.Module):
    """Hidden patches of a decoder block -> features of the frames that they stand for."""

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, channels))

    def forward(self, hidden: Tensor, features: Tensor) -> Tensor:
        """hidden `[B,t,h,w,d]`, features `[B,t,F,g,g]` -> 1 - cosine, mean over the clip `[B]`."""
        x = hidden.flatten(0, 1).permute(0, 3, 1, 2)  # (B·t, d, h, w)
        x = F.adaptive_avg_pool2d(x, features.shape[-1]).permute(0, 2, 3, 1)
        wanted = features.flatten(0, 1).permute(0, 2, 3, 1).float()
        missed = 1 - F.cosine_similarity(self.project(x).float(), wanted, dim=-1)
        return missed.view(len(features), -1).mean(1)


class TokenizerTask(Task):
    """Everything of the tokenizer but the autoencoder."""

    def __init__(
        self, recipe: TokenizerRecipe, vae: VideoAutoencoder, data: Latents | Batches
    ) -> None:  # fmt: skip
        super().__init__()
        self.recipe, self.batches = recipe, data if isinstance(data, Batches) else None
        self.data = f" of autoencoder {autoencoder_mark(vae.state_dict())}"
        if isinstance(data, Batches):  # some, to show
            self.data = f" of shards {data.order.index.mark}"
            data = Latents(_latents(data, 0), None)
        self.given = data
        self.ids: Tensor | None = None  # of all clips, where the encoder is frozen
        tokenizer = Tokenizer(recipe.config)
        self.encoder, self.decoder = tokenizer.encoder, tokenizer.decoder
        self.fsq = tokenizer.fsq
        self.frozen = (vae.eval().requires_grad_(False),)  # in a tuple: not a submodule
        self.alignment: Alignment | None = None
        if data.features is not None and recipe.align_weight:
            trunk = recipe.config.decoder.trunk
            self.alignment = Alignment(trunk.dim, data.features.shape[2])
            self.mean, self.std = _statistics(data.features)
            block = self.decoder.trunk.blocks[int(recipe.align_depth * trunk.depth)]
            block.register_forward_hook(self._note)
        self.noted: list[Tensor] = []
        self.root = self._root_of_weights(vae) if recipe.pixel_weight else None
        _initialize(self)
        self.encoder.requires_grad_(not recipe.freeze_encoder)

    def _root_of_weights(self, vae: VideoAutoencoder) -> Tensor:
        """R `[C,C]`: the square of R e is the weighted square of an error e. On the device of the
        autoencoder."""
        latents = _some(self.given.latents, JUDGED).to(next(vae.parameters()).device)
        root = power(pixel_metric(vae, latents), self.recipe.pixel_weight / 2)
        return root * (len(root) / root.square().sum()).sqrt()  # weights of trace C, as without

    def _note(self, block: nn.Module, inputs: object, output: Tensor) -> None:
        if self.training:
            self.noted.append(output)

    def start_from(self, tokenizer: Tokenizer, cache: Path) -> None:
        """Take the weights of a trained tokenizer. With a frozen encoder its autoencoder must be
        the same one, and `cache` keeps the ids."""
        mine, other = self.recipe.config, tokenizer.config
        frozen, given = self.frozen[0].state_dict(), tokenizer.vae.state_dict()
        if (mine.encoder, mine.decoder, mine.fsq_levels) != (
            other.encoder,
            other.decoder,
            other.fsq_levels,
        ):
            raise VftError(f"--init: {other.name} and {mine.name} are not built alike")
        if self.recipe.freeze_encoder and any(
            not torch.equal(v.half(), given[k].to(v).half()) for k, v in frozen.items()
        ):
            raise VftError(f"--init: {other.name} has another autoencoder than this run")
        self.encoder.load_state_dict(tokenizer.encoder.state_dict())
        self.decoder.load_state_dict(tokenizer.decoder.state_dict())
        if self.recipe.freeze_encoder and self.batches is None:
            self.ids = encode_ids(tokenizer, self.given.latents, cache).long()

    def hidden_matrices(self) -> list[nn.Parameter]:
        return [
            p for n, p in self.named_parameters()
            if ".blocks." in n and p.ndim == 2 and "modulation" not in n and p.requires_grad
        ]  # fmt: skip

    def forward(
        self, step: int, generator: torch.Generator, progress: float
    ) -> dict[str, Tensor]:  # fmt: skip
        r, device, rng = self.recipe, self.encoder.registers.device, host_rng(generator)
        if self.batches is None:
            data = self.given.latents
            place = torch.randint(
                len(data), (r.schedule.batch,), generator=generator, device=device
            ).to(data.device)
            clean = data[place].to(device).float()
        else:
            clean = _latents(self.batches, step).to(device).float()
        b = len(clean)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        begin, end = r.timestep_means
        spread = torch.randn(b, generator=generator, device=device)
        timestep = torch.sigmoid(begin + (end - begin) * progress + r.timestep_std * spread)
        null = torch.rand(b, generator=generator, device=device) < r.null_share
        prefix = (torch.rand(b, generator=generator, device=device) < r.prefix_share).long()
        if self.ids is not None:
            codes = self.fsq.codes(
                self._swapped(self.ids[place.to(self.ids.device)].to(device), generator)
            )
        else:
            read = self.encoder(clean.to(self.encoder.registers.dtype))
            if r.freeze_encoder:
                codes = self.fsq.codes(self._swapped(self.fsq.ids(read), generator))
            else:
                codes = self.fsq.quantize(read)
        missed, out = [], {}
        budgets = [r.config.registers] * r.groups
        if r.nested:
            budgets = draw_budgets(r.config.registers, r.groups, rng)
        for keep, part in zip(budgets, torch.arange(b).chunk(r.groups)):
            rows = slice(int(part[0]), int(part[-1]) + 1)
            error = self._error(
                clean[rows], noise[rows], timestep[rows], codes[rows], keep, null[rows],
                prefix[rows],
            )  # fmt: skip
            missed.append(error)
            out[f"k{keep}"] = error.detach().mean()
        each = torch.cat(missed)
        loss = each.mean()
        out["flow"] = each.detach().mean()
        if self.alignment is not None and self.given.features is not None:
            (_, ph, pw), (h, w) = self.decoder.patch_size, self.recipe.config.latent_shape[2:]
            grid = h // ph, w // pw
            hidden = torch.cat([n[:, :, : math.prod(grid)] for n in self.noted]).unflatten(2, grid)
            self.noted.clear()
            features = (self.given.features[place].to(device) - self.mean) / self.std
            align = self.alignment(hidden, features).mean()
            loss, out["align"] = loss + r.align_weight * align, align.detach()
        return {"loss": loss} | out

    def _error(
        self, clean: Tensor, noise: Tensor, timestep: Tensor, codes: Tensor, keep: int,
        null: Tensor, prefix: Tensor,
    ) -> Tensor:  # fmt: skip
        """Weighted mean square error of the velocity of clips that keep `keep` registers: `[B]`."""
        budget = torch.full_like(prefix, keep)
        registers, weight = self.decoder.merge(
            self.decoder.prepare(codes, budget, prefix, null), keep
        )
        t = timestep[:, None, None, None, None]
        given = torch.arange(clean.shape[2], device=clean.device) < prefix[:, None]  # (B, t)
        given = given[:, None, :, None, None]
        noisy = torch.where(given, clean, (1 - t) * clean + t * noise)
        modulation = self.decoder.modulate(timestep, registers.dtype)
        velocity = self.decoder(noisy, modulation, registers, weight)
        # Given frames carry no loss; every clip counts the same however many it has.
        share = (~given).float().mean((1, 2, 3, 4))
        missed = velocity - (noise - clean)
        if self.root is not None:
            with torch.autocast(missed.device.type, enabled=False):
                missed = torch.einsum("ij,bj...->bi...", self.root, missed.float())
        return (missed**2 * ~given).flatten(1).mean(1) / share

    def _swapped(self, ids: Tensor, generator: torch.Generator) -> Tensor:
        """Ids `[B,t,K]`, in every second clip some of them, up to a share, its neighbour's."""
        shape = (len(ids), 1, 1)
        rate = 2 * torch.rand(shape, generator=generator, device=ids.device) - 1
        drawn = torch.rand(ids.shape, generator=generator, device=ids.device)
        return torch.where(drawn < self.recipe.swap_share * rate, ids.roll(1, 0), ids)

    @torch.no_grad()
    def samples(self, out: Path, step: int) -> None:
        """Four training clips: the autoencoder's picture, then decoded at 1, K/8 and K tokens."""
        self.eval()  # a block's output is noted down in training alone
        device = self.encoder.registers.device
        tokenizer = Tokenizer(self.recipe.config).to(device)
        tokenizer.vae = self.frozen[0]
        tokenizer.encoder, tokenizer.decoder = self.encoder, self.decoder
        latents = _some(self.given.latents, 4).float()
        ids = tokenizer.fsq.ids(self.encoder(latents.to(device)))
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        videos = [tokenizer.vae.decode(latents.to(device))]
        registers = self.recipe.config.registers
        for k in (1, max(1, registers // 8), registers):
            sampled = tokenizer.sample_latents(ids[:, :, :k], noise, Sampling(8, 1.0))
            videos.append(tokenizer.vae.decode(sampled))
        strip = [v.cpu() for clip in zip(*videos) for v in clip]
        save_strip(out / f"samples-{step:06d}.png", strip)


def _latents(batches: Batches, step: int) -> Tensor:
    """What a step reads of shards: latents of single chunks, float16 `[B,C,t,h,w]`."""
    _, found = batches.at(step)
    return torch.from_numpy(np.stack([record.extras["latents"][chunk] for record, chunk in found]))


def _some(latents: Tensor, count: int) -> Tensor:
    """So many clips, or all if there are fewer, always the same. Clips lie in blocks that begin
    with procedural ones, so every n-th may be of one kind."""
    chosen = torch.randperm(len(latents), generator=torch.Generator().manual_seed(0))[:count]
    return latents[chosen.to(latents.device)]


def _statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, `[F,1,1]`, over some of the clips."""
    some = features[:: max(1, len(features) // 1024)].float()
    return (some.mean((0, 1, 3, 4))[:, None, None],
            some.std((0, 1, 3, 4)).clamp_min(1e-4)[:, None, None])  # fmt: skip


def encode_ids(tokenizer: Tokenizer, latents: Tensor, cache: Path | None) -> Tensor:
    """Latents `[N,C,t,h,w]` -> ids `[N,t,K]` int32 on the CPU, kept in `cache` (if any) for this
    tokenizer and these latents."""
    wanted = {"fingerprint": tokenizer.fingerprint, "latents": digest("", {"x": latents})}
    if cache is not None:
        try:
            with safe_open(cache, "pt") as f:
                if f.metadata() == wanted:
                    return f.get_tensor("ids")
        except (OSError, SafetensorError):
            pass
    ids = ids_of_latents(tokenizer, latents).int()
    if cache is not None:
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


def draw_budgets(registers: int, groups: int, rng: np.random.Generator) -> list[int]:
    """One budget for each group: powers of two k up to all registers, drawn in proportion to
    sqrt(k): late tokens are rarely kept, so they learn slowest."""
    powers = np.array([1 << i for i in range(20) if 1 << i <= registers])
    share = np.sqrt(powers)
    return [int(k) for k in rng.choice(powers, groups, p=share / share.sum())]


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
    start_registers_at_places(task.encoder, task.decoder)
    for name, p in task.named_parameters():
        if "modulation" in name or name.startswith("decoder.head."):
            nn.init.zeros_(p)
        if name.endswith("modulation.bias") and ".blocks." in name:
            kinds, dim = task.recipe.config.decoder.trunk.modulation_kinds, p.numel() // 6
            p.view(kinds, 6, dim // kinds)[:, :2] = 1.0  # gate_attn, gate_mlp
        if name.endswith(("attention.proj.weight", "fc2.weight")):
            p.mul_(0.25)
