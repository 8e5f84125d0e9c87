"""Training the video autoencoder: L1 on pixels, a perceptual term and a light KL; crops first. And
the preview decoder, on latents of a trained one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..autoencoder.preview import Block, PreviewDecoder, Up
from ..autoencoder.vae import VideoAutoencoder
from ..config.preview import PreviewConfig
from ..config.tokenizer import VAEConfig
from ..footage.footage import Footage, host_rng
from ..measure.sheets import save_strip
from ..transformer.graphs import Compiled
from .features import FrozenFeatures, unit_distance, unit_maps
from .loop import Schedule, Task, step_generator

Half = Callable[..., Any]  # of the autoencoder: pixels to moments, or latents to pixels


@dataclass(frozen=True)
class VAERecipe:
    """For the first `crop_share` of the run the batch is of `crop_frames` frames cropped to `crop`
    px: many more different pictures for the same work. After that come whole pictures, of
    `clip_lengths` frames in turn and as many clips as cost about the same. `perceptual`: weight of
    the distance between features of `judged` frames of each clip (0: none). `latent_noise`: the
    most noise that the decoder gets latents with, of each channel's width, since a flow decoder's
    are never exact; the encoder learns to put what matters most where noise takes least (l-DeTok,
    arXiv 2507.15856). `freeze_encoder`: the decoder alone is trained; latents, ids and priors on
    them stay what they are."""

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
        self._halves: tuple[Half, Half] = self.vae.moments, self.vae.decode
        self.features = (features,)  # in a tuple: not a submodule
        _initialize(self.vae)
        self.vae.encoder.requires_grad_(not recipe.freeze_encoder)

    def compile_halves(self) -> None:
        """Encoder and decoder as two compiled graphs: a minute or two for each shape of a batch,
        then steps on a CPU take a quarter less time. As written where they cannot be compiled."""
        # torch asks its inputs, the weights in the step's number format, for a `grad`.
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
        self._halves = Compiled(self.vae.moments), Compiled(self.vae.decode)

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
            mean, logvar = self._halves[0](x.to(weight.dtype))
        mean, logvar = mean.float(), logvar.float().clamp(-20, 10)
        latents = mean
        if not r.freeze_encoder:
            noise = torch.randn(mean.shape, generator=generator, device=mean.device)
            latents = latents + noise * (0.5 * logvar).exp()
        if r.latent_noise:
            width = mean.detach().transpose(0, 1).flatten(1).std(1)[:, None, None, None]
            some = torch.rand((len(x), 1, 1, 1, 1), generator=generator, device=mean.device)
            noise = torch.randn(mean.shape, generator=generator, device=mean.device)
            latents = latents + noise * (r.latent_noise * some**2 * width)
        y = self._halves[1](latents.to(weight.dtype)).float()
        l1 = F.l1_loss(y, x)
        loss, out = l1, {"l1": l1.detach()}
        if not r.freeze_encoder:
            kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
            loss, out["kl"] = loss + r.kl * kl, kl.detach()
        if self.features[0] is not None and r.perceptual:
            seen = _seen(self.features[0], y, x, r.judged, generator, weight.dtype)
            loss, out["seen"] = loss + r.perceptual * seen, seen.detach()
        return {"loss": loss} | out | {"psnr": _psnr(y, x)}

    @torch.no_grad()
    def samples(self, out: Path, step: int) -> None:
        """Four clips above their reconstructions."""
        r, weight = self.recipe, self.vae.encoder.conv_in.conv.weight
        generator = torch.Generator(weight.device).manual_seed(1)
        x = self.footage.draw(generator, 4, 17, r.size, 0.25)
        y = self.vae.eval().decode(self.vae.encode(x))
        save_strip(out / f"samples-{step:06d}.png", [v for p in zip(x.cpu(), y.cpu()) for v in p])


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


@torch.no_grad()
def fold_latent_basis(vae: VideoAutoencoder, model: VideoAutoencoder, clips: Tensor) -> Tensor:
    """Give the latents of `vae` the basis in which they are like those of `model`: the same second
    moments, and as correlated with them as a linear map of the channels can make them. What the
    pair computes stays the same. Returns the canonical correlations `[C]`, from 1 (the same) to 0.

    A tokenizer that was trained on `model` then has less to learn anew. With x and y the latents of
    `model` and `vae`, the map is Sx^1/2 U V' Sy^-1/2, where Sx = E[xx'], Sy = E[yy'] and U, V are
    singular vectors of Sx^-1/2 E[xy'] Sy^-1/2 (Hotelling 1936).
    """
    x, y = (
        torch.cat([v.encode(part) for part in clips.split(4)]).transpose(0, 1).flatten(1).double()
        for v in (model, vae)
    )
    sx, sy, sxy = (a @ b.T / a.shape[1] for a, b in ((x, x), (y, y), (x, y)))
    white = _power(sy, -0.5)
    u, correlations, vt = torch.linalg.svd(_power(sx, -0.5) @ sxy @ white)
    basis = _power(sx, 0.5) @ u @ vt @ white
    c = len(basis)
    last, first = vae.encoder.conv_out.conv, vae.decoder.conv_in.conv
    turned = basis.to(last.weight)
    last.weight[:c] = torch.einsum("ij,j...->i...", turned, last.weight[:c])
    last.bias[:c] = turned @ last.bias[:c]
    last.bias[c:] += 2 * basis.square().sum(1).sqrt().log().to(last.bias)
    inverse = torch.linalg.inv(basis).to(first.weight)
    first.weight.copy_(torch.einsum("oj...,ji->oi...", first.weight, inverse))
    return correlations


def _power(symmetric: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(symmetric)
    return vectors @ torch.diag(values.clamp_min(1e-9) ** exponent) @ vectors.T


@dataclass(frozen=True)
class PreviewRecipe:
    """Clips of `frames`, cropped to `crop` px, and the rest as in `VAERecipe`. To encode a clip
    takes longer than a step of the small decoder: a batch that is drawn serves `uses` steps, mixed
    with those drawn last, `held` in all."""

    config: PreviewConfig
    size: int
    frames: int
    schedule: Schedule
    crop: int = 96
    uses: int = 4
    held: int = 4
    world_share: float = 0.25
    perceptual: float = 0.1
    judged: int = 2
    latent_noise: float = 0.1


class PreviewTask(Task):
    """The preview decoder of a frozen `vae`, on whose latents with a little noise it is trained.
    `data`: names that autoencoder. `rank`: of this process under torchrun."""

    def __init__(
        self, recipe: PreviewRecipe, vae: VideoAutoencoder, footage: Footage,
        features: FrozenFeatures | None = None, data: str = "", rank: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.recipe, self.footage, self.data, self.rank = recipe, footage, data, rank
        self.preview = PreviewDecoder(recipe.config, vae.config.latent_channels)
        self.frozen = (vae, features)  # in a tuple: no submodules
        self._drawn: dict[int, tuple[Tensor, Tensor]] = {}
        _initialize_preview(self.preview)

    def hidden_matrices(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.ndim >= 2 and min(len(p), p[0].numel()) >= 8]

    def forward(
        self, step: int, generator: torch.Generator, progress: float
    ) -> dict[str, Tensor]:  # fmt: skip
        r = self.recipe
        dtype = self.preview.conv_in.conv.weight.dtype
        x, mean = self._clips(step, generator)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        some = torch.rand((len(x), 1, 1, 1, 1), generator=generator, device=mean.device)
        y = self.preview((mean + noise * (r.latent_noise * some)).to(dtype)).float()
        l1 = F.l1_loss(y, x)
        loss, out = l1, {"l1": l1.detach()}
        if self.frozen[1] is not None and r.perceptual:
            seen = _seen(self.frozen[1], y, x, r.judged, generator, dtype)
            loss, out["seen"] = loss + r.perceptual * seen, seen.detach()
        return {"loss": loss} | out | {"psnr": _psnr(y, x)}

    @torch.no_grad()
    def _clips(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A batch out of the last draws, and its latents, in float32. What is drawn follows from
        the step alone: a run that goes on draws the same ones again."""
        r, vae = self.recipe, self.frozen[0]
        dtype = vae.encoder.conv_in.conv.weight.dtype
        last = step // r.uses
        numbers = range(max(0, last - r.held + 1), last + 1)
        self._drawn = {i: pair for i, pair in self._drawn.items() if i in numbers}
        for i in numbers:
            if i not in self._drawn:
                own = step_generator(r.schedule.seed + 1, i, self.rank, generator.device)
                crop = r.crop if r.crop < r.size else None
                x = self.footage.draw(own, r.schedule.batch, r.frames, r.size, r.world_share, crop)
                self._drawn[i] = x, vae.encode(x.to(dtype)).float()
        x, mean = (torch.cat([self._drawn[i][k] for i in numbers]) for k in (0, 1))
        chosen = torch.randperm(len(x), generator=generator, device=generator.device)
        chosen = chosen[: r.schedule.batch]
        return x[chosen], mean[chosen]

    @torch.no_grad()
    def samples(self, out: Path, step: int) -> None:
        """Four clips above the preview decoder's pictures of them."""
        r, vae = self.recipe, self.frozen[0]
        weight = vae.encoder.conv_in.conv.weight
        generator = torch.Generator(weight.device).manual_seed(1)
        x = self.footage.draw(generator, 4, r.frames, r.size, 0.25)
        y = self.preview.eval()(vae.encode(x.to(weight.dtype)).float())
        save_strip(out / f"samples-{step:06d}.png", [v for p in zip(x.cpu(), y.cpu()) for v in p])


@torch.no_grad()
def _initialize_preview(preview: PreviewDecoder) -> None:
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
