"""A training run, stage by stage: autoencoder, tokenizer, prior. Each leaves a file that loads."""

from __future__ import annotations

import dataclasses
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..autoencoder.vae import VideoAutoencoder
from ..checkpoints.checkpoint import load_vae, save_prior, save_tokenizer, save_vae
from ..errors import VftError
from ..footage.footage import Footage
from ..footage.worlds import Worlds, training_seeds
from ..measure.features import FrozenFeatures
from ..models.loading import add_preview, load_prior, load_tokenizer
from ..prior.prior import Prior
from ..shards.batches import Batches, by_chunk, by_length
from ..shards.dataset import Index, Order
from ..shards.tokenizing import autoencoder_mark
from ..tokenizer.tokenizer import Tokenizer
from .dataset import (
    SEQUENCES,
    Latents,
    Plan,
    Sequences,
    encode_dataset,
    encode_sequences,
    world_count,
)
from .decoders import DecoderRecipe, DecoderTask
from .loop import Schedule, Task, Window, autocast_dtype, first_alone, join_group, train
from .presets import Preset
from .prior import PriorTask, ShardsPriorTask, recipe_for
from .state import finished
from .tokenizer import TokenizerTask
from .vae import VAETask, fold_latent_basis, fold_latent_scale

CHECKPOINT = "checkpoint.safetensors"  # in the folder of a stage
TRAINED = 0.3  # progress of a window that begins with weights of --init


@dataclass(frozen=True)
class Run:
    """What all stages share. `dtype`: of the forward and backward pass (None: what `device` is fast
    at). `every`: seconds between checkpoints; `stop_after`: steps, as a kill would. `features`:
    a frozen image network, for the perceptual term and the alignment (None: without). `processes`:
    that draw procedural clips ahead. `shards`: a folder of `vft tokenize`, which tokenizer and
    prior are trained on in place of `footage`; `tokenizer`: whose tokens these are (None: the run's
    own, or the default one), or which gets a preview decoder. `compiled`: the autoencoder is
    trained as compiled graphs."""

    preset: Preset
    footage: Footage
    out: Path
    device: torch.device
    dtype: torch.dtype | None = None
    every: float = 120.0
    stop_after: int | None = None
    features: FrozenFeatures | None = None
    processes: int = 0
    shards: Path | None = None
    tokenizer: str | None = None
    compiled: bool = False

    @property
    def precision(self) -> torch.dtype:
        return self.dtype or autocast_dtype(self.device)

    def in_turn(self) -> AbstractContextManager[object]:
        """Around what is kept in files of the run: the first process makes them. What lies on a GPU
        each process makes for itself."""
        return nullcontext() if self.device.type == "cuda" else first_alone(self.device)

    def stopped(self, stage: Path) -> bool:
        """Whether `stop_after` ended the stage in that folder before its end."""
        return self.stop_after is not None and not finished(stage / CHECKPOINT)

    def train(
        self, task: Task, schedule: Schedule, stage: Path, window: Window | None,
        dtype: torch.dtype | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """:func:`train` in the folder of a stage, as the run says (`dtype`: in place of its
        precision)."""
        return train(
            task, schedule, stage, device=self.device, every=self.every,
            stop_after=self.stop_after, dtype=dtype or self.precision, window=window,
        )  # fmt: skip

    def order(self, seed: int, buffer: int = 4096) -> Order:
        """In which order this process reads the shards, so many records mixed: all but what is kept
        for validation."""
        assert self.shards is not None
        rank, world = join_group(self.device)
        return Order(Index.of(self.shards), seed, buffer, rank, world, held_out=False)

    def source(self) -> str | Path:
        """The tokenizer whose tokens the shards hold."""
        own = self.out / "tokenizer.safetensors"
        return self.tokenizer or (own if own.exists() else "default")

    def frozen_features(self) -> FrozenFeatures | None:
        """On the device, in the run's number format."""
        return None if self.features is None else self.features.to(self.device, self.precision)


def draw_worlds(preset: Preset, processes: int, alone: bool = False) -> Worlds | None:
    """The procedural clips that a run trains on (`alone`: it trains on nothing else), begun to be
    drawn."""
    r = preset.tokenizer
    count = world_count(r.clips, 1.0 if alone else r.world_share)
    if not count:
        return None
    seeds = training_seeds(count, r.schedule.seed + 1)
    return Worlds(seeds, r.config.chunk_frames, r.config.size, processes)


def train_vae(run: Run, window: Window | None = None, init: Path | None = None) -> Path:
    """Train the autoencoder; `init`: a tokenizer file whose autoencoder it goes on from. Returns
    the path of `vae.safetensors`, or of the checkpoint where `stop_after` ended it before its
    end."""
    r = run.preset.vae
    torch.manual_seed(r.schedule.seed)
    task = VAETask(r, run.footage, run.frozen_features())
    model = None  # whose latents the new ones are to be like
    if init is not None:
        model = load_tokenizer(init, dtype=torch.float32).vae
        task.vae.load_state_dict(model.state_dict())
        window = _begun(window)
    if run.compiled:
        task.compile_halves()
    out = run.out / "vae"
    weights = run.train(task, r.schedule, out, window)
    if run.stopped(out):
        return out / CHECKPOINT
    task.load_state_dict(weights)
    task.requires_grad_(False)
    generator = torch.Generator(run.device).manual_seed(7)
    clips = run.footage.draw(generator, 32, 17, r.size, 0.25)
    if model is not None:
        like = fold_latent_basis(task.vae, model.to(run.device), clips)
        print(f"latents correlate with {init}'s by {like.max():.2f} to {like.min():.2f}")
    else:
        scale = fold_latent_scale(task.vae, clips)
        print(f"latents were {scale.min():.2f} to {scale.max():.2f} wide by channel, now 1")
    path = run.out / "vae.safetensors"
    with first_alone(run.device) as first:
        if first:
            save_vae(path, task.vae.cpu())
    return path


def train_decoder(
    run: Run, recipe: DecoderRecipe, tokenizer: Tokenizer, window: Window | None = None
) -> Path:
    """Train a decoder alone, for the latents of `tokenizer`, which is `run.tokenizer` in the run's
    precision and on its device. Returns the path of `tokenizer.safetensors`, the same tokenizer
    with it (or of the checkpoint)."""
    assert run.tokenizer is not None
    torch.manual_seed(recipe.schedule.seed)
    rank = join_group(run.device)[0]
    task = DecoderTask(recipe, tokenizer, run.footage, run.frozen_features(), rank)
    if recipe.preview is None:
        whole = load_tokenizer(run.tokenizer, dtype=torch.float32)  # weights as they were stored
        task.vae.load_state_dict(whole.vae.state_dict())
        window = _begun(window)
    if run.compiled:
        task.compile_decoder()
    out = run.out / ("vae" if recipe.preview is None else "preview")
    weights = run.train(task, recipe.schedule, out, window)
    if run.stopped(out):
        return out / CHECKPOINT
    path = run.out / "tokenizer.safetensors"
    with first_alone(run.device) as first:
        if first and recipe.preview is None:
            task.load_state_dict(weights)
            whole.vae.load_state_dict(task.vae.state_dict())
            save_tokenizer(path, whole.config, whole.state_dict(), torch.float16)
        elif first and recipe.preview is not None:
            weights = {k.removeprefix("preview."): v for k, v in weights.items()}
            mark = add_preview(run.tokenizer, path, recipe.preview, weights)
            size = sum(2 * v.numel() for v in weights.values()) / 1e6
            print(f"{path}: fingerprint {mark}, preview decoder of {size:.2f} MB")
    return path


def latents_of(run: Run, vae: VideoAutoencoder, deadline: float | None = None) -> Latents:
    """The training clips as latents: kept on a GPU, or in the run's folder."""
    r, device = run.preset.tokenizer, run.device
    folder = None if device.type == "cuda" else run.out
    with run.in_turn():
        return encode_dataset(
            r.config, vae.to(device), run.footage, r.clips, r.world_share, r.schedule.seed + 1,
            device, run.precision, folder, run.frozen_features(), deadline,
        )  # fmt: skip


def train_tokenizer(run: Run, window: Window | None = None, init: Path | None = None) -> Path:
    """Train encoder and flow decoder on `run.out`'s autoencoder. Returns the path of
    `tokenizer.safetensors` (or of the checkpoint)."""
    r, device = run.preset.tokenizer, run.device
    vae = _vae(run)
    data: Latents | Batches
    if run.shards is None:
        data = latents_of(run, vae, None if window is None else _share(window, 0.25))
    else:
        data = _latents_of_shards(run, vae)
    torch.manual_seed(r.schedule.seed)
    task = TokenizerTask(r, vae, data)
    out = run.out / "tokenizer"
    if init is not None:
        start = load_tokenizer(init, device=device, dtype=torch.float32)
        with first_alone(device):
            task.start_from(start, out / "ids.safetensors")
        window = _begun(window)
    weights = run.train(task, r.schedule, out, window)
    if run.stopped(out):
        return out / CHECKPOINT
    weights = {k: v for k, v in weights.items() if not k.startswith("alignment.")}
    weights |= {f"vae.{k}": v for k, v in vae.state_dict().items()}
    assert weights.keys() == Tokenizer(r.config).state_dict().keys()
    path = run.out / "tokenizer.safetensors"
    with first_alone(device) as first:
        if first:
            mark = save_tokenizer(path, r.config, weights, torch.float16)
            print(f"{path}: fingerprint {mark}")
    return path


def sequences_of(
    run: Run, deadline: float | None = None, start: Prior | None = None
) -> Sequences:  # fmt: skip
    """The prior's training clips as ids of `run.out`'s tokenizer. `start`: the prior that it goes
    on from, which may know its own worlds by heart: these are others."""
    r, bank = run.preset.prior, run.footage.bank
    source = run.out / "tokenizer.safetensors"
    tokenizer = load_tokenizer(source, device=run.device, dtype=run.precision)
    seed = r.schedule.seed + 1 + (int(start.fingerprint, 16) if start else 0)
    plan = Plan(r.config, -(-r.clips // SEQUENCES), bank is not None, seed)
    with first_alone(run.device):
        return encode_sequences(
            plan, tokenizer, bank, processes=run.processes, folder=run.out / "prior",
            deadline=deadline,
        )  # fmt: skip


def train_prior(run: Run, window: Window | None = None, init: Path | None = None) -> Path:
    """Train the prior on `run.out`'s tokenizer. Returns the path of `prior.safetensors` (or of the
    checkpoint)."""
    r, device = run.preset.prior, run.device
    start = None if init is None else load_prior(init, device=device, dtype=torch.float32)
    if run.shards is None:
        source = run.out / "tokenizer.safetensors"
        if not source.exists():
            raise VftError(
                f"{source} does not exist; run `vft train tokenizer --out {run.out}` first"
            )
        if run.footage.worlds is None:
            raise VftError("a prior learns the captions of procedural clips, and there are none")
        tokenizer = load_tokenizer(source, device=device, dtype=torch.float32)
        data = sequences_of(run, None if window is None else _share(window, 0.4), start)
        torch.manual_seed(r.schedule.seed)
        task = PriorTask(r, tokenizer, data)
    else:
        tokenizer = load_tokenizer(run.source(), device=device, dtype=torch.float32)
        order = run.order(r.schedule.seed + 1)
        r = recipe_for(r, tokenizer, order.index, start)
        torch.manual_seed(r.schedule.seed)
        batches = by_length(order, r.config.lengths, r.schedule.batch)
        task = ShardsPriorTask(r, tokenizer, batches)
    if start is not None:
        task.start_from(start)
    # A GPU waits for captions, not for arithmetic: float32 costs nothing there.
    dtype = torch.float32 if device.type == "cuda" else run.precision
    weights = run.train(task, r.schedule, run.out / "prior", window, dtype)
    if run.stopped(run.out / "prior"):
        return run.out / "prior" / CHECKPOINT
    path = run.out / "prior.safetensors"
    with first_alone(device) as first:
        if first:
            kept = {k.removeprefix("prior."): v for k, v in weights.items()}
            mark = save_prior(path, task.prior.config, kept, torch.float16)
            print(f"{path}: fingerprint {mark}")
    return path


def train_all(
    run: Run, minutes: float, shares: tuple[float, float, float], init: Path | None = None
) -> None:
    """All three stages in one window of `minutes`, each with its share of what is left of it. A
    share of 0 leaves out a stage, whose file must be there. A stage that `stop_after` ends is the
    last: the next one would need its file."""
    began = time.monotonic()
    end = began
    total = sum(shares)
    for stage, share in zip(("vae", "tokenizer", "prior"), shares):
        end += 60 * minutes * share / total
        if not share:
            continue
        window = Window((end - time.monotonic()) / 60)
        if stage == "vae":
            train_vae(run, window, init)
        elif stage == "tokenizer":
            train_tokenizer(run, window)
        else:
            train_prior(run, window)
        if run.stopped(run.out / stage):
            break


def _begun(window: Window | None) -> Window | None:
    """A window for weights that are trained already."""
    return None if window is None else dataclasses.replace(window, start=TRAINED)


def _share(window: Window, share: float) -> float:
    """When this share of a window is over (time.monotonic)."""
    return window.began + 60 * window.minutes * share


def _latents_of_shards(run: Run, vae: VideoAutoencoder) -> Batches:
    """VftError unless they were made with this autoencoder."""
    r = run.preset.tokenizer
    order = run.order(r.schedule.seed + 1, 512)  # latents take two hundred times what ids do
    plan, c = order.index.plan, r.config
    if "latents" not in plan.settings.extras:
        raise VftError(f"{run.shards} holds no latents; `vft tokenize --with latents` writes them")
    if plan.autoencoder != autoencoder_mark(vae.state_dict()) or plan.settings.size != c.size:
        raise VftError(
            f"the latents of {run.shards} are of another autoencoder than {run.out}'s, or of "
            "another size: name their tokenizer with --tokenizer, in an --out of its own"
        )
    return by_chunk(order, c.token_frames, c.overlap, r.schedule.batch)


def _vae(run: Run) -> VideoAutoencoder:
    source = run.out / "vae.safetensors"
    if run.shards is not None:  # that of the tokenizer which made them
        with first_alone(run.device) as first:
            if first and not source.exists():
                made_with = load_tokenizer(run.tokenizer or "default", dtype=torch.float32)
                save_vae(source, made_with.vae.cpu())
    if not source.exists():
        raise VftError(f"{source} does not exist; run `vft train vae --out {run.out}` first")
    return load_vae(source, run.preset.tokenizer.config.vae).to(run.device)
