"""Twelve clips of different lengths with captions, one of them no clip; tokenized once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import moving_picture

from vft_lib.cli.vft import main
from vft_lib.shards.formats import Record
from vft_lib.shards.plan import Plan, Settings, commit
from vft_lib.video.video_out import write_video


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: clip00 (5 frames) to clip10 (55 frames), each with a caption; broken.mp4."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(11):
        write_video(folder / f"clip{i:02d}.mp4", moving_picture(5 + 5 * i, 40 + i, 48), 8)
        (folder / f"clip{i:02d}.txt").write_text(f"picture number {i} moves\n", encoding="utf-8")
    (folder / "broken.mp4").write_bytes(b"this is no clip")
    return folder


def tokenize(source: Path, out: Path, checkpoint: Path, *more: str) -> int:
    """The command with a tiny tokenizer, four clips a shard unless `more` says otherwise."""
    return main(
        ["tokenize", str(source), "--out", str(out), "--tokenizer", str(checkpoint), "--device",
         "cpu", "--clips-per-shard", "4", "--workers", "2", *more]
    )  # fmt: skip


def write_shards(
    folder: Path, clips: int, windows: int = 1, rows: Callable[[int], int] = lambda clip: 5,
    fingerprint: str = "made-up",
) -> Plan:  # fmt: skip
    """Shards of eight clips with made-up ids, those of `TINY` (32 px, 8 a latent frame)."""
    settings = Settings(8.0, "crop", 0, 0, False, 8, (), 32, 17, 1)
    plan = Plan("", clips, 8, "webdataset", "tiny", fingerprint, "", "float32", settings)
    plan.begin(folder, False)
    rng = np.random.default_rng(0)
    for unit in range(plan.units):
        records = [
            Record(
                clip, window, 16 * window, f"clip {clip} is coloured",
                rng.integers(64_000, size=(rows(clip), 8)).astype(np.uint16),
                {"tokenizer": "tiny", "fingerprint": fingerprint, "frames": 4 * rows(clip) - 3,
                 "fps": 8.0, "size": (32, 32), "source_size": None, "fit": "crop",
                 "source": f"{clip}.mp4"},
            )
            for clip in plan.clips_of(unit) for window in range(windows)
        ]  # fmt: skip
        commit(folder, plan, unit, records, [])
    return plan


@pytest.fixture(scope="session")
def tokens(clips: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those clips as shards: three of four clips each."""
    out = tmp_path_factory.mktemp("tokens") / "out"
    assert tokenize(clips, out, tiny_checkpoint) == 0
    return out
