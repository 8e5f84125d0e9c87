"""What does a clip show? A small network reads the main object's colour, shape and motion from the
autoencoder's latents: the judge of the prior's model card.

It is trained on the procedural clips of a run folder, many of its samples softened as the tokenizer
softens clips: else a blurred but right picture would be read as badly as a wrong one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from .. import flow, world
from ..atomic import replacing
from ..errors import VftError
from ..tokenizer import Tokenizer
from .data import RealClips, to_video
from .loop import Schedule, Task, train
from .prior import HELD_OUT, ids_of_latents
from .probe import LABELS
from .tokenizer import TokenizerRecipe, dataset_sources

SCHEDULE = Schedule(1800, 64, lr=1e-3, matrix_lr=4e-3, warmup=60, ema=0.995)


@dataclass(frozen=True)
class ClassifierRecipe:
    """`widths`: channels at full and at half resolution. `softened` clips are made once, decoded
    from their own tokens at random budgets in `soften_steps` steps; a `softened_share` of the
    samples are from among them. Every sample is moved by up to one latent pixel each way and gets
    noise of a standard deviation up to `noise` (the latents' own is 1)."""

    tokenizer: str
    schedule: Schedule = SCHEDULE
    widths: tuple[int, int] = (64, 128)
    softened: int = 2048
    softened_share: float = 0.4
    soften_steps: int = 3
    noise: float = 0.3
    dropout: float = 0.3


class Block(nn.Module):
    """norm, SiLU, 3x3 convolution, twice, and a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class Classifier(nn.Module):
    """Latents `[B,C,t,h,w]` -> logits `[B,10 | 8 | 16]` by label. The latent frames are channels
    of one picture: every convolution sees all of the motion."""

    def __init__(
        self, shape: tuple[int, int, int, int], widths: tuple[int, int] = (64, 128),
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        (c, t, h, w), (full, half) = shape, widths
        self.stem = nn.Conv2d(c * t, full, 3, padding=1)
        self.block1 = Block(full)
        self.down = nn.Conv2d(full, half, 3, stride=2, padding=1)
        self.block2 = Block(half)
        self.norm = nn.GroupNorm(8, half)
        self.hidden = nn.Linear(half * ((h + 1) // 2) * ((w + 1) // 2), 256)
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict({k: nn.Linear(256, len(v)) for k, v in LABELS.items()})

    def forward(self, latents: Tensor) -> dict[str, Tensor]:
        x = self.block1(self.stem(latents.flatten(1, 2)))
        x = F.silu(self.norm(self.block2(self.down(x))))
        x = self.dropout(F.silu(self.hidden(self.dropout(x.flatten(1)))))
        return {name: head(x).float() for name, head in self.heads.items()}


class ClassifierTask(Task):
    """A classifier on `latents` `[N,C,t,h,w]` and softened ones `[M,C,t,h,w]` (M may be 0), with
    `labels` and `soft_labels` `[N]`, `[M]` by label."""

    def __init__(
        self, recipe: ClassifierRecipe, latents: Tensor, labels: dict[str, Tensor],
        softened: Tensor, soft_labels: dict[str, Tensor],
    ) -> None:  # fmt: skip
        super().__init__()
        self.recipe = recipe
        self.latents, self.labels = latents, labels
        self.softened, self.soft_labels = softened, soft_labels
        _, c, t, h, w = latents.shape
        self.classifier = Classifier((c, t, h, w), recipe.widths, recipe.dropout)

    def hidden_matrices(self) -> list[nn.Parameter]:
        return [p for n, p in self.named_parameters() if "block" in n and p.ndim == 4]

    def forward(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        r, g = self.recipe, generator
        count = r.schedule.batch
        # of dropout: a resumed run takes the very same steps
        torch.manual_seed(int(torch.randint(1 << 62, (), generator=g)))
        soft = round(count * r.softened_share) if len(self.softened) else 0
        a = torch.randint(len(self.latents), (count - soft,), generator=g)
        b = torch.randint(max(1, len(self.softened)), (soft,), generator=g)
        x = torch.cat([self.latents[a].float(), self.softened[b].float()])
        spread = r.noise * torch.rand(count, 1, 1, 1, 1, generator=g)
        x = _moved(x + spread * torch.randn(x.shape, generator=g), g)
        logits = self.classifier(x.to(self.classifier.stem.weight.device))
        out: dict[str, Tensor] = {"loss": torch.zeros(())}
        for name, predicted in logits.items():
            y = torch.cat([self.labels[name][a], self.soft_labels[name][b]]).to(predicted.device)
            out["loss"] = out["loss"].to(predicted.device) + F.cross_entropy(predicted, y)
            out[name] = (predicted.detach().argmax(1) == y).float().mean()
        return out


def _moved(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each clip of `[B,C,t,h,w]` by -1, 0 or 1 latent pixels each way; edges repeat."""
    b, c, t, h, w = x.shape
    wide = F.pad(x.flatten(1, 2), (1, 1, 1, 1), mode="replicate")
    places = torch.randint(3, (b, 2), generator=generator).tolist()
    cut = [clip[:, i : i + h, j : j + w] for clip, (i, j) in zip(wide, places)]
    return torch.stack(cut).unflatten(1, (c, t))


def accuracy(
    classifier: Classifier, latents: Tensor, labels: dict[str, Tensor]
) -> dict[str, float]:
    """The share of clips `[N,C,t,h,w]` that are read as `labels` say, by label, and "all" three."""
    device = classifier.stem.weight.device
    with torch.no_grad():
        logits = classifier(latents.float().to(device))
    right = {name: logits[name].argmax(1).cpu() == y for name, y in labels.items()}
    right["all"] = torch.stack(list(right.values())).all(0)
    return {name: round(float(v.float().mean()), 4) for name, v in right.items()}


def labels_of(scenes: list[world.Scene]) -> dict[str, Tensor]:
    """Class numbers `[N]` of the main objects, by label."""
    return {
        name: torch.tensor([values.index(getattr(s.main, name)) for s in scenes])
        for name, values in LABELS.items()
    }


# ---------------------------------------------------------------------- clips, encoded and decoded


def autocast(tokenizer: Tokenizer, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(tokenizer.device.type, dtype, enabled=dtype != torch.float32)


@torch.no_grad()
def encode_scenes(tokenizer: Tokenizer, scenes: list[world.Scene], dtype: torch.dtype) -> Tensor:
    """Scenes, rendered -> latents `[N,C,t,h,w]` float16, as in a run folder."""
    c, parts = tokenizer.config, []
    for start in tqdm(range(0, len(scenes), 16), desc="rendering", mininterval=1):
        video = to_video([s.render(c.chunk_frames, c.size) for s in scenes[start : start + 16]])
        with autocast(tokenizer, dtype):
            parts.append(tokenizer.vae.encode(video.to(tokenizer.device)).half().cpu())
    return torch.cat(parts)


@torch.no_grad()  # not inference_mode: the classifier is trained on these
def decoded_latents(
    tokenizer: Tokenizer, ids: Tensor, dtype: torch.dtype, *, keep: Tensor | None = None,
    steps: int | None = None, desc: str = "decoding", batch: int = 32,
) -> Tensor:  # fmt: skip
    """Ids `[N,t,k]` -> latents `[N,C,t,h,w]` float32 on the CPU, at the tokenizer's default
    sampling: what its video autoencoder would decode. `keep` `[N]`: a budget for each clip. Clip
    i's noise is drawn from seed i."""
    c, parts = tokenizer.config, []
    for start in tqdm(range(0, len(ids), batch), desc=desc, mininterval=1):
        part = slice(start, start + batch)
        seeds = range(start, start + len(ids[part]))
        noise = [torch.randn(c.latent_shape, generator=_generator(i)) for i in seeds]
        with autocast(tokenizer, dtype):
            latents = tokenizer.sample_latents(
                ids[part], torch.stack(noise), flow.Schedule(steps or c.sampling.steps),
                flow.Guidance(c.sampling.guidance, c.sampling.apg),
                keep=None if keep is None else keep[part],
            )  # fmt: skip
        parts.append(latents.float().cpu())
    return torch.cat(parts)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run_clips(
    recipe: TokenizerRecipe, real: RealClips | None, out: Path, tokenizer: Tokenizer,
    dtype: torch.dtype,
) -> tuple[Tensor, dict[int, world.Scene]]:  # fmt: skip
    """The latents of a run folder `[N,C,t,h,w]` float16, memory-mapped, and the scenes of those
    that are procedural, by number. VftError if the folder's clips are not the ones that its
    seeds draw, or were encoded by another autoencoder."""
    shape, progress = recipe.config.latent_shape, out / "latents.done"
    if not progress.exists():
        raise VftError(f"{out} holds no encoded clips; run `vft train tokenizer --out {out}` first")
    if tokenizer.config.latent_shape != shape:
        raise VftError(
            f"tokenizer {tokenizer.config.name!r} has latents {tokenizer.config.latent_shape}, "
            f"{out} holds {shape}: choose the preset and tokenizer of one run"
        )
    count = int(progress.read_text())
    latents = torch.from_file(
        str(out / "latents.f16"), shared=False, size=count * math.prod(shape), dtype=torch.float16
    ).view(count, *shape)
    sources = dataset_sources(recipe, real, count)
    scenes = {i: world.draw_scene(s) for i, s in enumerate(sources) if isinstance(s, int)}
    check = sorted(scenes)[-4:]
    fresh = encode_scenes(tokenizer, [scenes[i] for i in check], dtype).float()
    stored = latents[check].float()
    if float((fresh - stored).norm() / stored.norm()) > 0.2:
        raise VftError(
            f"the clips of {out}/latents.f16 are not those drawn now: give the tokenizer of that "
            "folder, and the same --preset, --real or --no-real that made it"
        )
    return latents, scenes


# ---------------------------------------------------------------------- training


def trained_classifier(
    recipe: ClassifierRecipe, data: TokenizerRecipe, real: RealClips | None, out: Path,
    tokenizer: Tokenizer, dtype: torch.dtype,
) -> tuple[Classifier, dict[str, Any]]:  # fmt: skip
    """The classifier of a run folder, read from `out/classifier.safetensors` where one of this
    recipe and tokenizer is there, else trained and kept there; and what it was trained on."""
    path = out / "classifier.safetensors"
    said = json.dumps(dataclasses.asdict(recipe), sort_keys=True)
    c, t, h, w = tokenizer.config.latent_shape
    classifier = Classifier((c, t, h, w), recipe.widths)
    try:
        with safe_open(path, "pt") as f:
            metadata = f.metadata() or {}
            if metadata.get("recipe") == said:
                classifier.load_state_dict({k: f.get_tensor(k) for k in f.keys()})  # noqa: SIM118
                print(f"vft: {path} is reused; delete it to train it again", file=sys.stderr)
                facts = json.loads(metadata["facts"])
                return classifier.to(tokenizer.device).eval().requires_grad_(False), facts
    except (OSError, SafetensorError):
        pass
    latents, scenes = run_clips(data, real, out, tokenizer, dtype)
    kept = [i for i in sorted(scenes) if (i + 1) % HELD_OUT]
    apart = sorted(scenes.keys() - set(kept))[:512]
    every = max(1, len(kept) // recipe.softened)
    soft = kept[::every][: recipe.softened]
    budgets = torch.tensor(tokenizer.config.budgets)
    keep = budgets[torch.randint(len(budgets), (len(soft),), generator=_generator(0))]
    softened = decoded_latents(
        tokenizer, ids_of_latents(tokenizer, latents[soft]), dtype, keep=keep,
        steps=recipe.soften_steps, desc="softening", batch=64,
    )  # fmt: skip
    torch.manual_seed(recipe.schedule.seed)
    task = ClassifierTask(
        recipe, latents[kept], labels_of([scenes[i] for i in kept]), softened.half(),
        labels_of([scenes[i] for i in soft]),
    )  # fmt: skip
    weights = train(task, recipe.schedule, out / "classifier", device=tokenizer.device, dtype=dtype)
    weights = {k.removeprefix("classifier."): v.cpu().contiguous() for k, v in weights.items()}
    classifier.load_state_dict(weights)
    classifier = classifier.to(tokenizer.device).eval().requires_grad_(False)
    facts = {
        "clips": len(kept), "softened": len(soft), "softened_share": recipe.softened_share,
        "softened_by": f"decoding their own tokens at random budgets, {recipe.soften_steps} steps",
        "steps": recipe.schedule.steps, "batch": recipe.schedule.batch,
        "parameters": sum(p.numel() for p in classifier.parameters()),
        "run_held_out": accuracy(
            classifier, latents[apart], labels_of([scenes[i] for i in apart])
        ) if apart else {},
    }  # fmt: skip
    with replacing(path) as tmp:
        save_file(weights, tmp, {"recipe": said, "facts": json.dumps(facts)})
    return classifier, facts
