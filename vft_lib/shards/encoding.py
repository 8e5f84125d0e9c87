"""What there is to know of one chunk: its ids, and what the encoder had before them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..tokenizer.parts import finite, in_parts
from ..tokenizer.tokenizer import Tokenizer


@torch.inference_mode()
def read_chunks(
    tokenizer: Tokenizer, video: Tensor, extras: Sequence[str] = ()
) -> dict[str, Tensor]:
    """One whole chunk of each of B clips, `[B,3,T,H,W]` float in [-1,1], T the tokenizer's -> on
    the CPU, "ids" int64 `[B,t,K]`, the same as `Tokenizer.encode` gives, and float32, of the
    `extras` that are asked for: "codes" `[B,t,K,6]` before quantization, "hidden" `[B,t,K,d]`, what
    the registers hold when the encoder is done, "latents" `[B,C,t,h,w]` of the autoencoder.

    Raises VftError where numbers come out as NaN or infinity in float32 too."""
    shapes: dict[str, torch.Size] = {}

    def work(begin: int, end: int, tight: bool) -> Tensor:
        latents, features = tokenizer.seen(video[begin:end], tight)
        hidden = tokenizer.encoder.hidden(latents, features)
        codes = tokenizer.encoder.to_codes(hidden).float()
        found = {"codes": codes, "hidden": hidden, "latents": latents}
        found = {"ids": tokenizer.fsq.ids(codes)} | {name: found[name] for name in extras}
        shapes.update({name: x.shape[1:] for name, x in found.items()})
        # One tensor, whose parts are counted and checked together; ids are exact in float32.
        return torch.cat([codes.flatten(1), *(x.float().flatten(1) for x in found.values())], 1)

    checked = finite(tokenizer, tokenizer.dtype, "an encoded chunk", work)
    at_once = 1 if tokenizer.device.type == "cpu" else len(video)  # as Tokenizer.encode does
    flat = in_parts(checked, len(video), at_once).cpu()
    sizes = [shape.numel() for shape in shapes.values()]
    parts = flat[:, flat.shape[1] - sum(sizes) :].split(sizes, 1)
    read = {name: x.unflatten(1, shapes[name]) for name, x in zip(shapes, parts)}
    return read | {"ids": read["ids"].long()}
