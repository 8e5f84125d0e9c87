"""Training the video autoencoder: L1 on pixels, a perceptual term and a light KL; crops first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..autoencoder.vae import VideoAutoencoder
from ..config.tokenizer import VAEConfig
from ..footage.footage import Footage, host_rng
from ..measure.sheets import save_strip
from .features import FrozenFeatures, unit_distance, unit_maps
from .loop import Schedule, Task


@dataclass(frozen=True)
class VAERecipe:
    """For the first `crop_share` of the run the batch is of `crop_frames` frames cropped to `crop`
    px: many more different pictures for the same work. After that come whole pictures, of
    `clip_lengths` frames in turn and as many clips as cost about the same. `perceptual`: weight of
    the distance between features of `judged` frames of each clip (0: none). `freeze_encoder`: the
    decoder alone is trained, on latents with a little noise (`latent_noise`, of their unit width),
    as a flow decoder's have: latents, ids and priors on them stay what they are."""

    config: VAEConfig
    size: int
    schedule: Schedule
    crop: int = 32
    crop_frames: int = 5
    crop_share: float = 0.6
    clip_lengths: tuple[int, ...] = (5, 9, 17)
    world_share: float = 0.25
    kl: float = 3e-5
    perceptual: float = 0.0
    judged: int = 2
    freeze_encoder: bool = False
    latent_noise: float = 0.1


class VAETask(Task):
    def __init__(
        self, recipe: VAERecipe, footage: Footage, features: FrozenFeatures | None = None
    ) -> None:  # fmt: skip
        super().__init__()
        self.recipe, self.footage = recipe, footage
        self.vae = VideoAutoencoder(recipe.config)
        self.features = (features,)  # in a tuple: not a submodule
        _initialize(self.vae)
        self.vae.encoder.requires_grad_(not recipe.freeze_encoder)

    def hidden_matrices(self) -> list[nn.Parameter]:
        return [
            p for p in self.parameters()
            if p.requires_grad and p.ndim >= 2 and min(len(p), p[0].numel()) >= 8
        ]  # fmt: skip

    def forward(
        self, step: int, generator: torch.Generator, progress: float
    ) -> dict[str, Tensor]:  # fmt: skip
        r = self.recipe
        small = progress < r.crop_share
        frames = r.crop_frames if small else r.clip_lengths[step % len(r.clip_lengths)]
        # Three frames are put in front of each clip.
        pixels = (r.crop_frames + 3) * r.crop**2 * r.schedule.batch
        batch = r.schedule.batch if small else max(1, round(pixels / (frames + 3) / r.size**2))
        x = self.footage.draw(
            generator, batch, frames, r.size, r.world_share, r.crop if small else None
        )
        weight = self.vae.encoder.conv_in.conv.weight
        with torch.set_grad_enabled(not r.freeze_encoder):
            mean, logvar = self.vae.moments(x.to(weight.dtype))
        mean, logvar = mean.float(), logvar.float().clamp(-20, 10)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        if r.freeze_encoder:
            some = torch.rand((len(x), 1, 1, 1, 1), generator=generator, device=mean.device)
            latents = mean + noise * (r.latent_noise * some)
        else:
            latents = mean + noise * (0.5 * logvar).exp()
        y = self.vae.decode(latents.to(weight.dtype)).float()
        l1 = F.l1_loss(y, x)
        loss, out = l1, {"l1": l1.detach()}
        if not r.freeze_encoder:
            kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
            loss, out["kl"] = loss + r.kl * kl, kl.detach()
        if self.features[0] is not None and r.perceptual:
            chosen = host_rng(generator).choice(frames, min(frames, r.judged), replace=False)
            pair = [v[:, :, chosen].transpose(1, 2).flatten(0, 1).to(weight.dtype) for v in (y, x)]
            with torch.no_grad():
                wanted = unit_maps(self.features[0](pair[1]))
            seen = unit_distance(unit_maps(self.features[0](pair[0])), wanted)
            loss, out["seen"] = loss + r.perceptual * seen, seen.detach()
        with torch.no_grad():
            each = ((y.clamp(-1, 1) - x) ** 2).flatten(1).mean(1)
            out["psnr"] = (10 * torch.log10(4 / each)).mean()
        return {"loss": loss} | out

    @torch.no_grad()
    def samples(self, out: Path, step: int) -> None:
        """Four clips above their reconstructions."""
        r, weight = self.recipe, self.vae.encoder.conv_in.conv.weight
        generator = torch.Generator(weight.device).manual_seed(1)
        x = self.footage.draw(generator, 4, 17, r.size, 0.25)
        y = self.vae.eval().decode(self.vae.encode(x))
        save_strip(out / f"samples-{step:06d}.png", [v for p in zip(x.cpu(), y.cpu()) for v in p])


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
    latents = torch.cat([vae.encode(part) for part in clips.split(4)])
    scale = latents.transpose(0, 1).flatten(1).std(1)  # (C,)
    c = len(scale)
    last, first = vae.encoder.conv_out.conv, vae.decoder.conv_in.conv
    last.weight[:c] /= scale[:, None, None, None, None]
    last.bias[:c] /= scale
    last.bias[c:] -= 2 * scale.log()
    first.weight *= scale[None, :, None, None, None]
    return scale
