"""Folders of clips as people have them: broken files, companions, two of one name."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from vft_lib.errors import VftError
from vft_lib.footage import real
from vft_lib.footage.packing import Recipe, write_pack
from vft_lib.footage.real import RealClips
from vft_lib.video.video_out import write_video
from vft_lib.world.world import make_clip


def clip(path: Path, seed: int, frames: int = 6) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, make_clip(seed, frames=frames, size=32).video, 8)
    return path


def test_what_is_no_clip_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "clips"
    clip(folder / "good.mp4", 0)
    clip(folder / "short.mp4", 0, frames=3)
    whole = clip(folder / "cut.mp4", 1).read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 10])
    (folder / "empty.mp4").touch()
    (folder / "text.webp").write_text("no picture")
    (folder / "._good.mp4").write_bytes(b"\0\5\x16\7 Mac OS X")  # beside each file, by macOS
    (folder / ".trash").mkdir()
    clip(folder / ".trash" / "gone.mp4", 2)
    (folder / "folder.mp4").mkdir()
    found = RealClips.load(folder, 32, tmp_path / "real.npz")
    assert list(found.clips) == ["good.mp4"]
    said = capsys.readouterr().err
    for name in ("cut.mp4", "empty.mp4", "text.webp"):
        (line,) = (row for row in said.splitlines() if "note" in row and name in row)
        assert "left out" in line
    assert "._good" not in said
    assert "folder.mp4" not in said


def test_a_folder_without_a_clip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    for folder in (tmp_path, tmp_path / "not there"):
        with pytest.raises(VftError, match="holds no clip of 5 frames or more; name another"):
            RealClips.load(folder, 32, tmp_path / "real.npz")
    assert not (tmp_path / "real.npz").exists()


def test_clips_of_one_name_stay_two(tmp_path: Path) -> None:
    clip(tmp_path / "a/clip.mp4", 0)
    clip(tmp_path / "b/clip.mp4", 1)
    clip(tmp_path / "c.mp4", 2).rename(tmp_path / "b/clip.mov")
    found = RealClips.load(tmp_path, 32, tmp_path / "real.npz")
    assert list(found.clips) == ["a/clip.mp4", "b/clip.mov", "b/clip.mp4"]
    pictures = list(found.clips.values())
    assert not np.array_equal(pictures[0], pictures[2])
    assert {len(side.clips) for side in found.split()} == {0, 3}, "alike in name, on one side"


@pytest.mark.parametrize("name", ["file", "args", "facts", "clip0", "a/b"])
def test_a_clip_may_have_any_name(tmp_path: Path, name: str) -> None:
    """`file` is the name of an argument of np.savez."""
    clip(tmp_path / f"{name}.mp4", 0)
    for _ in range(2):
        found = RealClips.load(tmp_path, 32, tmp_path / "real.npz")
        assert list(found.clips) == [f"{name}.mp4"]
        assert found.clips[f"{name}.mp4"].shape == (6, 40, 40, 3)


def test_the_cache_is_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "real.npz"
    first, second = clip(tmp_path / "one/x.mp4", 0), clip(tmp_path / "two/x.mp4", 1)
    one = RealClips.load(first.parent, 32, cache).clips["x.mp4"]
    two = RealClips.load(second.parent, 32, cache).clips["x.mp4"]
    assert not np.array_equal(one, two), "another folder"
    clip(second.parent / "y.mp4", 2)
    assert list(RealClips.load(second.parent, 32, cache).clips) == ["x.mp4", "y.mp4"]
    second.write_bytes(first.read_bytes())
    os.utime(second, ns=(1, 1))
    assert np.array_equal(RealClips.load(second.parent, 32, cache).clips["x.mp4"], one)
    assert RealClips.load(second.parent, 16, cache).clips["x.mp4"].shape[1] == 20, "another size"
    cache.write_bytes(b"PK\3\4 cut off")
    assert len(RealClips.load(second.parent, 32, cache).clips) == 2
    np.savez(cache, old=one)  # as an earlier version wrote it
    assert len(RealClips.load(second.parent, 32, cache).clips) == 2

    monkeypatch.setattr(real, "read_frames", None)
    assert len(RealClips.load(second.parent, 32, cache).clips) == 2, "decoded once"


def test_a_cache_of_the_package_does_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run folder is carried to a machine that has a GPU and little else."""
    clip(tmp_path / "package/x.mp4", 0)
    cache = tmp_path / "real.npz"
    monkeypatch.setattr(real, "_package", lambda: [str(tmp_path / "package")])
    assert len(RealClips.load(None, 32, cache).clips) == 1
    monkeypatch.setattr(real, "_package", list)
    assert len(RealClips.load(None, 32, cache).clips) == 1
    RealClips.load(tmp_path / "package", 32, cache)
    with pytest.raises(VftError, match="is not installed"):
        RealClips.load(None, 32, cache)


def test_a_pack_passes_over_companions_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip(tmp_path / "clips/good.mp4", 0)
    (tmp_path / "clips/._good.mp4").write_bytes(b"\0\5\x16\7")
    info = write_pack(tmp_path / "pack.zip", Recipe(size=16), [tmp_path / "clips"], 1)
    assert [p.name for p in info.pictures] == ["clips/good"]
    assert "._good" not in capsys.readouterr().err
