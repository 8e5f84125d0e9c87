"""Without PyAV all works but reading and writing videos, which says what to install."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import moving_picture
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import sys
sys.modules["av"] = None  # as if it were not installed
import importlib, pkgutil
import torch
import vft_lib
NEED_AV = ("vft_lib.video.av_in", "vft_lib.video.heif_in", "vft_lib.video.pixels")
names = [m.name for m in pkgutil.walk_packages(vft_lib.__path__, "vft_lib.")]
names = [n for n in names if n not in ("vft_lib.__main__", *NEED_AV)]
assert "vft_lib.train.loop" in names and len(names) > 70, names
for name in names:
    importlib.import_module(name)
from pathlib import Path
from vft_lib.cli.vft import main
from vft_lib.video.video_in import probe
weights, clip, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
tok = vft_lib.load_tokenizer(weights, device="cpu")
video = vft_lib.read_video(clip, size=32)
out = tok.decode(tok.encode(video).truncate(4), seed=0, steps=2)
assert out.shape == video.shape == (1, 3, 9, 32, 32), (out.shape, video.shape)
assert probe(clip).frames == 9
assert main(["encode", clip, "-o", str(folder / "a.vft"), "--tokenizer", weights]) == 0
pack = folder / "pack.zip"
real = ["--real", str(Path(clip).parent), "--size", "32", "--processes", "1"]
assert main(["train", "pack", "--out", str(pack), *real]) == 0
run = ["--out", str(folder / "run"), "--pack", str(pack)]
run += ["--preset", "tiny", "--device", "cpu", "--steps", "2"]
for step in ("vae", "tokenizer", "prior"):
    assert main(["train", step, *run]) == 0
video = folder / "video.mp4"
video.write_bytes(b"\\0\\0\\0\\x18ftypisom" + bytes(64))
decode = ["decode", str(folder / "a.vft"), "-o", str(folder / "a.mp4"), "--tokenizer", weights]
for args in (["info", str(video)], ["encode", str(video), "-o", str(folder / "b.vft")], decode):
    assert main(args) == 2, args
assert sorted(p.name for p in folder.glob("*.mp4")) == ["video.mp4"]
"""


@pytest.mark.slow
def test_pictures_tensors_and_training_need_no_pyav(tmp_path: Path, tiny_checkpoint: Path) -> None:
    clip = tmp_path / "clips" / "clip.webp"
    clip.parent.mkdir()
    for file, size in ((clip, (40, 48)), (clip.with_name("other.webp"), (48, 40))):
        first, *more = [Image.fromarray(frame) for frame in moving_picture(9, *size)]
        first.save(file, save_all=True, append_images=more, duration=125, lossless=True)
    run = subprocess.run(
        [sys.executable, "-c", RUN, str(tiny_checkpoint), str(clip), str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("which needs PyAV: pip install av") == 3, run.stderr
    assert "Traceback" not in run.stderr
