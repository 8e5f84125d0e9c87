"""`vft train pack`, and what reads the file: all of it from clips drawn here, and hostile files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz.mutate import VALUES
from PIL import Image

import vft_lib.footage.pack
import vft_lib.footage.packing
from vft_lib.cli.vft import main
from vft_lib.errors import VftError
from vft_lib.footage.pack import INDEX, PackError, load_pack, read_index
from vft_lib.footage.packing import Recipe, write_pack
from vft_lib.video.frames import fit_frame
from vft_lib.world.world import make_clip

ROOT = Path(__file__).resolve().parents[2]
SMALL = Recipe(size=32, fps=8, quality=80)


def save(path: Path, frames: np.ndarray) -> Path:
    """An animated WebP at 16 frames a second without loss (a PNG if there is one frame)."""
    first, *more = [Image.fromarray(frame) for frame in frames]
    if more:
        first.save(path, save_all=True, append_images=more, duration=62, lossless=True)
    else:
        first.save(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight clips, twins, copies, a wide clip, two stills, a logo, a slide show and so on."""
    folder = tmp_path_factory.mktemp("pictures") / "pictures"
    folder.mkdir()
    clips = [make_clip(seed, frames=20, size=64).video for seed in range(8)]
    for i, clip in enumerate(clips):
        save(folder / f"clip{i}-1.webp", clip)
    save(folder / "clip0-2.webp", 255 - clips[0])
    (folder / "copy-1.webp").write_bytes((folder / "clip1-1.webp").read_bytes())
    save(folder / "noisy-1.webp", clips[7] ^ 1)
    for i in (1, 2, 5):  # the same scenes under other names
        save(folder / f"darker{i}-1.webp", (clips[i] * 0.8).astype(np.uint8))
    save(folder / "wide-1.webp", np.concatenate([clips[3], clips[4], clips[5]], 2))
    noise = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3), np.uint8)
    for i, small in enumerate(noise):
        save(folder / f"still{i}-1.png", small.repeat(12, 0).repeat(10, 1)[None])
    save(folder / "logo.png", np.full((1, 64, 64, 3), 200, np.uint8))
    save(folder / "short-1.webp", clips[6][:4])
    save(folder / "slides-1.webp", clips[6][[0, 0, 0, 0, 0, 0, 9, 9, 9, 9, 9, 9, 19, 19, 19, 19]])
    (folder / "damaged-1.webp").write_bytes(b"RIFF no picture")
    return folder


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "pack.zip"
    write_pack(out, SMALL, [folder], processes=1)
    return out


def test_pictures_come_back(packed: Path, folder: Path) -> None:
    pack = load_pack(packed, processes=1)
    assert not packed.with_name("pack.zip.parts").exists()
    names = [*(f"clip{i}-1" for i in range(8)), "clip0-2", "wide-1"]
    names += [f"darker{i}-1" for i in (1, 2, 5)]
    assert pack.clips.keys() == {f"pictures/{n}" for n in names}
    assert pack.stills.keys() == {"pictures/still0-1", "pictures/still1-1"}
    assert {a.shape for a in pack.clips.values()} == {(10, 36, 36, 3), (10, 36, 64, 3)}
    assert {a.shape for a in pack.stills.values()} == {(48, 40, 3)}
    assert all(a.dtype == np.uint8 for a in (*pack.clips.values(), *pack.stills.values()))
    # Frame i is what is on screen at i / 8 s: every other one of 16 a second.
    whole = make_clip(3, frames=20, size=64).video
    source = np.stack([fit_frame(f, (36, 36), "crop") for f in whole[::2]]).astype(float)
    psnr = 10 * np.log10(255**2 / ((pack.clips["pictures/clip3-1"] - source) ** 2).mean())
    assert psnr > 36
    assert pack.info.packages == {"pictures": {"version": "", "licence": "not stated"}}
    assert (pack.info.size, pack.info.fps) == (32, 8.0)


def test_scenes_stay_on_one_side_and_splits_are_read_apart(packed: Path) -> None:
    pictures = {p.name.removeprefix("pictures/"): p for p in read_index(packed).pictures}
    sides = {name: p.split for name, p in pictures.items()}
    assert sides["clip0-1"] == sides["clip0-2"]
    for i in (1, 2, 5):
        assert sides[f"clip{i}-1"] == sides[f"darker{i}-1"]
    single = ["clip3-1", "clip4-1", "clip6-1", "clip7-1", "clip0-1"]
    for name in single:  # as `RealClips.split` divides them
        stem = name.rsplit("-", 1)[0].encode()
        assert (sides[name] == "held") == (hashlib.sha256(stem).digest()[0] % 8 == 0)
    assert set(sides.values()) == {"train", "held"}
    train, rest = load_pack(packed, "train"), load_pack(packed, "held")
    for pack, split in ((train, "train"), (rest, "held")):
        read = {*pack.clips, *pack.stills}
        assert read == {p.name for p in pictures.values() if p.split == split}
    with pytest.raises(VftError, match="choose one of train, held"):
        load_pack(packed, "test")


def test_processes_give_the_same_pictures_and_the_same_file(
    packed: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = tmp_path / "again.zip"
    write_pack(again, SMALL, [folder], processes=2)
    assert again.read_bytes() == packed.read_bytes()
    monkeypatch.setattr(vft_lib.footage.pack, "FEW", 20)
    one, two = load_pack(packed, processes=1), load_pack(packed, processes=2)
    for name in one.clips:
        np.testing.assert_array_equal(one.clips[name], two.clips[name])
    for name in one.stills:
        np.testing.assert_array_equal(one.stills[name], two.stills[name])


def test_an_interrupted_pack_goes_on(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "pack.zip"
    pack = ["train", "pack", "--out", str(out), "--real", str(folder), "--size", "32"]
    pack += ["--processes", "1"]
    assert main([*pack, "--megabytes", "0.001"]) == 2
    assert "lower --quality" in capsys.readouterr().err
    assert not out.exists()
    monkeypatch.setattr(vft_lib.footage.packing, "_encode", None)  # all is encoded
    assert main(pack) == 0
    printed = capsys.readouterr().out
    assert "pictures : not stated" in printed
    assert sum(int(n) for n in re.findall(r"of (\d+) frames", printed)) == 13 * 10
    assert [p.name for p in tmp_path.iterdir()] == ["pack.zip"]


def test_reading_needs_neither_torch_nor_av(packed: Path) -> None:
    code = (
        "import sys; from vft_lib.footage.pack import load_pack; "
        f"print(len(load_pack({str(packed)!r}).clips), {{'torch', 'av'}} & set(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout == "13 set()\n"


def changed(packed: Path, out: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The pack with another index."""
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(out, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename == INDEX:
                index = json.loads(data)
                change(index)
                data = json.dumps(index).encode()
            target.writestr(entry.filename, data)
    return out


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda i: i.update(format="zip"), "format"),
        (lambda i: i.update(version=2), "version 2"),
        (lambda i: i.update(size=1 << 20), "size or fps"),
        (lambda i: i.update(fps=0), "size or fps"),
        (lambda i: i.update(pictures=[]), "no pictures"),
        (lambda i: i.update(pictures=i["pictures"] * 2000), "too large"),
        (lambda i: i.update(packages={"pictures": {"licence": "\x1b[2J"}}), "packages"),
        (lambda i: i["pictures"][0].update(frames=1 << 40), "frames"),
        (lambda i: i["pictures"][0].update(frames=9), "cannot be read"),
        (lambda i: i["pictures"][0].update(height=True), "height"),
        (lambda i: i["pictures"][0].update(width=-4), "width"),
        (lambda i: i["pictures"][0].update(kind="still"), "10 frames"),
        (lambda i: i["pictures"][0].update(split="test"), "unknown"),
        (lambda i: i["pictures"][0].update(package="others"), "unknown"),
        (lambda i: i["pictures"][0].update(name="\x1b[2J"), "name"),
        (lambda i: i["pictures"][0].update(name=i["pictures"][1]["name"]), "same name"),
        (lambda i: i["pictures"][0].update(file="/etc/passwd"), "lacks"),
        (lambda i: i["pictures"][0].update(fps="8"), "fps"),
        (lambda i: i["pictures"][0].pop("fps"), "other fields"),
    ],
)
def test_a_strangers_index_is_refused(
    packed: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    with pytest.raises(PackError, match=reason):
        load_pack(changed(packed, tmp_path / "pack.zip", change))


def test_whatever_stands_in_an_index_it_is_read_or_refused(packed: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        index = json.loads(archive.read(INDEX))
        names = [e.filename for e in archive.infolist() if e.filename != INDEX]
    index["pictures"] = index["pictures"][:2]
    first, path, count = index["pictures"][0], tmp_path / "pack.zip", 0
    places: list[tuple[Any, Any]] = [(index, k) for k in index] + [(first, k) for k in first]
    places += [(index["pictures"], 0), (index["packages"], "pictures")]
    places += [(index["packages"]["pictures"], "licence")]
    for holder, key in places:
        kept = holder[key]
        for value in VALUES:
            holder[key] = value
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(INDEX, json.dumps(index))
                for name in names:
                    archive.writestr(name, b"")
            try:
                read_index(path)
            except PackError as e:
                assert str(e).isprintable() and len(str(e)) < 1100
                count += 1
        holder[key] = kept
    assert count > 1000


def test_many_large_pictures_are_refused_before_one_is_decoded(
    packed: Path, tmp_path: Path
) -> None:
    def large(index: dict[str, Any]) -> None:
        for row in index["pictures"][:9]:
            row.update(frames=1000, height=1024, width=1024)

    with pytest.raises(PackError, match="8 GiB"):
        load_pack(changed(packed, tmp_path / "pack.zip", large))


def test_damaged_files_are_refused(packed: Path, tmp_path: Path) -> None:
    data = bytearray(packed.read_bytes())
    bad = tmp_path / "bad.zip"
    for text in (b"", b"no pack", data[:-40]):
        bad.write_bytes(text)
        with pytest.raises(PackError, match="is no pack"):
            load_pack(bad)
    data[len(data) // 2] ^= 1  # in some picture
    bad.write_bytes(data)
    with pytest.raises(PackError, match="CRC"):
        load_pack(bad)
    place = data.index(b"PK\1\2")  # of the index: longer than the file
    data[place + 20 : place + 28] = 2 * (1 << 19).to_bytes(4, "little")
    bad.write_bytes(data)
    with pytest.raises(PackError, match="EOFError"):
        load_pack(bad)
    with pytest.raises(PackError, match="no such file"):
        load_pack(tmp_path / "none.zip")
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(bad, "w") as target:
        for entry in source.infolist():
            kind = zipfile.ZIP_DEFLATED if entry.filename == INDEX else zipfile.ZIP_STORED
            target.writestr(entry.filename, source.read(entry), kind)
    with pytest.raises(PackError, match="compressed"):
        load_pack(bad)


def test_what_cannot_be_packed_is_said(tmp_path: Path) -> None:
    with pytest.raises(VftError, match="no folder"):
        write_pack(tmp_path / "a.zip", SMALL, [tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(VftError, match="no picture to pack"):
        write_pack(tmp_path / "a.zip", SMALL, [tmp_path / "empty"], processes=1)
    with pytest.raises(VftError, match="give a size"):
        write_pack(tmp_path / "a.zip", Recipe(size=4), [tmp_path / "empty"])
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


def test_a_program_without_a_main_guard_reads_alone(packed: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, vft_lib.footage.pack as pack\n"
        "pack.FEW = 20\n"
        f"print(len(pack.load_pack({str(packed)!r}, processes=2).clips))\n"
    )
    run = subprocess.run(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stdout) == (0, "13\n"), run.stderr
