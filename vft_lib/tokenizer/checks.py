"""What comes into a tokenizer, checked before any work: VftError says what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..config.tokenizer import TokenizerConfig
from ..errors import VftError
from ..image_features import ImageEncoder
from ..tokens import Tokens

WIDEST = 2.0  # a value of a clip: what is beyond is no overshoot of [-1,1], but another range


def check_video(c: TokenizerConfig, video: Tensor) -> None:
    """VftError unless it is `[B,3,T,H,W]` at the model's picture size, floats in about [-1,1]."""
    if not isinstance(video, Tensor):
        raise VftError(f"got {type(video).__name__}; expected a torch tensor [B,3,T,H,W] in [-1,1]")
    if video.ndim != 5 or video.shape[1] != 3 or 0 in video.shape:
        raise VftError(f"got a video of shape {list(video.shape)}; expected [B,3,T,H,W] in [-1,1]")
    if video.shape[3:] != (c.size, c.size):
        raise VftError(
            f"got {video.shape[4]}x{video.shape[3]} px; tokenizer {c.name!r} takes "
            f"{c.size}x{c.size}. read_video(..., size={c.size}) fits a clip to it"
        )
    if not video.is_floating_point():
        raise VftError(f"got dtype {video.dtype}; expected floating point in [-1,1]")
    for i, frame in enumerate(video.unbind(2)):
        low, high = (float(v) for v in frame.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise VftError(f"frame {i} holds NaN or infinity; expected values in [-1,1]")
        if low < -WIDEST or high > WIDEST:
            raise VftError(
                f"frame {i} has values from {low:.4g} to {high:.4g}; expected [-1,1]: "
                "pixels / 127.5 - 1"
            )


def given_frames(c: TokenizerConfig, frames: Tensor, batch: int) -> Tensor:
    """Frames that pin the beginning, `[B,3,H,W]` or `[B,3,T,H,W]` (B or 1 of them) ->
    `[batch,3,T,H,W]`; VftError for another number of frames or clips."""
    frames = frames[:, :, None] if frames.ndim == 4 else frames
    check_video(c, frames)
    count, span = frames.shape[2], c.encoder.patch_size[0]
    if (count - 1) % 4 or count > c.chunk_frames:
        raise VftError(f"got {count} given frames; expected 1 + 4n, at most {c.chunk_frames}")
    if len(frames) not in (1, batch):
        raise VftError(
            f"got first frames for {len(frames)} clips, tokens of {batch}; give one, or one each"
        )
    if (1 + count // 4) % span:
        raise VftError(
            f"got {count} given frames, but each token of this tokenizer spans {span} latent "
            "frames (of 4 frames each)"
        )
    return frames.expand(batch, -1, -1, -1, -1)


def check_pins(
    c: TokenizerConfig, network: ImageEncoder | None, pinned: bool, chunks: int
) -> None:  # fmt: skip
    """VftError where a chunk begins with given frames, the clip's (`pinned`) or one of the chunk
    before, whose ids are made anew from features, and there is no image network; a decoder that
    masks those ids needs none."""
    masked = "prefix_masking" in c.decoder.steps
    begins = pinned or (chunks > 1 and c.overlap > 0)
    if begins and network is None and c.encoder.reads_images and not masked:
        raise VftError(
            f"tokenizer {c.name!r} reads DINOv2 features of each frame that a chunk begins with (a "
            "first frame, or the last of the chunk before): decode with `vft decode --dino`; Flow "
            "Decode in ComfyUI decodes clips of one chunk only, without a first frame"
        )


def check_budget(c: TokenizerConfig, budget: int) -> int:
    """`budget`, or VftError if it is not 1 .. K."""
    if not 1 <= budget <= c.registers:
        raise VftError(
            f"budget {budget} is out of range: tokenizer {c.name!r} has {c.registers} tokens per "
            f"latent frame; choose 1 to {c.registers}"
        )
    return budget


def check_budgets(budgets: Sequence[int] | None, tokens: Tokens) -> Tensor:
    """The budget of each latent frame in each clip `[B,t]`, at most the clip's of `budgets`;
    VftError if one of those is beyond what the tokens hold."""
    own = torch.tensor(tokens.rows).expand(len(tokens), -1)
    if budgets is None:
        return own
    if len(budgets) != len(tokens) or not all(1 <= k <= tokens.budget for k in budgets):
        raise VftError(
            f"got budgets {list(budgets)} for {len(tokens)} clips of {tokens.budget} tokens "
            f"per latent frame; give one each, 1 to {tokens.budget}"
        )
    return own.minimum(torch.tensor(budgets)[:, None])


def check_tokens(c: TokenizerConfig, fingerprint: str, rows: int, tokens: Tokens) -> None:
    """VftError unless these are tokens of that tokenizer, `rows` latent frames of them."""
    if tokens.fingerprint != fingerprint:
        raise VftError(
            f"these tokens were made by tokenizer {tokens.tokenizer!r} ({tokens.fingerprint}), "
            f"this one is {c.name!r} ({fingerprint}): load the tokenizer they were made with"
        )
    if tokens.size != (c.size, c.size):  # of whatever size, a file could fill the memory
        raise VftError(
            f"these tokens are of {tokens.size[1]}x{tokens.size[0]} px; tokenizer {c.name!r} "
            f"makes {c.size}x{c.size}"
        )
    check_budget(c, tokens.budget)
    if tokens.ids.shape[1] != rows:
        raise VftError(
            f"{tokens.frames} frames need {rows} latent frames, these tokens have "
            f"{tokens.ids.shape[1]}"
        )
    ids = tokens.ids if tokens.budgets is None else tokens.ids[:, tokens.there]
    if int(ids.max()) >= c.vocab or int(ids.min()) < 0:
        raise VftError(f"ids go up to {int(ids.max())}; expected less than {c.vocab}")
