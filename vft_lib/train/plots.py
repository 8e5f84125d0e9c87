"""Pictures of a training run: strips of frames and curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor


def save_strip(path: Path, clips: list[Tensor], frames: int = 6) -> None:
    """One row a clip (`[3,T,H,W]` in [-1,1]), `frames` of it evenly spaced from left to right."""
    rows = []
    for clip in clips:
        index = np.linspace(0, clip.shape[1] - 1, frames).round().astype(int)
        picture = clip[:, index].permute(2, 1, 3, 0).flatten(1, 2)  # (H, frames·W, 3)
        rows.append(((picture.float().clamp(-1, 1) + 1) * 127.5).round().byte().numpy())
    Image.fromarray(np.concatenate(rows)).save(path)
