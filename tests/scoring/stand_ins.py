"""Networks of the interfaces that people have, small and with random weights, and clips without
loss."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vft_lib.world.world import make_clip


class I3D(nn.Module):
    """StyleGAN-V's signature. `long`: what it gives for more than 16 frames has another shape."""

    def __init__(self, long: bool = False) -> None:
        super().__init__()
        self.long = long
        self.weight = nn.Parameter(torch.randn(294, 400) / 8)

    def forward(
        self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> Tensor:
        if rescale:
            x = x / 127.5 - 1
        if resize:
            x = F.interpolate(x, [x.shape[2], 224, 224])
        assert x.shape[2] >= 10
        assert x.shape[3] == 224
        found = torch.tanh(F.adaptive_avg_pool3d(x, (2, 7, 7)).flatten(1) @ self.weight)
        if not return_features:
            found = found.softmax(1)
        if self.long and x.shape[2] > 16:
            found = found[:, :, None].expand(-1, -1, 2).flatten(1)
        return found


class ViCLIP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.video = nn.Parameter(torch.randn(147, 16) / 8)
        self.text = nn.Parameter(torch.randn(64, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.encode_video(x)

    @torch.jit.export
    def encode_video(self, x: Tensor) -> Tensor:
        assert x.shape[1:] == (8, 3, 224, 224)
        return F.adaptive_avg_pool2d(x.mean(1), (7, 7)).flatten(1) @ self.video

    @torch.jit.export
    def encode_text(self, ids: Tensor) -> Tensor:
        assert ids.shape[1] == 77
        return self.text[ids % 64].mean(1)


class Classifier(nn.Module):
    """Which colour channel is the brightest."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1:] == (3, 16, 224, 224)
        return x.mean(dim=[2, 3, 4])


def save_script(network: nn.Module, path: Path, seed: int = 0) -> str:
    """Write a TorchScript file; returns its SHA-256."""
    g = torch.Generator().manual_seed(seed)
    for p in network.parameters():
        p.data = torch.randn(p.shape, generator=g) * p.data.std()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(network.eval()).save(str(path))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def clip_tokenizer(folder: Path) -> Path:
    """CLIP's tokenizer with the letters alone."""
    folder.mkdir()
    letters = [c + end for c in "abcdefghijklmnopqrstuvwxyz," for end in ("", "</w>")]
    words = [*letters, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def write_clips(folder: Path, seeds: Sequence[int], frames: int = 17, size: int = 32) -> Path:
    """Worlds as animated pictures without loss, `clip-N.webp`, 8 frames a second."""
    folder.mkdir()
    for seed in seeds:
        write_clip(folder / f"clip-{seed:03}.webp", make_clip(seed, frames=frames, size=size).video)
    return folder


def write_clip(path: Path, clip: np.ndarray, milliseconds: int = 125) -> None:
    first, *others = (Image.fromarray(frame) for frame in clip)
    first.save(
        path, save_all=True, append_images=others, duration=milliseconds, lossless=True, quality=10,
        method=0,
    )  # fmt: skip


def read_clip(path: Path) -> np.ndarray:
    """By PIL alone: uint8 `[T,H,W,3]`."""
    with Image.open(path) as image:
        frames = []
        for i in range(getattr(image, "n_frames", 1)):
            image.seek(i)
            frames.append(np.array(image.convert("RGB")))
    return np.stack(frames)


def blurred(clip: np.ndarray, strength: int) -> np.ndarray:
    """The mean with as many neighbours to the right."""
    shifted = [np.roll(clip, i, axis=2).astype(np.float64) for i in range(strength + 1)]
    return np.mean(shifted, 0).round().astype(np.uint8)
