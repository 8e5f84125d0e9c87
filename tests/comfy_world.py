"""What the tests of the nodes share: models loaded, one clip encoded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from comfy_host import Host, VideoFromFile
from conftest import save_tiny
from PIL import Image
from prior.test_prior import OURS
from prior.test_prior import made as made_prior

from vft_lib.checkpoints.checkpoint import save_prior
from vft_lib.models.loading import load_tokenizer

__all__ = ["Made", "VideoFromFile"]


@dataclass
class Made:
    """`clip` is what Example Clip gives, 17 frames of 256 px; `tokens` are all of it."""

    host: Host
    name: str
    """What Load VFT Tokenizer lists the tokenizer as."""
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


@contextmanager
def small_models(host: Host) -> Iterator[str]:
    """A tiny tokenizer, and its prior, in the models folder for as long as this lasts: others look
    at what is there. Yields the tokenizer's name; the prior's begins with "prior-"."""
    name = "small.safetensors"
    tokenizer = load_tokenizer(save_tiny(host.models / name, name="small"), device="cpu")
    config = dataclasses.replace(OURS, name="small-prior", tokenizer="small")
    prior = made_prior(config).bind(tokenizer)
    save_prior(host.models / f"prior-{name}", prior.config, prior.state_dict(), None)
    try:
        yield name
    finally:
        (host.models / name).unlink()
        (host.models / f"prior-{name}").unlink()


def make(host: Host, name: str = "default") -> Made:
    tokenizer = host.results("VFTLoadTokenizer", tokenizer=name)[0]
    prior_name = name if name == "default" else f"prior-{name}"
    prior = host.results("VFTLoadPrior", prior=prior_name, tokenizer=tokenizer)[0]
    clip = host.results("VFTExampleClip", seed=42, frames=17, size=256)
    tokens = host.results("VFTEncode", tokenizer=tokenizer, images=clip[0])
    return Made(host, name, tokenizer, prior, clip, tokens)
