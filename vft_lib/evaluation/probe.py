"""What do the first tokens say? A linear probe on the ids alone, without any picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..footage.footage import to_video
from ..tokenizer.tokenizer import Tokenizer
from ..world import world

LABELS = {"motion": world.MOTIONS, "color": tuple(world.COLORS), "shape": world.SHAPES}
UNKNOWN = -1  # the class number of a clip that no world tells


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
            ids.append(tokenizer.ids_of(video).cpu())
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
