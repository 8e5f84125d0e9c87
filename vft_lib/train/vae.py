"""Training the video autoencoder: L1 on pixels and a light KL, small crops first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..autoencoder.vae import VideoAutoencoder
from ..config.tokenizer import VAEConfig
from .data import RealClips, training_clips
from .loop import Schedule, Task
from .plots import save_strip


@dataclass(frozen=True)
class VAERecipe:
    """For the first `crop_share` of the steps the batch is of five-frame clips cropped to `crop`
    px: four times as many different pictures for the same work. After that come whole pictures,
    of `clip_lengths` frames in turn and as many clips as cost about the same."""

    config: VAEConfig
    size: int
    schedule: Schedule
    crop: int = 32
    crop_share: float = 0.6
    clip_lengths: tuple[int, ...] = (5, 9, 17)
    real_share: float = 0.5
    kl: float = 3e-5


class VAETask(Task):
    def __init__(self, recipe: VAERecipe, real: RealClips | None) -> None:
        super().__init__()
        self.recipe, self.real = recipe, real
        self.vae = VideoAutoencoder(recipe.config)
        _initialize(self.vae)

    def hidden_matrices(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.ndim >= 2 and min(len(p), p[0].numel()) >= 8]

    def forward(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        r = self.recipe
        small = step < r.crop_share * r.schedule.steps
        frames = 5 if small else r.clip_lengths[step % len(r.clip_lengths)]
        pixels = 8 * r.crop**2 * r.schedule.batch  # three frames are put in front of each clip
        batch = r.schedule.batch if small else max(1, round(pixels / (frames + 3) / r.size**2))
        device = next(self.parameters()).device
        x = training_clips(generator, batch, frames, r.size, self.real, r.real_share)
        if small:
            top, left = (
                int(torch.randint(r.size - r.crop + 1, (), generator=generator)) for _ in "yx"
            )
            x = x[..., top : top + r.crop, left : left + r.crop]
        x = x.to(device)
        mean, logvar = self.vae.moments(x)
        mean, logvar = mean.float(), logvar.float().clamp(-20, 10)
        noise = torch.randn(mean.shape, generator=generator).to(device)
        y = self.vae.decode(mean + noise * (0.5 * logvar).exp()).float()
        l1 = F.l1_loss(y, x)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        loss = l1 + r.kl * kl
        psnr = 10 * torch.log10(4 / F.mse_loss(y.clamp(-1, 1), x))
        return {"loss": loss, "l1": l1.detach(), "kl": kl.detach(), "psnr": psnr.detach()}

    @torch.no_grad()
    def samples(self, out: Path, step: int) -> None:
        """Four held-back clips above their reconstructions."""
        generator = torch.Generator().manual_seed(1)
        x = training_clips(generator, 4, 17, self.recipe.size, self.real, self.recipe.real_share)
        y = self.vae.eval().decode(self.vae.encode(x.to(next(self.parameters()).device)))
        save_strip(out / f"samples-{step:06d}.png", [v for p in zip(x, y.cpu()) for v in p])


@torch.no_grad()
def _initialize(vae: VideoAutoencoder) -> None:
    for m in vae.modules():
        if isinstance(m, (nn.Conv2d, nn.Conv3d, nn.Linear)):
            nn.init.kaiming_normal_(m.weight, nonlinearity="linear")
            assert m.bias is not None
            nn.init.zeros_(m.bias)
    # Start with little posterior noise: at unit variance the decoder first learns to ignore the
    # latents and stays on that plateau for hundreds of steps.
    last = vae.encoder.conv_out.conv
    last.weight[vae.config.latent_channels :] *= 0.1
    last.bias[vae.config.latent_channels :] -= 6


@torch.no_grad()
def fold_latent_scale(vae: VideoAutoencoder, clips: Tensor) -> Tensor:
    """Rescale the latents to unit variance per channel without changing what the pair computes:
    the scale goes into the encoder's last and the decoder's first convolution. Returns it `[C]`.

    Flow matching wants data of about the noise's size; a scale in the weights needs no extra
    number in the config.
    """
    scale = vae.encode(clips).transpose(0, 1).flatten(1).std(1)  # (C,)
    c = len(scale)
    last, first = vae.encoder.conv_out.conv, vae.decoder.conv_in.conv
    last.weight[:c] /= scale[:, None, None, None, None]
    last.bias[:c] /= scale
    last.bias[c:] -= 2 * scale.log()
    first.weight *= scale[None, :, None, None, None]
    return scale
