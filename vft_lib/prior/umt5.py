"""Captions to umT5-XXL states, for the published text priors. Needs `pip install .[umt5]`."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import VftError

MODEL = "google/umt5-xxl"
MAX_TOKENS = 128


def clean(caption: str) -> str:
    """What the priors' captions went through: ftfy, HTML unescaped twice, white space collapsed."""
    try:
        import ftfy
    except ImportError:
        raise VftError("umT5 captions need ftfy: pip install '.[umt5]'") from None
    text = html.unescape(html.unescape(ftfy.fix_text(caption)))
    return re.sub(r"\s+", " ", text).strip()


def prepare_states(states: Tensor, mask: Tensor | None, max_text_len: int) -> tuple[Tensor, Tensor]:
    """States `[S,C]` or `[B,S,C]` of any text encoder -> `[B,S',C]` float32 and mask `[B,S']`.

    Cut to `max_text_len`, rounded through float16, masked rows exactly zero, and trailing rows that
    are zero in all clips trimmed. Without a mask, a row counts when its absolute sum is above 0.
    """
    states = states[None] if states.ndim == 2 else states
    if mask is not None:
        mask = mask[None] if mask.ndim == 1 else mask
        if mask.shape != states.shape[:2]:
            raise VftError(
                f"the text mask is {list(mask.shape)}; these states need {list(states.shape[:2])}"
            )
    states = states[:, :max_text_len].half().float()
    real = states.abs().sum(-1) > 0 if mask is None else mask[:, :max_text_len].bool()
    states = states * real[..., None].to(states)
    used = real.any(0).nonzero()
    length = int(used.max()) + 1 if len(used) else 1
    return states[:, :length], real[:, :length]


class UMT5:
    """umT5-XXL's encoder through `transformers`: 11 GB, so ask for it by name or path."""

    def __init__(
        self, model: str = MODEL, *, device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:  # fmt: skip
        try:
            from transformers import AutoTokenizer, UMT5EncoderModel
        except ImportError:
            raise VftError("umT5 needs transformers: pip install '.[umt5]'") from None
        try:
            self.words: Any = AutoTokenizer.from_pretrained(model)
            network: Any = UMT5EncoderModel.from_pretrained(
                model,
                torch_dtype=dtype,
                use_safetensors=True,  # never a pickle
            )
        except OSError as e:
            raise VftError(f"umT5 {model!r} cannot be loaded: {e}") from None
        self.network = network.to(device).eval()

    @torch.inference_mode()
    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions -> states `[B,128,4096]` float32 on the CPU, padded rows zero, and the mask."""
        batch = self.words(
            [clean(c) for c in captions], padding="max_length", truncation=True,
            max_length=MAX_TOKENS, return_tensors="pt",
        )  # fmt: skip
        device = self.network.device
        states = self.network(batch.input_ids.to(device), batch.attention_mask.to(device))
        mask = batch.attention_mask.bool()
        return states.last_hidden_state.float().cpu() * mask[..., None], mask
