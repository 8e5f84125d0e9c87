"""The pack's own socket types, and schemas that older ComfyUI versions understand."""

from __future__ import annotations

import inspect
from typing import Any

from comfy_api.latest import io

CATEGORY = "VideoFlexTok"

TokenizerType = io.Custom("VFT_TOKENIZER")
PriorType = io.Custom("VFT_PRIOR")
TokensType = io.Custom("VFT_TOKENS")


def advanced(widget: io.Input) -> io.Input:
    """`widget` among the advanced ones. ComfyUI 0.8 has no keyword for that; in 0.3.64 widgets do
    not take `extra_dict` either."""
    widget.extra_dict = {"advanced": True}
    return widget


def schema(node_id: str, display_name: str, **fields: Any) -> io.Schema:
    """A node's schema, without the fields that this ComfyUI does not know (`search_aliases` came
    with 0.11)."""
    known = inspect.signature(io.Schema).parameters
    fields = {k: v for k, v in fields.items() if k in known}
    return io.Schema(node_id=node_id, display_name=display_name, category=CATEGORY, **fields)


def seed_input() -> io.Input:
    return io.Int.Input(
        "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
        tooltip="The same seed gives the same result.",
    )  # fmt: skip
