"""Training a decoder alone, on the latents of a finished tokenizer: its autoencoder's own decoder,
or a preview decoder. Latents, ids and priors on them stay what they are."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..autoencoder.preview import Block, PreviewDecoder, Up
from ..config.preview import PreviewConfig
from ..footage.footage import Footage
from ..measure.features import FrozenFeatures
from ..measure.sheets import save_strip
from ..tokenizer.sampling import Sampling
from ..tokenizer.tokenizer import Tokenizer
from .loop import Schedule, Task, step_generator
from .vae import Half, compiled, noise_like, picture_losses, wide_matrices


@dataclass(frozen=True)
class DecoderRecipe:
    """`preview`: of a preview decoder to train from nothing (None: the autoencoder's own decoder is
    trained further). Clips of `frames`, cropped to `crop` px; `world_share`, `perceptual`, `judged`
    and `latent_noise` as in `VAERecipe`. To encode a clip takes longer than a step of a small
    decoder: a batch that is drawn serves `uses` steps, mixed with those drawn last, `held` in all.
    A `token_share` of these batches goes through tokens, an eighth of them or more: latents as the
    flow decoder makes them, so that the decoder learns to mend its errors. With fewer tokens there
    is more to guess than to mend: the mean of all guesses is a blur."""

    size: int
    frames: int
    schedule: Schedule
    preview: PreviewConfig | None = None
    crop: int = 96
    uses: int = 4
    held: int = 4
    world_share: float = 0.25
    perceptual: float = 0.1
    judged: int = 2
    latent_noise: float = 0.1
    token_share: float = 0.0


class DecoderTask(Task):
    """A decoder of the latents of a frozen `tokenizer`, which `data` names. `rank`: of this process
    under torchrun."""

    def __init__(
        self, recipe: DecoderRecipe, tokenizer: Tokenizer, footage: Footage,
        features: FrozenFeatures | None = None, rank: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.recipe, self.footage, self.rank = recipe, footage, rank
        self.data = tokenizer.fingerprint
        self.frozen = (tokenizer, features)  # in a tuple: no submodules
        self._drawn: dict[int, tuple[Tensor, Tensor]] = {}
        self._decode: Half
        if recipe.preview is not None:
            self.preview = PreviewDecoder(recipe.preview, tokenizer.vae.config.latent_channels)
            self._decode = self.preview.forward  # the module itself would be a second part
            _initialize(self.preview)
        else:
            self.vae = copy.deepcopy(tokenizer.vae).float().requires_grad_(False)
            self.vae.decoder.requires_grad_(True)
            self._decode = self.vae.decode

    def compile_decoder(self) -> None:
        """As one compiled graph; as written where it cannot be compiled."""
        self._decode = compiled(self._decode)

    def hidden_matrices(self) -> list[nn.Parameter]:
        return wide_matrices(self)

    def forward(
        self, step: int, generator: torch.Generator, progress: float
    ) -> dict[str, Tensor]:  # fmt: skip
        r = self.recipe
        dtype = next(p for p in self.parameters() if p.requires_grad).dtype
        x, latents = self._clips(step, generator)
        latents = latents + noise_like(latents, r.latent_noise, generator)
        y = self._decode(latents.to(dtype)).float()
        return picture_losses(self.frozen[1], y, x, r.perceptual, r.judged, generator, dtype)

    @torch.no_grad()
    def _clips(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A batch out of the last draws, and its latents, in float32. What is drawn follows from
        the step alone: a run that goes on draws the same ones again."""
        r = self.recipe
        last = step // r.uses
        numbers = range(max(0, last - r.held + 1), last + 1)
        self._drawn = {i: pair for i, pair in self._drawn.items() if i in numbers}
        for i in numbers:
            if i not in self._drawn:
                own = step_generator(r.schedule.seed + 1, i, self.rank, generator.device)
                self._drawn[i] = self._draw(own)
        x, latents = (torch.cat([self._drawn[i][k] for i in numbers]) for k in (0, 1))
        chosen = torch.randperm(len(x), generator=generator, device=generator.device)
        chosen = chosen[: r.schedule.batch]
        return x[chosen], latents[chosen]

    def _draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """New clips and their latents; or those that their tokens decode to."""
        r, device = self.recipe, generator.device
        crop = r.crop if r.crop < r.size else None
        through = r.token_share > 0 and bool(
            torch.rand((), generator=generator, device=device) < r.token_share
        )
        x = self.footage.draw(
            generator, r.schedule.batch, r.frames, r.size, r.world_share, None if through else crop
        )
        if not through:
            return x, self._encode(x)
        latents = self._through_tokens(self._encode(x), generator)
        if crop is None:
            return x, latents
        # Tokens tell of whole pictures, so these are cropped afterwards, at whole latents.
        room = (r.size - crop) // 8 + 1
        top, left = torch.randint(room, (2,), generator=generator, device=device).tolist()
        rows, columns = slice(8 * top, 8 * top + crop), slice(8 * left, 8 * left + crop)
        x = x[..., rows, columns].contiguous()
        side = crop // 8
        return x, latents[..., top : top + side, left : left + side].contiguous()

    def _encode(self, x: Tensor) -> Tensor:
        tokenizer = self.frozen[0]
        return tokenizer.vae.encode(x.to(tokenizer.dtype)).float()

    def _through_tokens(self, latents: Tensor, generator: torch.Generator) -> Tensor:
        """What the flow decoder makes of an eighth, a quarter, half or all of each clip's tokens,
        sampled as the model usually is."""
        tokenizer, device = self.frozen[0], latents.device
        ids = tokenizer.fsq.ids(tokenizer.encoder(latents.to(tokenizer.dtype)))
        halvings = torch.randint(4, (len(ids),), generator=generator, device=device)
        keep = (ids.shape[2] >> halvings).clamp_min(1)
        noise = torch.randn(latents.shape, generator=generator, device=device)
        return tokenizer.sample_latents(ids, noise, Sampling(), keep=keep).float()

    @torch.no_grad()
    def samples(self, out: Path, step: int) -> None:
        """Four clips above what the decoder makes of them, and of a quarter of their tokens."""
        r, tokenizer = self.recipe, self.frozen[0]
        generator = torch.Generator(tokenizer.device).manual_seed(1)
        x = self.footage.draw(generator, 4, r.frames, r.size, 0.25)
        latents = [self._encode(x)]
        if r.token_share:
            latents.append(self._through_tokens(latents[0], generator))
        self.eval()
        decode = self.vae.decode if r.preview is None else self.preview
        rows = [x, *(decode(z) for z in latents)]
        save_strip(out / f"samples-{step:06d}.png", [v.cpu() for clip in zip(*rows) for v in clip])


@torch.no_grad()
def _initialize(preview: PreviewDecoder) -> None:
    for m in preview.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(m.weight, nonlinearity="linear")
            assert m.bias is not None
            nn.init.zeros_(m.bias)
    for m in preview.modules():  # a pixel's four children begin alike: no checkerboard to unlearn
        if isinstance(m, Up):
            weight = m.conv.conv.weight
            weight.copy_(weight[: len(weight) // 4].repeat(4, 1, 1, 1))
        if isinstance(m, Block):
            m.conv2.conv.weight *= 0.1
    preview.out.conv.conv.weight *= 0.1
