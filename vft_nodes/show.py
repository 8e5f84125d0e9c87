"""Budget Sweep, Tokens Info, and an example clip that needs no file."""

from __future__ import annotations

import io as bytesio
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from ..vft_lib import Tokens, VftError
from ..vft_lib.clips.seams import Jumps, borders
from ..vft_lib.measure.demo import example_clip
from ..vft_lib.measure.metrics import Quality
from ..vft_lib.measure.sheets import Grid, draw_plot, in_bytes
from ..vft_lib.video.frames import fit_frame, to_tensor
from ..vft_lib.world.world import make_clip
from . import host
from .files import node_facts
from .loaders import LoadedTokenizer
from .pictures import image_frames, make_video, store
from .tokenizing import decoded, decoding_inputs, quality_input, sampling_of, shown
from .types import TokenizerType, TokensType, checked, schema

COMPARED = 16  # frames at a time
CLIP_PIXELS = 1 << 26  # that are drawn at once, as float32 RGB: 800 MB


class BudgetSweep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VFTBudgetSweep", "VFT Budget Sweep",
            description="The same tokens decoded at several budgets: a labelled grid to look at, "
            "and quality by bytes. Encode once, compare everything.",
            search_aliases=["compare budgets", "rate distortion", "videoflextok sweep"],
            is_output_node=True,
            inputs=[
                TokenizerType.Input("tokenizer", tooltip="The one that made the tokens."),
                TokensType.Input("tokens", tooltip="All tokens of the clip."),
                io.String.Input("budgets", default="1 2 4 8 16",
                                tooltip="Tokens per latent frame, separated by spaces."),
                *decoding_inputs(),
                io.Image.Input(
                    "original", optional=True,
                    tooltip="The clip's frames, as many as were encoded: shown first, and quality "
                    "is measured against them. Without it: against the largest budget.",
                ),
                quality_input(),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="Frames of the grid."),
                io.Video.Output(display_name="video", tooltip="The grid as a video."),
                io.Image.Output(display_name="plot", tooltip="PSNR and SSIM by budget."),
                io.String.Output(display_name="table",
                                 tooltip="The numbers, as JSON."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    @checked
    def execute(
        cls, tokenizer: LoadedTokenizer, tokens: Tokens, budgets: str, steps: int,
        guidance: float, seed: int, original: Tensor | None = None, quality: str = "normal",
    ) -> io.NodeOutput:  # fmt: skip
        try:
            ks = sorted({int(k) for k in budgets.replace(",", " ").split()})
        except ValueError:
            ks = []
        if not ks:
            raise VftError(
                f"budgets {budgets[:60]!r}: give numbers separated by spaces, as in 1 4 16"
            )
        work = host.Work(cls.hidden)
        frames = None if original is None else image_frames(original, work.warn)
        if original is not None and len(original) != tokens.frames:
            raise VftError(
                f"got {len(original)} original frames, the tokens are of {tokens.frames}: connect "
                "the frames that were encoded"
            )
        parts = [tokens.truncate(k) for k in ks]
        sampling = sampling_of(steps, guidance, seed, quality)
        before = tokenizer.model.passes.previewed
        clips = [
            decoded(tokenizer, part, work, sampling, part=(i, len(parts)))
            for i, part in enumerate(parts)
        ]
        reference, against = clips[-1], f"k={ks[-1]}"
        _, h, w, _ = reference.shape
        if frames is not None:
            fitted = (fit_frame(f, (h, w), tokens.fit) for f in frames)
            reference, against = store(fitted, tokens.frames), "the original"
        rows = [_row(part, clip, reference) for part, clip in zip(parts, clips)]
        labels = [f"k={r['budget']} · {r['tokens']} tokens · {in_bytes(r['bytes'])}" for r in rows]
        shown = clips if original is None else [reference, *clips]
        grid = Grid(labels if original is None else ["original", *labels], (h, w))

        def tiles() -> Iterator[np.ndarray]:
            for frames in zip(*map(image_frames, shown)):
                work.check()
                yield grid.frame(frames)

        images = store(tiles(), tokens.frames)
        kept = rows if original is not None else rows[:-1] or rows
        plot = bytesio.BytesIO()
        draw_plot(kept, plot, against)
        picture = torch.from_numpy(np.array(Image.open(plot).convert("RGB"))).float() / 255
        text = "\n".join(
            f"k={r['budget']}: {in_bytes(r['bytes'])}, {r['psnr']:.2f} dB, SSIM {r['ssim']:.3f}"
            for r in rows
        )
        text = f"against {against}\n{text}"
        text += "\npreview decoder" * (tokenizer.model.passes.previewed > before)
        table = json.dumps({"against": against, "rows": rows}, indent=1)
        video = make_video(images, tokens.fps)
        return io.NodeOutput(images, video, picture[None], table, ui={"text": (text,)})


def _row(part: Tokens, clip: Tensor, reference: Tensor) -> dict[str, Any]:
    quality = Quality()
    for a, b in zip(clip.split(COMPARED), reference.split(COMPARED)):
        quality.update(*(to_tensor(image_frames(x)) for x in (a, b)))
    return {
        "budget": part.budget, "tokens": part.count, "bytes": part.id_bytes,
        "psnr": round(quality.psnr, 3), "ssim": round(quality.ssim, 4),
    }  # fmt: skip


class TokensInfo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VFTTokensInfo", "VFT Tokens Info",
            description="What a grid of tokens holds, and the numbers for other nodes.",
            search_aliases=["videoflextok info", "token count"],
            is_output_node=True,
            inputs=[
                TokensType.Input("tokens", tooltip="Any tokens."),
                TokenizerType.Input(
                    "tokenizer", optional=True,
                    tooltip="With 'images': says where chunks meet.",
                ),
                io.Image.Input(
                    "images", optional=True,
                    tooltip="What the tokens were decoded to: measured for seams between chunks.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="text", tooltip="All facts."),
                io.Int.Output(display_name="budget", tooltip="Tokens per latent frame, at most."),
                io.Int.Output(display_name="tokens", tooltip="Tokens of the clip."),
                io.Int.Output(display_name="bytes", tooltip="Bytes of the ids."),
                io.Int.Output(display_name="frames", tooltip="Frames of the clip."),
                io.Float.Output(display_name="fps", tooltip="Frames per second."),
                io.Float.Output(
                    display_name="seam",
                    tooltip="Mean jump where chunks meet, in mean jumps between other frames (1: "
                    "no seam); 0 if not measured.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    @checked
    def execute(
        cls, tokens: Tokens, tokenizer: LoadedTokenizer | None = None, images: Tensor | None = None
    ) -> io.NodeOutput:
        facts, seam = node_facts(tokens), 0.0
        if (tokenizer is None) != (images is None):
            raise VftError("seams need both: connect tokenizer and images, or neither")
        if tokenizer is not None and images is not None:
            tokenizer.model.check_tokens(tokens)
            if len(images) != tokens.frames:
                raise VftError(
                    f"got {len(images)} images, the tokens are of {tokens.frames} frames: connect "
                    "what they were decoded to"
                )
            jumps = Jumps()
            for _ in jumps.watch(image_frames(images)):
                pass
            at = borders(tokenizer.model.config, tokens.frames)
            if at:
                found = jumps.seams(at)
                facts["seams"], seam = f"{found}, in mean jumps of other frames", found.mean
        text = "\n".join(f"{name}: {value}" for name, value in facts.items())
        return io.NodeOutput(
            text, tokens.budget, tokens.count, tokens.id_bytes, tokens.frames, tokens.fps, seam,
            ui=shown(tokens, text),
        )  # fmt: skip


CLIPS = ("synthetic", "real")
REAL = "a cartoon girl with sunglasses and white hair dances in front of a leaning tower"


class ExampleClip(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VFTExampleClip", "VFT Example Clip",
            description="A clip to begin with: a real one of four seconds, or a synthetic one, "
            "different for every seed. Replace it with Load Video.",
            search_aliases=["test clip", "procedural video", "videoflextok example"],
            inputs=[
                io.Int.Input("seed", default=42, min=0, max=0xFFFFFFFF,
                             tooltip="Which synthetic clip.", control_after_generate=True),
                io.Int.Input("frames", default=33, min=1, max=4096,
                             tooltip="At 8 frames per second."),
                io.Int.Input("size", default=256, min=16, max=1024, step=8,
                             tooltip="Pixels a side."),
                io.Combo.Input("clip", options=[*CLIPS], default=CLIPS[0], optional=True,
                               tooltip="real: a clip that no included model was trained on; "
                               "beyond its four seconds it plays backwards and forwards."),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The frames."),
                io.Video.Output(display_name="video", tooltip="The same as a video."),
                io.String.Output(display_name="caption",
                                 tooltip="What it shows; of a synthetic clip, in the default "
                                 "prior's words."),
            ],
        )  # fmt: skip

    @classmethod
    @checked
    def execute(
        cls, seed: int, frames: int, size: int, clip: str = CLIPS[0]
    ) -> io.NodeOutput:  # fmt: skip
        if frames * size**2 > CLIP_PIXELS:
            most = CLIP_PIXELS // size**2
            raise VftError(
                f"{frames} frames of {size} px are drawn at once; at {size} px take at most {most}"
            )
        if clip == "real":
            video, caption = example_clip(frames, size), REAL
        else:
            drawn = make_clip(seed, frames=frames, size=size)
            video, caption = drawn.video, drawn.caption
        images = store(video, frames)
        return io.NodeOutput(images, make_video(images, 8), caption)
