"""What the tests of the nodes share: models loaded, one clip encoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from comfy_host import Host, VideoFromFile
from PIL import Image

__all__ = ["Made", "VideoFromFile"]


@dataclass
class Made:
    """`clip` is what Example Clip gives, 17 frames of 256 px; `tokens` are all of it."""

    host: Host
    tokenizer: Any
    prior: Any
    clip: tuple[Any, Any, str]
    tokens: Any

    @contextmanager
    def previews(self) -> Iterator[list[Image.Image]]:
        """The pictures that nodes show meanwhile."""
        import comfy.utils

        shown: list[Image.Image] = []

        def hook(value: int, total: int, preview: Any, **_: Any) -> None:
            if preview is not None:
                assert preview[0] == "JPEG"
                shown.append(preview[1])

        before = comfy.utils.PROGRESS_BAR_HOOK
        comfy.utils.set_progress_bar_global_hook(hook)
        try:
            yield shown
        finally:
            comfy.utils.set_progress_bar_global_hook(before)


def make(host: Host, name: str = "default") -> Made:
    tokenizer = host.results("VFTLoadTokenizer", tokenizer=name)[0]
    bound = tokenizer if name == "default" else None
    prior = host.results("VFTLoadPrior", tokenizer=bound)[0]
    clip = host.results("VFTExampleClip", seed=42, frames=17, size=256)
    tokens = host.results("VFTEncode", tokenizer=tokenizer, images=clip[0])
    return Made(host, tokenizer, prior, clip, tokens)
