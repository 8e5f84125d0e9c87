"""The pack's own socket types, schemas that older ComfyUI versions understand, and the check of
what comes in."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..vft_lib import Tokens, VftError

CATEGORY = "VideoFlexTok"

TokenizerType = io.Custom("VFT_TOKENIZER")
PriorType = io.Custom("VFT_PRIOR")
TokensType = io.Custom("VFT_TOKENS")


def advanced(widget: io.Input, **more: Any) -> io.Input:
    """`widget` among the advanced ones; `more` for the page to read. ComfyUI 0.8 has no keyword for
    that; in 0.3.64 widgets do not take `extra_dict` either."""
    widget.extra_dict = {"advanced": True, **more}
    return widget


def schema(node_id: str, display_name: str, **fields: Any) -> io.Schema:
    """A node's schema, without the fields that this ComfyUI does not know (`search_aliases` came
    with 0.11, `essentials_category` later)."""
    known = inspect.signature(io.Schema).parameters
    fields = {k: v for k, v in fields.items() if k in known}
    return io.Schema(node_id=node_id, display_name=display_name, category=CATEGORY, **fields)


def seed_input() -> io.Input:
    return io.Int.Input(
        "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
        tooltip="The same seed gives the same result.",
    )  # fmt: skip


# ------------------------------------------------------------------ what comes in

MAX_TEXT = 1 << 16  # characters of a text widget
_LOOKED_UP = ("file", "tokenizer", "prior")  # files: what there is changes, the nodes look

WIRES: dict[str, Callable[[Any], bool]] = {
    "VFT_TOKENS": lambda value: isinstance(value, Tokens),
    "IMAGE": lambda value: isinstance(value, Tensor),
    "VIDEO": lambda value: hasattr(value, "get_components"),
    "AUDIO": lambda value: isinstance(value, Mapping),
    "CLIP": lambda value: hasattr(value, "encode_from_tokens_scheduled"),
    "CONDITIONING": lambda value: isinstance(value, list),
}
"""Whether a value is what its socket's type promises."""


def checked(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """A node's `execute` that says in one line which input is wrong. ComfyUI checks widgets, yet
    neither what a link brings nor a type that converts; a workflow may come from anyone."""

    inputs: list[Any] = []  # of the node, once it has run

    @functools.wraps(execute)
    def run(cls: type[io.ComfyNode], **values: Any) -> io.NodeOutput:
        if not inputs:
            inputs.extend(cls.define_schema().inputs)
        for unknown in values.keys() - {i.id for i in inputs}:
            raise VftError(f"there is no input {unknown!r}")
        for i in inputs:
            if values.get(i.id) is not None:
                _check(i, values[i.id])
            elif not i.optional:
                raise VftError(f"{i.id} is missing: connect it, or give it a value")
        return execute(cls, **values)

    return run


def _check(i: Any, value: Any) -> None:
    kind = i.get_io_type()
    if kind in WIRES:
        if not WIRES[kind](value):
            raise VftError(f"{i.id} got {type(value).__name__}; connect {kind}")
    elif kind == "BOOLEAN":
        if not isinstance(value, bool):
            raise VftError(f"{i.id} is {_shown(value)}; give true or false")
    elif kind in ("INT", "FLOAT"):
        whole = kind == "INT"
        number = isinstance(value, numbers.Integral if whole else numbers.Real)
        if not number or isinstance(value, bool) or not i.min <= value <= i.max:
            raise VftError(
                f"{i.id} is {_shown(value)}; give a {'whole ' * whole}number, {i.min} to {i.max}"
            )
    elif not isinstance(value, str) or len(value) > MAX_TEXT:
        raise VftError(f"{i.id} is {_shown(value)}; give a text of at most {MAX_TEXT} characters")
    elif kind == "COMBO" and i.id not in _LOOKED_UP and value not in i.options:
        raise VftError(f"{i.id} is {_shown(value)}; choose one of {', '.join(i.options)}")


def _shown(value: Any) -> str:
    if isinstance(value, int) and abs(value) > 1 << 64:
        return f"a number of about {math.log10(abs(value)):.0f} digits"
    if isinstance(value, str | numbers.Number | None):
        return f"{value[:60] if isinstance(value, str) else value!r}"
    return f"a {type(value).__name__}"
