"""`vft decode`: tokens -> mp4, whole, resumed, or a stretch of it made anew."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import VftError
from ..files.atomic import check_other, check_place
from .common import (
    add_dino_option,
    add_resource_options,
    add_sampling_options,
    answer,
    load_tokenizer_for,
    note,
    number,
    sampling_of,
)

if TYPE_CHECKING:
    from ..tokens import Tokens


def add_decode_command(command: Callable[..., Any]) -> None:
    """Add `decode`; `command(name, func, about)` makes a parser with the options that all commands
    share."""
    decode = command("decode", _decode, "token file -> mp4")
    decode.add_argument("tokens", type=Path, metavar="T.vft")
    decode.add_argument("-o", "--out", type=Path, required=True, metavar="CLIP.mp4")
    decode.add_argument("--budget", type=int, metavar="K", help="decode the first K only")
    decode.add_argument("--first-frame", type=Path, metavar="IMG", help="pin the first frame")
    decode.add_argument(
        "--audio-from", type=Path, metavar="CLIP",
        help="default: the clip that was encoded, if it lies beside the token file",
    )  # fmt: skip
    decode.add_argument("--keep-bars", action="store_true", help="of --fit pad")
    decode.add_argument(
        "--resume", action="store_true", help="go on with what an interrupted decode has finished"
    )
    decode.add_argument(
        "--redo", type=Path, metavar="CLIP.mp4",
        help="what the tokens were decoded to before: only --from to --to is made anew",
    )  # fmt: skip
    for name, dest, about in (("from", "start", "beginning"), ("to", "stop", "end")):
        decode.add_argument(
            f"--{name}", dest=dest, type=number, metavar="S",
            help=f"of --redo: seconds (default: the {about}); grows to whole chunks",
        )  # fmt: skip
    decode.add_argument("--no-audio", action="store_true")
    add_dino_option(decode)
    add_resource_options(decode)
    add_sampling_options(decode)


def _decode(args: argparse.Namespace) -> None:
    from ..clips.stream import decode_file
    from ..tokens import Tokens

    check_place(args.out)
    tokens = Tokens.load(args.tokens)
    tokens = tokens if args.budget is None else tokens.truncate(args.budget)
    check_other(args.out, _beside(args.tokens, tokens), "the clip that these tokens were made of")
    audio = None if args.no_audio else args.audio_from or _sound_beside(args.tokens, tokens)
    if args.redo is not None:
        _redo(args, tokens, audio)
        return
    if args.start is not None or args.stop is not None:
        raise VftError("--from and --to need the earlier result: name it with --redo CLIP.mp4")
    tokenizer = load_tokenizer_for(args)
    frames = decode_file(
        tokenizer, tokens, args.out, sampling_of(args),
        first_frame=args.first_frame, audio_from=audio, keep_bars=args.keep_bars,
        resume=args.resume, progress=args.bars("decode"), on_problem=note,
    )  # fmt: skip
    facts = {"file": args.out, "frames": frames, "fps": tokens.fps, "budget": tokens.budget}
    text = f"{args.out}: {frames} frames at {tokens.fps:g} fps from {tokens.count} tokens"
    text += f", {tokenizer.passes}" + f", sound of {audio}" * bool(audio)
    facts |= {"passes": dataclasses.asdict(tokenizer.passes), "audio_from": audio}
    answer(args, text, facts)


def _redo(args: argparse.Namespace, tokens: Tokens, audio: Path | None) -> None:
    from ..clips.redo import Stretch, redo_file

    if args.resume:
        raise VftError("--resume goes on with a whole decode, --redo makes a part: give one")
    tokenizer = load_tokenizer_for(args)
    tokenizer.check_tokens(tokens)
    at = Stretch.of(tokenizer, tokens, args.start or 0.0, args.stop)
    seams = redo_file(
        tokenizer, tokens, args.redo, args.out, at, sampling_of(args),
        first_frame=args.first_frame, audio_from=audio, keep_bars=args.keep_bars,
        progress=args.bars("decode"), on_problem=note,
    )  # fmt: skip
    facts = {"file": args.out, "frames": tokens.frames, "anew": [at.begin, at.end - 1]}
    text = f"{args.out}: {at} of {tokens.frames} made anew, {tokenizer.passes}"
    if at.joins:
        text += f"; jumps where they join, in mean jumps: {seams}"
        facts |= {"joins": list(at.joins), "seams": dataclasses.asdict(seams)}
    answer(args, text, facts | {"audio_from": audio})


def _sound_beside(file: Path, tokens: Tokens) -> Path | None:
    """The encoded clip, if a file of its name with sound lies in the token file's own folder."""
    from ..video.video_in import probe

    clip = _beside(file, tokens)
    try:
        return clip if clip.is_file() and probe(clip).has_audio else None
    except (VftError, OSError):  # a name may be too long for this system
        return None


def _beside(file: Path, tokens: Tokens) -> Path:
    """Where the encoded clip would be in the token file's own folder."""
    # A token file may come from anyone: only the last part of the name counts.
    return file.parent / (tokens.source or "").replace("\\", "/").rpartition("/")[2]
