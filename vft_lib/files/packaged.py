"""Files that come with this program: the default models, their card, the catalogue."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1]


def packaged(name: str) -> Path:
    """Where `name` lies: in `weights/` of a checkout, or in `vft_lib/weights` once installed. It
    need not exist."""
    checkout = FOLDER.parent / "weights" / name
    return checkout if checkout.exists() else FOLDER / "weights" / name
