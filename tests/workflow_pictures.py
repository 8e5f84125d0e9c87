"""`python tests/workflow_pictures.py` draws the pictures of workflows 01 to 07 and 10 anew, from
what the default models make, and that of 11, whose published models have to be downloaded: the clip
that goes in. (08 and 09 were drawn the same way.)"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vft_lib import load_prior, load_tokenizer
from vft_lib.clips.adaptive import truncate_adaptive
from vft_lib.measure.demo import example_clip
from vft_lib.prior.prior import Prior
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.tokens import Tokens
from vft_lib.video.frames import to_frames, to_tensor
from vft_lib.world import world

ROOT = Path(__file__).parents[1]
WORKFLOWS = ROOT / "workflows"
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


def clip(seed: int, frames: int) -> Tensor:
    return to_tensor(list(world.make_clip(seed, frames=frames, size=128).video))


def real_clip(frames: int) -> Tensor:
    return to_tensor(example_clip(frames, 128))


def parts(video: Tensor, count: int) -> list[tuple[str, Tensor]]:
    """One after the other, each a row without a line."""
    return [("", part) for part in video.tensor_split(count, dim=1)]


def published() -> None:
    """Workflow 11, of which only the clip is here."""
    video = to_tensor(list(world.make_clip(42, frames=33, size=128).video))
    picture(
        "11_semantok_encode", "Encoding from image features",
        "k600-semantok reads what DINOv2 sees: downloads of about 1.7 and 1.2 GB",
        parts(video, 2), 108,
    )  # fmt: skip


def adaptive(tokenizer: Tokenizer, prior: Prior) -> None:
    """Workflow 10: ten seconds that move, the last picture for ten more, and the budgets below."""
    moving = real_clip(81)
    video = torch.cat([moving, moving[:, -1:].expand(-1, 80, -1, -1)], 1)
    kept = truncate_adaptive(prior, tokenizer.encode(video, fps=8.0), id_bytes=2700)
    half = len(kept.rows) // 2
    each = [sum(rows) / len(rows) for rows in (kept.rows[:half], kept.rows[half:])]
    made = tokenizer.decode(kept)[0]
    bars = torch.full((3, 161, 64, 64), -0.8)
    for i in range(161):
        high = 60 * kept.rows[min(i // 4, len(kept.rows) - 1)] // kept.budget
        bars[:, i, 64 - high :, 8:56] = torch.tensor([-0.38, 0.68, 0.49])[:, None, None]
    picture(
        "10_long_clip_adaptive", "More tokens where more happens",
        f"2,700 bytes: {each[0]:.1f} tokens a frame while it moves, then {each[1]:.1f}",
        [("", made), (f"tokens per latent frame over time, up to {kept.budget}", bars)], 80,
    )  # fmt: skip


def main() -> None:
    published()
    tokenizer, prior = load_tokenizer("default"), load_prior("default")
    adaptive(tokenizer, prior)

    def shown(tokens: Tokens, first: Tensor | None = None) -> Tensor:
        return tokenizer.decode(tokens, first_frame=first)[0]

    video = real_clip(33)
    tokens = tokenizer.encode(video, fps=8.0)
    some = tokens.truncate(32)
    picture(
        "01_reconstruct_at_any_budget", "One clip, any number of tokens",
        "128 px default tokenizer; 4 s at 8 frames per second",
        [("original", video),
         (f"from 32 of 128 tokens per latent frame: {2 * some.ids.numel()} bytes", shown(some))],
        92,
    )  # fmt: skip
    caption = "a red ball bounces up and down, then moves to the right"
    picture(
        "02_text_to_video", "From words to ten seconds", f"“{caption}”",
        parts(shown(prior.generate(caption, budget=16, seed=0)), 2), 108,
    )  # fmt: skip
    long = tokenizer.encode(real_clip(161), fps=8.0)
    long = long.truncate(long.budget_within(id_bytes=2700))
    picture(
        "03_long_clip_streaming", "Twenty seconds, chunk by chunk",
        f"161 frames from {2 * long.ids.numel()} bytes of tokens, in bounded memory",
        parts(shown(long), 3), 68,
    )  # fmt: skip
    budgets = (1, 4, 16, 32, 128)
    picture(
        "04_budget_sweep", "Every budget, one below the other",
        f"the original, then {', '.join(map(str, budgets))} tokens per latent frame",
        [("", video), *(("", shown(tokens.truncate(k))) for k in budgets)], 32,
    )  # fmt: skip
    few = tokenizer.encode(clip(42, 17), fps=8.0).truncate(2)
    picture(
        "05_refine_details", "Detail that was never sent",
        "the prior goes on from 2 tokens per latent frame to 16",
        [(f"2 tokens per latent frame: {2 * few.ids.numel()} bytes", shown(few)),
         ("the same 2, and 14 that the prior wrote", shown(prior.refine(few, 16, seed=0)))],
        92,
    )  # fmt: skip
    video = clip(215, 17)
    edited = video[:, 0].clone()
    edited[:, 18:78, 10:70] = torch.tensor([0x28, 0x50, 0xFF])[:, None, None] / 127.5 - 1
    kept = tokenizer.encode(video, fps=8.0).truncate(1)
    picture(
        "06_first_frame_edit", "Edit one frame, keep the motion",
        "a blue square is painted over the first frame",
        [("as it was", shown(kept)), ("with the edit", shown(kept, edited[None]))], 92,
    )  # fmt: skip
    example = Tokens.load(ROOT / "weights/example.vft")
    picture(
        "07_share_tokens", "A clip as a file",
        f"example.vft: {2 * example.ids.numel()} bytes of tokens, 4 s of video",
        parts(shown(example), 2), 108,
    )  # fmt: skip


if __name__ == "__main__":
    main()
