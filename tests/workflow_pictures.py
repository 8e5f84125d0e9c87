"""`python tests/workflow_pictures.py` draws the pictures of workflows 01, 02 and 05 anew, from what
the default models make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vft_lib import load_prior, load_tokenizer, world
from vft_lib.frames import to_frames, to_tensor
from vft_lib.tokens import Tokens

WORKFLOWS = Path(__file__).parents[1] / "workflows"
SIZE, MARGIN, PAPER = (512, 288), 14, (26, 27, 31)


def picture(name: str, title: str, said: str, rows: list[tuple[str, Tensor]], side: int) -> None:
    """A title, a line below it, and frames of each clip `[3,T,H,W]` with its own line above."""
    image = Image.new("RGB", SIZE, PAPER)
    draw = ImageDraw.Draw(image)

    def write(text: str, y: int, size: int, grey: int) -> None:
        draw.text((MARGIN, y), text, (grey,) * 3, ImageFont.load_default(size))

    write(title, 9, 22, 240)
    write(said, 37, 13, 162)
    count = (SIZE[0] - MARGIN) // (side + 6)
    left = (SIZE[0] - count * (side + 6) + 6) // 2
    y = 58
    for line, clip in rows:
        if line:
            write(line, y, 12, 230)
            y += 17
        frames = list(to_frames(clip.cpu()))
        for i, at in enumerate(np.linspace(0, len(frames) - 1, count).round().astype(int)):
            small = Image.fromarray(frames[at]).resize((side, side), Image.Resampling.BICUBIC)
            image.paste(small, (left + i * (side + 6), y))
        y += side + 6
    image.save(WORKFLOWS / f"{name}.jpg", quality=88)


def main() -> None:
    tokenizer, prior = load_tokenizer("default"), load_prior("default")

    def shown(tokens: Tokens) -> Tensor:
        return tokenizer.decode(tokens)[0]

    video = to_tensor(list(world.make_clip(42, frames=33, size=64).video))
    tokens = tokenizer.encode(video, fps=8.0)
    first = tokens.truncate(8)
    picture(
        "01_reconstruct_at_any_budget", "One clip, any number of tokens",
        "64 px default tokenizer; 4 s at 8 frames per second",
        [("original", video),
         (f"from 8 of 16 tokens per latent frame: {2 * first.ids.numel()} bytes", shown(first))],
        92,
    )  # fmt: skip
    caption = "a red ball bounces to the right"
    written = shown(prior.generate(caption, budget=8, seed=0))
    half = written.shape[1] // 2
    picture(
        "02_text_to_video", "From words to a clip", f"“{caption}”",
        [("", written[:, :half]), ("", written[:, half:])], 108,
    )  # fmt: skip
    few = tokenizer.encode(video[:, :17], fps=8.0).truncate(2)
    picture(
        "05_refine_details", "Detail that was never sent",
        "the prior goes on from 2 tokens per latent frame to 16",
        [(f"2 tokens per latent frame: {2 * few.ids.numel()} bytes", shown(few)),
         ("the same 2, and 14 that the prior wrote", shown(prior.refine(few, 16, seed=0)))],
        92,
    )  # fmt: skip


if __name__ == "__main__":
    main()
