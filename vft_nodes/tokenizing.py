"""The straight path: Encode and Flow Decode; how nodes show tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, cast, get_args

import numpy as np
from comfy_api.latest import io
from torch import Tensor

from ..vft_lib import Tokens, VftError
from ..vft_lib.clips.redo import Redo, Stretch, check_length
from ..vft_lib.clips.stream import decode_frames, encode_file, encode_frames
from ..vft_lib.config.sampling import Quality
from ..vft_lib.image_features import check_encoder
from ..vft_lib.tokenizer.parts import part_of
from ..vft_lib.tokenizer.sampling import Sampling
from ..vft_lib.video.frames import FITS, to_frames
from . import host, vision
from .loaders import LoadedTokenizer
from .pictures import FrameStore, image_frames, make_video, resampled, video_file
from .types import TokenizerType, TokensType, advanced, checked, schema, seed_input

BARS = 96  # of a chart at most


def per_frame(tokens: Tokens) -> str:
    """The budget in words: "8", or "1 to 16"."""
    least = min(tokens.rows)
    return f"{tokens.budget}" if tokens.budgets is None else f"{least} to {tokens.budget}"


def summary(tokens: Tokens) -> str:
    """One line on a grid of tokens, as the budget widget words it."""
    size = tokens.id_bytes
    human = f"{size} B" if size < 1000 else f"{size / 1000:.1f} kB"
    return (
        f"{per_frame(tokens)} per latent frame · {tokens.count:,} tokens · {human} · "
        f"{tokens.frames} frames, {tokens.seconds:.1f} s"
    )


def shown(tokens: Tokens, text: str | None = None) -> dict[str, Any]:
    """A node's `ui`: words that stay on it (by default the summary), and the numbers that the
    budget widgets of this node and of those behind it reckon with."""
    grid: dict[str, Any] = {
        "latent_frames": tokens.ids.shape[1], "budget": tokens.budget, "frames": tokens.frames,
        "fps": tokens.fps, "size": list(tokens.size),
    }  # fmt: skip
    if tokens.budgets is not None:
        parts = np.array_split(np.array(tokens.rows), min(BARS, len(tokens.rows)))
        grid["bars"] = [round(float(part.mean()), 2) for part in parts]
        # How many latent frames hold a first id, a second, and so on.
        grid["holding"] = tokens.there.sum(0).tolist()
    return {"text": (text or summary(tokens),), "vft_grid": [grid]}


class Encode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VFTEncode", "VFT Encode",
            description="A clip to tokens, all of them: cut them with Truncate Prefix, which never "
            "encodes again. Connect a video or images.",
            search_aliases=["video to tokens", "tokenize video", "videoflextok encode"],
            essentials_category="Video Tools",
            inputs=[
                TokenizerType.Input("tokenizer", tooltip="From Load VFT Tokenizer."),
                io.Video.Input(
                    "video", optional=True,
                    tooltip="A clip of any length: read a few frames at a time.",
                ),
                io.Image.Input(
                    "images", optional=True,
                    tooltip="A batch of frames, in place of a video. Every one is encoded.",
                ),
                io.Float.Input(
                    "fps", default=0.0, min=0.0, max=240.0, step=0.01,
                    tooltip="Video: how many frames of each second are taken. Images: the rate at "
                    "which they play; every one is encoded, so 24 fps frames at 8 play three times "
                    "slower. 0 (auto): the tokenizer's own rate (8 for the default).",
                ),
                io.Combo.Input(
                    "fit", options=list(FITS), default="crop",
                    tooltip="How the picture is brought to the tokenizer's square: crop the long "
                    "side, pad with bars (taken off again when decoding), or stretch.",
                ),
                io.ClipVision.Input(
                    "clip_vision", optional=True,
                    tooltip="Only for SemanTok's tokenizers: Load CLIP Vision with DINOv2-L.",
                ),
            ],
            outputs=[TokensType.Output(display_name="tokens",
                                       tooltip="All tokens of the clip, coarse to fine.")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    @checked
    def execute(
        cls, tokenizer: LoadedTokenizer, fps: float, fit: str, video: Any = None,
        images: Tensor | None = None, clip_vision: Any = None,
    ) -> io.NodeOutput:  # fmt: skip
        if (video is None) == (images is None):
            raise VftError("connect a video or images to VFT Encode, one of them")
        work = host.Work(cls.hidden)
        rate = fps or tokenizer.model.config.fps
        problems: list[str] = []

        def warn(text: str) -> None:
            problems.append(text)
            work.warn(text)

        network = None
        if clip_vision is not None and not tokenizer.model.config.encoder.reads_images:
            warn(f"{tokenizer.model.config.name} reads no image features: clip_vision is not used")
        elif clip_vision is not None:
            network = vision.image_encoder(clip_vision)
            check_encoder(tokenizer.model.config.encoder, tokenizer.model.config.name, network)

        def attempt(_: bool) -> Tokens:
            if network is not None:
                vision.ready(clip_vision, network)
            model = tokenizer.ready(decoding=False)
            model.image_encoder = network
            if images is not None:
                return encode_frames(
                    model, image_frames(images, warn), fps=rate, fit=fit, total=len(images),
                    progress=work,
                )  # fmt: skip
            file = video_file(video)
            if file is not None:
                return encode_file(model, file, fps=rate, fit=fit, progress=work, on_problem=warn)
            parts = video.get_components()
            count, frames = resampled(parts.images, float(parts.frame_rate), rate)
            return encode_frames(model, frames, fps=rate, fit=fit, total=count, progress=work)

        advice = "choose bfloat16 or the CPU in Load VFT Tokenizer, or a smaller tokenizer"
        try:
            tokens = host.with_retry(work, attempt, advice)
        finally:
            tokenizer.model.image_encoder = None  # what travels on is the tokenizer alone
        text = "\n".join([tokenizer.told(summary(tokens)), *dict.fromkeys(problems)])
        return io.NodeOutput(tokens, ui=shown(tokens, text))


def decoding_inputs() -> list[io.Input]:
    """What Flow Decode and Budget Sweep ask of the sampler."""
    return [
        io.Int.Input(
            "steps",
            default=0,
            min=0,
            max=1000,
            tooltip="Sampling steps. 0 (auto): as 'quality' sets them.",
        ),
        io.Float.Input(
            "guidance",
            default=0.0,
            min=0.0,
            max=30.0,
            step=0.1,
            tooltip="How strongly the tokens are followed; 1: no guidance, half the work. 0 "
            "(auto): as 'quality' sets it.",
        ),
        seed_input(),
    ]


def quality_input() -> io.Input:
    """Behind all others: widgets of saved workflows keep their places."""
    return io.Combo.Input(
        "quality", options=list(get_args(Quality)), default="normal", optional=True,
        tooltip="Sets steps and guidance where they are 0 (auto). draft: a sketch, in four passes "
        "or fewer, through the preview decoder if the tokenizer has one; best: what was measured "
        "best, whatever it takes.",
    )  # fmt: skip


def sampling_of(steps: int, guidance: float, seed: int, quality: str) -> Sampling:
    """Of :func:`decoding_inputs` and :func:`quality_input`."""
    return Sampling(steps or None, guidance or None, seed=seed, quality=cast(Quality, quality))


def decoded(
    loaded: LoadedTokenizer, tokens: Tokens, work: host.Work, sampling: Sampling, *,
    first_frame: np.ndarray | None = None, keep_bars: bool = False, preview: bool = True,
    part: tuple[int, int] = (0, 1), redo: Callable[[], Redo] | None = None,
) -> Tensor:  # fmt: skip
    """Tokens -> IMAGE, with progress, previews and a retry when memory runs out. `part` (i, n):
    this is run i of n for the progress bar. `redo`, called at each try, makes a stretch only."""
    count = sampling.settled(loaded.model.config.sampling).recipe.steps
    every = max(1, count // 5)

    def attempt(low_memory: bool) -> Tensor:
        model = loaded.ready(decoding=True, low_memory=low_memory)
        kept, done = FrameStore(tokens.frames), 0

        def estimate(latents: Tensor) -> None:
            nonlocal done
            done += 1
            if done % every == 0:
                work.show(next(to_frames(model.draft_picture(latents[:1, :, :1])[0])))

        make = partial(decode_frames, model, tokens) if redo is None else redo().frames
        frames: Iterator[np.ndarray] = make(
            sampling, first_frame=first_frame, keep_bars=keep_bars, low_memory=low_memory,
            progress=part_of(work, *part), estimate=estimate if preview else None,
        )  # fmt: skip
        for frame in frames:
            kept.add(frame)
        return kept.image()

    advice = (
        "choose bfloat16 or weights in eight bits in Load VFT Tokenizer, guidance 1, or a smaller "
        "tokenizer"
    )
    return host.with_retry(work, attempt, advice)


class FlowDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VFTDecode", "VFT Flow Decode",
            description="Tokens to a clip, chunk by chunk. Fewer tokens: a coarser, still "
            "plausible clip; another seed: another guess at what the tokens leave open.",
            search_aliases=["tokens to video", "videoflextok decode", "detokenize"],
            essentials_category="Video Tools",
            inputs=[
                TokenizerType.Input("tokenizer", tooltip="The one that made the tokens."),
                TokensType.Input("tokens", tooltip="Any prefix of a clip's tokens."),
                *decoding_inputs(),
                io.Image.Input(
                    "first_frame", optional=True,
                    tooltip="Pins the first frame: edit it, and the tokens move the edit.",
                ),
                io.Audio.Input("audio", optional=True, tooltip="Sound for the video."),
                advanced(io.Boolean.Input(
                    "keep_bars", default=False,
                    tooltip="Keep the bars of a clip that was encoded with 'pad'.",
                )),
                advanced(io.Boolean.Input(
                    "preview", default=True,
                    tooltip="Show where the sampler is heading, a few times a chunk.",
                )),
                io.Image.Input(
                    "earlier", optional=True,
                    tooltip="All frames of an earlier decode of these tokens: only the stretch "
                    "below is decoded again, the rest stays as it is.",
                ),
                advanced(io.Float.Input(
                    "redo_from", default=0.0, min=0.0, max=86400.0, step=0.125, optional=True,
                    tooltip="With 'earlier': where the stretch begins, in seconds. It grows to "
                    "whole chunks.",
                )),
                advanced(io.Float.Input(
                    "redo_to", default=0.0, min=0.0, max=86400.0, step=0.125, optional=True,
                    tooltip="With 'earlier': where the stretch ends, in seconds; 0: at the end.",
                )),
                quality_input(),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The frames."),
                io.Video.Output(display_name="video",
                                tooltip="The same with frame rate and sound, for Save Video."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    @checked
    def execute(
        cls, tokenizer: LoadedTokenizer, tokens: Tokens, steps: int, guidance: float, seed: int,
        keep_bars: bool, preview: bool, first_frame: Tensor | None = None, audio: Any = None,
        earlier: Tensor | None = None, redo_from: float = 0.0, redo_to: float = 0.0,
        quality: str = "normal",
    ) -> io.NodeOutput:  # fmt: skip
        work = host.Work(cls.hidden)
        given = None if first_frame is None else next(image_frames(first_frame, work.warn))
        redone: list[Redo] = []
        if earlier is not None:
            tokenizer.model.check_tokens(tokens)
            check_length(len(earlier), tokens)
            at = Stretch.of(tokenizer.model, tokens, redo_from, redo_to or None)

            def anew() -> Redo:
                frames = image_frames(earlier, work.warn)
                redone.append(Redo(tokenizer.model, tokens, frames, at))
                return redone[-1]
        elif redo_from or redo_to:
            raise VftError("redo_from and redo_to need the earlier frames: connect them to earlier")

        sampling = sampling_of(steps, guidance, seed, quality)
        before = replace(tokenizer.model.passes)
        images = decoded(
            tokenizer, tokens, work, sampling, first_frame=given, keep_bars=keep_bars,
            preview=preview, redo=None if earlier is None else anew,
        )  # fmt: skip
        passes = tokenizer.model.passes.since(before)
        text = f"{summary(tokens)} · {images.shape[2]}×{images.shape[1]} px · {passes}"
        if earlier is not None:
            for kept in (slice(0, at.begin), slice(at.end, tokens.frames)):
                images[kept] = earlier[kept, ..., :3]  # not even rounded
            text += f"\n{at} made anew"
            if at.joins:
                text += f", jumps where it joins: {redone[-1].seams}"
        video = make_video(images, tokens.fps, audio)
        return io.NodeOutput(images, video, ui=shown(tokens, tokenizer.told(text)))
