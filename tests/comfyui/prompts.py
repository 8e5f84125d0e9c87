"""Prompts in ComfyUI's API format, and what their runs leave behind."""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np
from comfyui.messages import Run
from comfyui.server import ComfyUI
from PIL import Image

from vft_lib import Tokens

LIMIT = 1800  # seconds a workflow may take: minutes on a machine that works for others too
SIZE = (128, 128)  # pixels of what the default tokenizer decodes to
Prompt = dict[str, Any]


def straight_path(seed: int, frames: int = 17, budget: int = 8, steps: int = 4) -> Prompt:
    """A clip to tokens to a clip. Its nodes are called after what they do."""
    nodes = {
        "clip": ("VFTExampleClip", {"seed": seed, "frames": frames, "size": 64}),
        "model": ("VFTLoadTokenizer", {"tokenizer": "default", "dtype": "auto", "device": "auto"}),
        "encode": (
            "VFTEncode",
            {"tokenizer": ["model", 0], "video": ["clip", 1], "fps": 0.0, "fit": "crop"},
        ),
        "truncate": (
            "VFTTruncate",
            {"tokens": ["encode", 0], "by": "tokens per frame", "budget": budget, "keep_bits": 0.9},
        ),
        "tokens": (
            "VFTSaveTokens",
            {"tokens": ["truncate", 0], "filename_prefix": "ring3/clip"},
        ),
        "decode": (
            "VFTDecode",
            {
                "tokenizer": ["model", 0], "tokens": ["truncate", 0], "steps": steps,
                "guidance": 1.0, "seed": 0, "keep_bars": False, "preview": True,
            },
        ),
        "video": (
            "SaveVideo",
            {
                "video": ["decode", 1], "filename_prefix": "ring3/clip", "format": "mp4",
                "codec": "h264",
            },
        ),
    }  # fmt: skip
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def nodes_of(prompt: Prompt, kind: str) -> list[str]:
    """Ids of the nodes of one class."""
    return [name for name, node in prompt.items() if node["class_type"] == kind]


def downstream(prompt: Prompt, start: str) -> set[str]:
    """A node and all that depends on it."""
    found, grew = {start}, True
    while grew:
        users = {
            name
            for name, node in prompt.items()
            if any(isinstance(v, list) and v[0] in found for v in node["inputs"].values())
        }
        grew = not users <= found
        found |= users
    return found


def pictures(comfy: ComfyUI, file: dict[str, str]) -> np.ndarray:
    """An output picture or video, uint8 `[T,H,W,3]`."""
    content = io.BytesIO(comfy.view(file))
    if file["filename"].endswith((".mp4", ".webm")):
        with av.open(content) as video:
            return np.stack([f.to_ndarray(format="rgb24") for f in video.decode(video=0)])
    return np.asarray(Image.open(content).convert("RGB"))[None]


def saved_tokens(comfy: ComfyUI, run: Run) -> Tokens:
    """What the node called "tokens" wrote."""
    file = run.outputs["tokens"]["vft"][0]
    return Tokens.load(comfy.base / "output" / file["subfolder"] / file["filename"])
