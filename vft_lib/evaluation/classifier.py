"""What can be read from tokens and latents. From the ids alone: a linear probe.

Which colour and which motion does a clip show? A small network reads the main object's from the
autoencoder's latents; shapes are lost to it there, see `outline.py`.

It is trained on the procedural clips of a run folder, many of its samples softened as the tokenizer
softens clips: else a blurred but right picture would be read as badly as a wrong one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..footage.footage import to_video
from ..tokenizer.tokenizer import Tokenizer
from ..train.loop import Schedule, Task
from ..world import world

LABELS = {"motion": world.MOTIONS, "color": tuple(world.COLORS), "shape": world.SHAPES}
UNKNOWN = -1  # the class number of a clip that no world tells
READS = ("color", "motion")
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
    """Latents `[B,C,t,h,w]` -> logits `[B,10 | 16]` by label. The latent frames are channels
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
        self.heads = nn.ModuleDict({k: nn.Linear(256, len(LABELS[k])) for k in READS})

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
        self.recipe, self.clips = recipe, len(latents)
        self.latents, self.labels = latents, labels
        self.softened, self.soft_labels = softened, soft_labels
        _, c, t, h, w = latents.shape
        self.classifier = Classifier((c, t, h, w), recipe.widths, recipe.dropout)

    exact = ("",)  # all of it in float32: it is small

    def hidden_matrices(self) -> list[nn.Parameter]:
        return [p for n, p in self.named_parameters() if "block" in n and p.ndim == 4]

    def forward(
        self, step: int, generator: torch.Generator, progress: float
    ) -> dict[str, Tensor]:  # fmt: skip
        r, g = self.recipe, torch.Generator().manual_seed(generator.initial_seed())
        count = r.schedule.batch
        # of dropout: a resumed run takes the very same steps
        torch.manual_seed(int(torch.randint(1 << 62, (), generator=g)))
        soft = round(count * r.softened_share) if len(self.softened) else 0
        a = torch.randint(len(self.latents), (count - soft,), generator=g)
        b = torch.randint(max(1, len(self.softened)), (soft,), generator=g)
        x = torch.cat([self.latents[a].float(), self.softened[b].float()])
        spread = r.noise * torch.rand(count, 1, 1, 1, 1, generator=g)
        x = _moved(x + spread * torch.randn(x.shape, generator=g), g)
        logits = self.classifier(x.to(self.classifier.stem.weight))
        out: dict[str, Tensor] = {"loss": torch.zeros(())}
        for name, predicted in logits.items():
            y = torch.cat([self.labels[name][a], self.soft_labels[name][b]]).to(predicted.device)
            out["loss"] = out["loss"].to(predicted.device) + F.cross_entropy(predicted.float(), y)
            out[name] = (predicted.detach().argmax(1) == y).float().mean()
        return out


def _moved(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each clip of `[B,C,t,h,w]` by -1, 0 or 1 latent pixels each way; edges repeat."""
    b, c, t, h, w = x.shape
    wide = F.pad(x.flatten(1, 2), (1, 1, 1, 1), mode="replicate")
    places = torch.randint(3, (b, 2), generator=generator).tolist()
    cut = [clip[:, i : i + h, j : j + w] for clip, (i, j) in zip(wide, places)]
    return torch.stack(cut).unflatten(1, (c, t))


def labels_of(scenes: Sequence[world.Scene | None]) -> dict[str, Tensor]:
    """Class numbers `[N]` of the main objects by label, UNKNOWN where there is no scene."""
    return {
        name: torch.tensor([
            UNKNOWN if s is None else values.index(getattr(s.main, name)) for s in scenes
        ])
        for name, values in LABELS.items()
    }  # fmt: skip


@torch.no_grad()  # not inference_mode: the probe is trained on these
def labelled_ids(
    tokenizer: Tokenizer, seeds: range, dtype: torch.dtype = torch.float32, batch: int = 16
) -> tuple[Tensor, dict[str, Tensor]]:
    """Procedural clips as ids `[N,t,K]` and class numbers `[N]` by label name. `dtype`: of
    autocast (float32: none)."""
    c = tokenizer.config
    ids, labels = [], {name: [] for name in LABELS}  # type: ignore[var-annotated]
    for start in tqdm(range(seeds.start, seeds.stop, batch), desc="probe clips", mininterval=1):
        clips = [
            world.make_clip(s, frames=c.chunk_frames, size=c.size)
            for s in range(start, min(start + batch, seeds.stop))
        ]
        video = to_video([clip.video for clip in clips])
        with torch.autocast(tokenizer.device.type, dtype, enabled=dtype != torch.float32):
            ids.append(tokenizer.fsq.ids(tokenizer.encoder(*tokenizer.seen(video, False))).cpu())
        for name, values in LABELS.items():
            labels[name] += [values.index(getattr(clip, name)) for clip in clips]
    return torch.cat(ids), {name: torch.tensor(v) for name, v in labels.items()}


def features(tokenizer: Tokenizer, ids: Tensor) -> Tensor:
    """Ids `[N,t,k]` -> one-hot FSQ digits `[N, t·k·39]`: all that the ids hold, nothing learned."""
    codes = tokenizer.fsq.codes(ids)
    digits = (codes * tokenizer.fsq.half_width + tokenizer.fsq.half_width).round().long()
    hot = [F.one_hot(digits[..., i], n) for i, n in enumerate(tokenizer.config.fsq_levels)]
    return torch.cat(hot, -1).flatten(1).float()


def linear_probe(
    x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, classes: int, decay: float = 3e-3
) -> float:
    """Accuracy of multinomial logistic regression (L2 `decay`, LBFGS to convergence)."""
    mean = x.mean(0)
    x, x_test = x - mean, x_test - mean
    model = nn.Linear(x.shape[1], classes)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y) + decay * model.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return float((model(x_test).argmax(1) == y_test).float().mean())


def probe(
    tokenizer: Tokenizer, train: range, test: range, dtype: torch.dtype = torch.float32
) -> dict[str, dict[int, float]]:
    """Accuracy on unseen clips by label and budget 1, 2, 4 … K; budget 0 is chance: the share of
    the most frequent class of the training clips among the test clips."""
    ids, labels = labelled_ids(tokenizer, train, dtype)
    ids_test, labels_test = labelled_ids(tokenizer, test, dtype)
    table: dict[str, dict[int, float]] = {}
    for name, values in LABELS.items():
        y, y_test = labels[name], labels_test[name]
        table[name] = {0: float((y_test == y.mode().values).float().mean())}
        for k in tokenizer.config.budgets:
            x, x_test = (features(tokenizer, i[:, :, :k]) for i in (ids, ids_test))
            table[name][k] = linear_probe(x, y, x_test, y_test, len(values))
    return table
