"""Training the video autoencoder: L1 on pixels, a perceptual term and a light KL; crops first."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..autoencoder.vae import VideoAutoencoder
from ..config.tokenizer import VAEConfig
from ..footage.footage import Footage, host_rng
from ..measure.features import FrozenFeatures, unit_distance, unit_maps
from ..measure.sheets import save_strip
from ..transformer.graphs import Compiled
from .loop import Schedule, Task

Half = Callable[..., Any]  # of the autoencoder: pixels to moments, or latents to pixels


@dataclass(frozen=True)
class VAERecipe:
    """For the first `crop_share` of the run the batch is of `crop_frames` frames cropped to `crop`
    px: many more different pictures for the same work. After that come whole pictures, of
    `clip_lengths` frames in turn and as many clips as cost about the same. `perceptual`: weight of
    the distance between features of `judged` frames of each clip (0: none). `latent_noise`: the
    most noise that the decoder gets latents with, of each channel's width, since a flow decoder's
    are never exact; the encoder learns to put what matters most where noise takes least (l-DeTok,
    arXiv 2507.15856)."""

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
    latent_noise: float = 0.1


class VAETask(Task):
    def __init__(
        self, recipe: VAERecipe, footage: Footage, features: FrozenFeatures | None = None
    ) -> None:  # fmt: skip
        super().__init__()
        self.recipe, self.footage = recipe, footage
        self.vae = VideoAutoencoder(recipe.config)
        self._halves: tuple[Half, Half] = self.vae.moments, self.vae.decode
        self.features = (features,)  # in a tuple: not a submodule
        _initialize(self.vae)

    def compile_halves(self) -> None:
        """Encoder and decoder as two compiled graphs: a minute or two for each shape of a batch,
        then steps on a CPU take a quarter less time. As written where they cannot be compiled."""
        self._halves = compiled(self.vae.moments), compiled(self.vae.decode)

    def hidden_matrices(self) -> list[nn.Parameter]:
        return wide_matrices(self)

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
        mean, logvar = self._halves[0](x.to(weight.dtype))
        mean, logvar = mean.float(), logvar.float().clamp(-20, 10)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        latents = mean + noise * (0.5 * logvar).exp()
        if r.latent_noise:
            latents = latents + noise_like(mean, r.latent_noise, generator)
        y = self._halves[1](latents.to(weight.dtype)).float()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        out = picture_losses(
            self.features[0], y, x, r.perceptual, r.judged, generator, weight.dtype
        )
        return out | {"loss": out["loss"] + r.kl * kl, "kl": kl.detach()}

    @torch.no_grad()
    def samples(self, out: Path, step: int) -> None:
        """Four clips above their reconstructions."""
        r, weight = self.recipe, self.vae.encoder.conv_in.conv.weight
        generator = torch.Generator(weight.device).manual_seed(1)
        x = self.footage.draw(generator, 4, 17, r.size, 0.25)
        y = self.vae.eval().decode(self.vae.encode(x))
        save_strip(out / f"samples-{step:06d}.png", [v for p in zip(x.cpu(), y.cpu()) for v in p])


def noise_like(latents: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Noise for latents `[B,C,t,h,w]`: `most` of each channel's width at most, for most clips much
    less."""
    width = latents.detach().transpose(0, 1).flatten(1).std(1)[:, None, None, None]
    device = latents.device
    some = torch.rand((len(latents), 1, 1, 1, 1), generator=generator, device=device)
    noise = torch.randn(latents.shape, generator=generator, device=device)
    return noise * (most * some**2 * width)


def compiled(half: Half) -> Half:
    """As one compiled graph; as written where it cannot be compiled."""
    # torch asks its inputs, the weights in the step's number format, for a `grad`.
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
    return Compiled(half)


def wide_matrices(task: nn.Module) -> list[nn.Parameter]:
    """What Muon trains of a convolutional network: matrices and kernels with eight rows and
    columns or more."""
    return [
        p for p in task.parameters()
        if p.requires_grad and p.ndim >= 2 and min(len(p), p[0].numel()) >= 8
    ]  # fmt: skip


def picture_losses(
    features: FrozenFeatures | None, y: Tensor, x: Tensor, weight: float, judged: int,
    generator: torch.Generator, dtype: torch.dtype,
) -> dict[str, Tensor]:  # fmt: skip
    """Of a decoder's clips `[B,3,T,H,W]` against the true ones: L1 and, where there are features,
    `weight` times their distance in `judged` frames, together as "loss"; and PSNR."""
    l1 = F.l1_loss(y, x)
    loss, out = l1, {"l1": l1.detach()}
    if features is not None and weight:
        seen = _seen(features, y, x, judged, generator, dtype)
        loss, out["seen"] = loss + weight * seen, seen.detach()
    return {"loss": loss} | out | {"psnr": _psnr(y, x)}


def _seen(
    features: FrozenFeatures, y: Tensor, x: Tensor, judged: int, generator: torch.Generator,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """The distance between features of `judged` frames of two clips `[B,3,T,H,W]`; a gradient
    reaches the first."""
    frames = x.shape[2]
    chosen = host_rng(generator).choice(frames, min(frames, judged), replace=False)
    pair = [v[:, :, chosen].transpose(1, 2).flatten(0, 1).to(dtype) for v in (y, x)]
    with torch.no_grad():
        wanted = unit_maps(features(pair[1]))
    return unit_distance(unit_maps(features(pair[0])), wanted)


@torch.no_grad()
def _psnr(y: Tensor, x: Tensor) -> Tensor:
    """The mean over a batch of clips."""
    each = ((y.clamp(-1, 1) - x) ** 2).flatten(1).mean(1)
    return (10 * torch.log10(4 / each)).mean()


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
    """Rescale the latents to unit variance per channel without changing what the pair computes.
    Returns the scale `[C]`.

    Flow matching wants data of about the noise's size; a scale in the weights needs no extra
    number in the config.
    """
    scale = _channels(vae, clips).std(1)
    _fold(vae, torch.diag(1 / scale))
    return scale


@torch.no_grad()
def fold_latent_basis(vae: VideoAutoencoder, model: VideoAutoencoder, clips: Tensor) -> Tensor:
    """Give the latents of `vae` the basis in which they are like those of `model`: the same second
    moments, and as correlated with them as a linear map of the channels can make them. What the
    pair computes stays the same. Returns the canonical correlations `[C]`, from 1 (the same) to 0.

    A tokenizer that was trained on `model` then has less to learn anew. With x and y the latents of
    `model` and `vae`, the map is Sx^1/2 U V' Sy^-1/2, where Sx = E[xx'], Sy = E[yy'] and U, V are
    singular vectors of Sx^-1/2 E[xy'] Sy^-1/2 (Hotelling 1936).
    """
    x, y = (_channels(v, clips).double() for v in (model, vae))
    sx, sy, sxy = (a @ b.T / a.shape[1] for a, b in ((x, x), (y, y), (x, y)))
    white = power(sy, -0.5)
    u, correlations, vt = torch.linalg.svd(power(sx, -0.5) @ sxy @ white)
    _fold(vae, power(sx, 0.5) @ u @ vt @ white)
    return correlations


def pixel_metric(vae: VideoAutoencoder, latents: Tensor) -> Tensor:
    """How much a small error of the latents `[N,C,t,h,w]` changes the pixels: a symmetric matrix
    `[C,C]` on their device with trace C. Errors e of the latents then cost e' M e at each place.

    M is the mean over clips and places of J'J, with J the decoder's Jacobian: J'u is one backward
    pass, and E[uu'] = 1 for random signs u (Hutchinson 1990). They are drawn from a seed of their
    own: the same latents give the same matrix.
    """
    generator = torch.Generator().manual_seed(3)
    metric = torch.zeros(latents.shape[1], latents.shape[1], device=latents.device)
    for clip in latents.float().split(1):
        z = clip.requires_grad_()
        with torch.enable_grad():
            video = vae.decode(z)
            signs = torch.randint(2, video.shape, generator=generator).to(video) * 2 - 1
            (slope,) = torch.autograd.grad((video * signs).sum(), z)
        metric += torch.einsum("bcthw,bdthw->cd", slope, slope)
    return metric * len(metric) / metric.trace()


def _channels(vae: VideoAutoencoder, clips: Tensor) -> Tensor:
    """The latents of clips, `[C,N]`."""
    return torch.cat([vae.encode(part) for part in clips.split(4)]).transpose(0, 1).flatten(1)


def _fold(vae: VideoAutoencoder, basis: Tensor) -> None:
    """Map the latents by `basis` `[C,C]` in the encoder's last convolution and back again in the
    decoder's first. The posterior's widths follow as if its channels were equally wide."""
    c = len(basis)
    last, first = vae.encoder.conv_out.conv, vae.decoder.conv_in.conv
    turned, inverse = basis.to(last.weight), torch.linalg.inv(basis).to(first.weight)
    last.weight[:c] = torch.einsum("ij,j...->i...", turned, last.weight[:c])
    last.bias[:c] = turned @ last.bias[:c]
    last.bias[c:] += basis.square().sum(1).log().to(last.bias)
    first.weight.copy_(torch.einsum("oj...,ji->oi...", first.weight, inverse))


def power(symmetric: Tensor, exponent: float) -> Tensor:
    """A power of a positive matrix."""
    values, vectors = torch.linalg.eigh(symmetric)
    return vectors @ torch.diag(values.clamp_min(1e-9) ** exponent) @ vectors.T
