"""Which shape does a picture show? The judge of shapes in the prior's model card.

A picture goes through two small networks: one finds the main object, pixel by pixel; the other
reads the shape from that outline alone, cut out, centred and scaled. So nothing but the outline
speaks for a shape. Learning the outlines, which the procedural world tells, makes this several
times cheaper than learning the eight names from pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..train.loop import Schedule, Task
from ..world import world
from .classifier import Block

SIZE = 64  # pixels of a side, as the networks see pictures
SCHEDULE = Schedule(1400, 64, lr=3e-3, matrix_lr=8e-3, warmup=40, ema=0.99)


@dataclass(frozen=True)
class OutlineRecipe:
    """`widths`: channels at 1/2, 1/4 and 1/8 of the picture's size. Of each of `rendered` clips
    a few pictures are kept, and of each of `softened` clips a few that the autoencoder decoded,
    for every second clip from its own tokens, at random budgets in `soften_steps` steps; a
    `softened_share` of the samples are from among them. Every sample is mirrored and turned at
    random and gets noise of a standard deviation up to `noise`; every second rendered one is
    blurred by a Gaussian of up to `blur` pixels."""

    tokenizer: str
    schedule: Schedule = SCHEDULE
    widths: tuple[int, int, int] = (24, 48, 96)
    rendered: int = 6144
    softened: int = 1024
    softened_share: float = 0.4
    soften_steps: int = 3
    blur: float = 1.5
    noise: float = 0.1


class Finder(nn.Module):
    """Pictures `[B,3,H,W]` in [-1,1] -> logits of the main object's mask `[B,1,H,W]`."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        full, half, quarter = widths
        self.stem = nn.Conv2d(12, full, 3, padding=1)
        self.down1 = nn.Conv2d(full, half, 3, stride=2, padding=1)
        self.block1 = Block(half)
        self.down2 = nn.Conv2d(half, quarter, 3, stride=2, padding=1)
        self.block2 = Block(quarter)
        self.up2 = nn.Conv2d(quarter, half, 1)
        self.block3 = Block(half)
        self.up1 = nn.Conv2d(half, full, 1)
        self.conv = nn.Conv2d(full, full, 3, padding=1)
        self.head = nn.Conv2d(full, 4, 3, padding=1)

    def forward(self, pictures: Tensor) -> Tensor:
        x = F.pixel_unshuffle(pictures, 2).contiguous(memory_format=torch.channels_last)
        a = F.silu(self.stem(x))
        b = self.block1(self.down1(a))
        c = self.block2(self.down2(F.silu(b)))
        b = self.block3(b + F.interpolate(self.up2(F.silu(c)), scale_factor=2))
        a = a + F.interpolate(self.up1(F.silu(b)), scale_factor=2)
        a = a + self.conv(F.silu(a))
        return F.pixel_shuffle(self.head(F.silu(a)), 2).float()


class Namer(nn.Module):
    """Patches of :func:`cut_out` `[B,2,S,S]` -> logits of the shapes `[B,8]`."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 32, 3, padding=1)
        self.down1 = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.block = Block(64)
        self.down2 = nn.Conv2d(64, 64, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(8, 64)
        self.hidden = nn.Linear(64 * (side // 4) ** 2, 128)
        self.head = nn.Linear(128, len(world.SHAPES))

    def forward(self, patches: Tensor) -> Tensor:
        x = self.block(self.down1(F.silu(self.conv1(patches - 0.5))))
        x = F.silu(self.norm(self.down2(F.silu(x))))
        return self.head(F.silu(self.hidden(x.flatten(1)))).float()


class Outline(nn.Module):
    """Pictures `[B,3,64,64]` in [-1,1] -> logits of the main object's mask `[B,1,64,64]` and of
    its shape `[B,8]`."""

    SIDE = 24

    def __init__(self, widths: tuple[int, int, int] = (24, 48, 96)) -> None:
        super().__init__()
        self.finder, self.namer = Finder(widths), Namer(self.SIDE)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        mask = self.finder(pictures)
        return mask, self.namer(cut_out(mask.detach().sigmoid(), self.SIDE))

    @torch.no_grad()
    def read(self, video: Tensor) -> Tensor:
        """Clips `[N,3,T,H,W]` in [-1,1] -> numbers of the shapes `[N]`: each picture says how
        likely each shape is, and the mean of the logarithms decides."""
        device, shapes = self.finder.stem.weight.device, []
        for clips in video.split(16):
            pictures = to_size(clips.transpose(1, 2).flatten(0, 1).float().to(device))
            said = self(pictures)[1].log_softmax(1).unflatten(0, (len(clips), -1))
            shapes.append(said.mean(1).argmax(1).cpu())
        return torch.cat(shapes)


def to_size(pictures: Tensor) -> Tensor:
    """`[B,C,H,W]` at the networks' size."""
    if pictures.shape[-1] == SIZE:
        return pictures
    return F.interpolate(pictures, SIZE, mode="bilinear", antialias=True)


def cut_out(masks: Tensor, side: int) -> Tensor:
    """Masks `[B,1,H,W]` in 0..1 -> `[B,2,side,side]`: the object, centred and brought to one size
    by its moments, and where the patch lies inside the picture."""
    n = masks.shape[-1]
    at = torch.linspace(1 / n - 1, 1 - 1 / n, n, device=masks.device)
    weight = masks[:, 0] ** 2
    weight = weight / weight.sum((1, 2), keepdim=True).clamp_min(1e-3)
    across, down = weight.sum(1), weight.sum(2)  # (B, W), (B, H)
    x, y = (across * at).sum(1), (down * at).sum(1)
    spread = (across * (at - x[:, None]) ** 2 + down * (at - y[:, None]) ** 2).sum(1)
    scale = (2.2 * spread.clamp_min(1e-3).sqrt()).clamp(0.12, 1.0)
    step = torch.linspace(1 / side - 1, 1 - 1 / side, side, device=masks.device)
    columns, rows = (c[:, None] + scale[:, None] * step for c in (x, y))  # (B, side) each
    grid = torch.stack(
        [columns[:, None].expand(-1, side, -1), rows[:, :, None].expand(-1, -1, side)], -1
    )
    both = torch.cat([masks, torch.ones_like(masks)], 1)
    return F.grid_sample(both, grid, align_corners=False)


class OutlineTask(Task):
    """An outline network on `rendered` pictures, uint8 `[N,F,4,64,64]` (RGB and the mask), and
    `softened` ones `[M,G,4,64,64]` (M may be 0), with the numbers of the shapes `[N]`, `[M]`."""

    def __init__(
        self, recipe: OutlineRecipe, rendered: Tensor, shapes: Tensor, softened: Tensor,
        soft_shapes: Tensor,
    ) -> None:  # fmt: skip
        super().__init__()
        self.recipe, self.clips = recipe, len(rendered)
        self.rendered, self.shapes = rendered, shapes
        self.softened, self.soft_shapes = softened, soft_shapes
        self.outline = Outline(recipe.widths)

    exact = ("",)  # all of it in float32: it is small

    def hidden_matrices(self) -> list[nn.Parameter]:
        hidden = ("block", "down", "finder.conv.")
        return [
            p for n, p in self.named_parameters() if p.ndim == 4 and any(h in n for h in hidden)
        ]

    def forward(
        self, step: int, generator: torch.Generator, progress: float
    ) -> dict[str, Tensor]:  # fmt: skip
        r, count = self.recipe, self.recipe.schedule.batch
        g = torch.Generator().manual_seed(generator.initial_seed())
        soft = round(count * r.softened_share) if len(self.softened) else 0
        x, y = _pick(self.rendered, self.shapes, count - soft, g)
        sigma = r.blur * torch.rand(len(x), generator=g)
        blurred = torch.rand(len(x), generator=g) < 0.5
        x[:, :3] = blur(x[:, :3], torch.where(blurred, sigma, 0.0))
        if soft:
            more, z = _pick(self.softened, self.soft_shapes, soft, g)
            x, y = torch.cat([x, more]), torch.cat([y, z])
        x = _turned(x, g)
        pictures, mask = 2 * x[:, :3] - 1, x[:, 3:]
        spread = r.noise * torch.rand(count, 1, 1, 1, generator=g)
        pictures = pictures + spread * torch.randn(pictures.shape, generator=g)
        weight = self.outline.finder.stem.weight
        mask, y = mask.to(weight.device), y.to(weight.device)
        found, named = (x.float() for x in self.outline(pictures.to(weight)))
        seen, true = found.detach() > 0, mask > 0.5
        finding = F.binary_cross_entropy_with_logits(found, mask)
        return {
            "loss": 5 * finding + F.cross_entropy(named, y),
            "iou": (seen & true).sum() / (seen | true).sum().clamp_min(1),
            "shape": (named.detach().argmax(1) == y).float().mean(),
        }


def _pick(
    pictures: Tensor, shapes: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """`count` pictures `[count,4,64,64]` in 0..1 of random clips, and their shapes."""
    clip = torch.randint(len(pictures), (count,), generator=generator)
    frame = torch.randint(pictures.shape[1], (count,), generator=generator)
    return pictures[clip, frame].float() / 255, shapes[clip]


def _turned(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture of `[B,C,S,S]` mirrored and turned in one of eight ways."""
    ways = torch.randint(8, (len(x),), generator=generator).tolist()
    turned = [torch.rot90(p, way % 4, (1, 2)) for p, way in zip(x, ways)]
    return torch.stack([p.flip(2) if way > 3 else p for p, way in zip(turned, ways)])


def blur(x: Tensor, sigma: Tensor, reach: int = 4) -> Tensor:
    """Pictures `[B,C,H,W]`, each blurred by a Gaussian of its own `sigma` `[B]` (0: not at all);
    edges repeat."""
    at = torch.arange(-reach, reach + 1, device=x.device)
    kernel = torch.exp(-(at**2) / (2 * sigma[:, None].clamp_min(0.05) ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True))[:, None]  # (B, 1, 2·reach + 1)
    y = F.pad(x, (reach,) * 4, mode="replicate").transpose(0, 1)  # one group a picture
    y = F.conv2d(y, kernel[..., None, :], groups=len(x))
    return F.conv2d(y, kernel[..., None], groups=len(x)).transpose(0, 1)
