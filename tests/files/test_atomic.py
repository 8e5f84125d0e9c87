"""Files appear whole or not at all: kills, full disks, read-only places, two processes at once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import moving_picture

from vft_lib.clips.stream import encode_file
from vft_lib.errors import VftError
from vft_lib.files.atomic import alone, check_place, check_space, replacing, temporary, write_bytes
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.tokens import Tokens
from vft_lib.video.video_in import read_frames
from vft_lib.video.video_out import write_video

linux = pytest.mark.skipif(sys.platform != "linux", reason="mounts and /proc")
HELD = """
import sys
from vft_lib.files.atomic import replacing
with replacing(sys.argv[1]) as tmp:
    tmp.write_text(sys.argv[2])
    print("writing", flush=True)
    sys.stdin.readline()
"""


def python(*args: Any, **options: Any) -> subprocess.Popen[str]:
    root = str(Path(__file__).resolve().parents[2])
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    return subprocess.Popen(
        [sys.executable, *map(str, args)], env=env, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    file = tmp_path / "a[1].vft"
    with python("-c", HELD, file, "half") as run:
        assert run.stdout and run.stdout.readline() == "writing\n"
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert len(names(tmp_path)) == 1 and not file.exists()
    write_bytes(file, b"whole")
    assert names(tmp_path) == ["a[1].vft"]


def test_what_a_living_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.vft"
    with python("-c", HELD, file, "theirs") as run:
        assert run.stdout and run.stdout.readline() == "writing\n"
        write_bytes(file, b"ours")
        assert len(names(tmp_path)) == 2
        assert run.communicate("\n", timeout=60)[1] == ""
    assert file.read_text() == "theirs", "the last one that is complete"
    assert names(tmp_path) == ["a.vft"]


def test_threads_write_one_file_at_once(tmp_path: Path) -> None:
    """Temporaries were named after the process: two threads shared one."""
    file, failed = tmp_path / "a", []

    def write(letter: bytes) -> None:
        try:
            for _ in range(50):
                write_bytes(file, letter * 10_000)
        except Exception as e:
            failed.append(e)

    threads = [threading.Thread(target=write, args=(bytes([65 + i]),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(set(file.read_bytes())) == 1 and names(tmp_path) == ["a"]


def test_a_name_as_long_as_names_can_be(tmp_path: Path) -> None:
    for name in ("x" * 251 + ".vft", "ä" * 125 + ".vft"):
        write_bytes(tmp_path / name, b"1")
        assert (tmp_path / name).read_bytes() == b"1"
        assert len(os.fsencode(temporary(tmp_path / name).name)) < 255


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """The folder may be removed by the one who has it: the next makes it anew."""
    folder, order = tmp_path / "work", []
    first, second = threading.Event(), threading.Event()

    def wait() -> None:
        order.append("waits")
        second.set()

    def other() -> None:
        first.wait()
        with alone(folder, wait):
            order.append("second")
            assert folder.is_dir()

    thread = threading.Thread(target=other)
    thread.start()
    with alone(folder, wait):
        first.set()
        second.wait(60)
        order.append("first")
        folder.rmdir()
    thread.join()
    assert order == ["waits", "first", "second"]


# ---------------------------------------------------------------------- before the work


def test_no_room_is_told_in_one_line(tmp_path: Path) -> None:
    check_space(tmp_path / "a" / "b", 1, "it")
    with pytest.raises(VftError, match=r"it needs 1e\+09 GB of free space; .* has .*: make room"):
        check_space(tmp_path, 10**18, "it")


PLACE = """
import sys
from vft_lib.files.atomic import check_place
try: check_place(sys.argv[1])
except ValueError as e: print(e)
"""


def as_anyone(script: str, *args: Any) -> str:
    """What Python code prints for which permissions count, as they do not for root."""
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.getuid() == 0 else []
    root = str(Path(__file__).resolve().parents[2])
    if drop and (not shutil.which("setpriv") or subprocess.run([*drop, "true"]).returncode):
        pytest.skip("root cannot give up its rights here")
    return subprocess.run(
        [*drop, sys.executable, "-c", script, *map(str, args)], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": root}, check=True,
    ).stdout  # fmt: skip


@linux
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    said = as_anyone(PLACE, tmp_path / "a.mp4")
    tmp_path.chmod(0o755)
    assert said == f"cannot write {tmp_path}/a.mp4: Permission denied\n"


@linux
def test_a_file_that_is_read_only_stays(tmp_path: Path) -> None:
    """To replace it takes no permission on the file itself: it was lost without a word."""
    file = tmp_path / "a.mp4"
    file.write_text("precious")
    file.chmod(0o444)
    assert as_anyone(PLACE, file) == f"cannot write {file}: it is there and read-only\n"
    assert names(tmp_path) == ["a.mp4"]


# ---------------------------------------------------------------------- real file systems


def mounted(mount: str, folder: Path, *command: Any) -> subprocess.CompletedProcess[str]:
    """A command in a mount namespace of its own, in which `mount` has been done for `folder`."""
    folder.mkdir(exist_ok=True)
    root = str(Path(__file__).resolve().parents[2])
    line = f'{mount} || exit 77; shift; exec "$@"'
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", line, "sh", str(folder), *map(str, command)],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": root}, check=False,
    )  # fmt: skip


FULL = 'mount -t tmpfs -o size=1m none "$1"'
FILL = 'dd if=/dev/zero of="$1"/other bs=1k 2>/dev/null; true'
READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1"'


def skip_unless_mounted(run: subprocess.CompletedProcess[str]) -> None:
    if run.returncode == 77 or "unshare: " in run.stderr:
        pytest.skip(f"mounting is not permitted here: {run.stderr.strip()[:80]}")


def vft(mount: str, folder: Path, *args: Any, then: str = "true") -> tuple[str, str]:
    """The one line of a `vft` that must fail there, and what `then` printed after it."""
    line = f'"{sys.executable}" -m vft_lib "$@"; code=$?; {then}; exit $code'
    run = mounted(mount, folder, "sh", "-c", line, "sh", *args)
    skip_unless_mounted(run)
    assert run.returncode == 2, run.stderr
    said = [line for line in run.stderr.splitlines() if line.startswith("vft: error")]
    assert len(said) == 1 and "Traceback" not in run.stderr, run.stderr
    return said[0], run.stdout


@pytest.fixture
def long_tokens(tiny_tokenizer: Tokenizer, tmp_path: Path) -> Path:
    write_video(tmp_path / "clip.mp4", moving_picture(65, 32, 32), 8)
    encode_file(tiny_tokenizer, tmp_path / "clip.mp4").save(tmp_path / "t.vft")
    (tmp_path / "clip.mp4").unlink()
    return tmp_path / "t.vft"


@linux
@pytest.mark.slow
def test_a_read_only_folder_is_named_before_the_work(long_tokens: Path, tiny_checkpoint: Path,
                                                     tmp_path: Path) -> None:  # fmt: skip
    out = tmp_path / "out"
    line, _ = vft(READ_ONLY, out, "decode", long_tokens, "-o", out / "a.mp4", "--tokenizer",
                  tiny_checkpoint)  # fmt: skip
    assert line == f"vft: error: cannot write {out}/a.mp4: Read-only file system"
    for command in (["encode", tmp_path / "absent.mp4", "-o", out / "a.vft"],
                    ["convert", tiny_checkpoint.parent, out / "m.safetensors"],
                    ["truncate", long_tokens, "-k", 1, "-o", out / "a.vft"]):  # fmt: skip
        line, _ = vft(READ_ONLY, out, *command)
        assert "Read-only file system" in line or "is a file of ours" in line


@linux
@pytest.mark.slow
def test_a_full_disk(long_tokens: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Too small for the clip: told before. Full at the last moment: one line, nothing left."""
    out, model = tmp_path / "out", ["--tokenizer", tiny_checkpoint, "--steps", "1"]
    big = Tokens.load(long_tokens)
    many = big.ids.repeat(1, 60, 1)[:, : 5 + 4 * 250]
    Tokens(many, big.tokenizer, big.fingerprint, 17 + 16 * 250, 8, (32, 32)).save(tmp_path / "m")
    line, left = vft(FULL, out, "decode", tmp_path / "m", "-o", out / "a.mp4", *model,
                     then=f"ls -A {out}")  # fmt: skip
    assert "of free space" in line and "make room" in line and left == ""
    line, left = vft(f"{FULL}; {FILL}", out, "truncate", long_tokens, "-k", 1, "-o", out / "a.vft",
                     then=f"ls -A {out}")  # fmt: skip
    assert line == f"vft: error: cannot write {out}/a.vft: No space left on device"
    assert left == "other\n"


VIDEO = """
import sys
import numpy as np
from vft_lib.video.video_out import write_video
frames = np.random.default_rng(0).integers(0, 256, (90, 128, 128, 3), np.uint8)
try: write_video(sys.argv[1], frames, 8)
except ValueError as e: print(e)
"""


@linux
@pytest.mark.slow
def test_a_disk_that_gets_full_while_a_clip_is_written(tmp_path: Path) -> None:
    line = f'"{sys.executable}" "$@"; ls -A "$3"/..'
    run = mounted(FULL, tmp_path / "out", "sh", "-c", line, "sh",
                  "-c", VIDEO, tmp_path / "out" / "a.mp4")  # fmt: skip
    skip_unless_mounted(run)
    assert "a.mp4 cannot be written (No space left on device)" in run.stdout, run.stderr
    assert "a.mp4" not in run.stdout.splitlines() and ".tmp" not in run.stdout


# ---------------------------------------------------------------------- two processes


def both(commands: Sequence[Sequence[Any]]) -> list[str]:
    runs = [python("-m", "vft_lib", *c) for c in commands]
    said = []
    for run in runs:
        _, err = run.communicate(timeout=300)
        assert run.returncode == 0, err
        said.append(err)
    return said


@pytest.mark.slow
def test_two_processes_write_one_file(long_tokens: Path, tiny_checkpoint: Path,
                                      tmp_path: Path) -> None:  # fmt: skip
    """Decoding takes turns, as both keep chunks; of two token files the last one stays."""
    model = ["--tokenizer", tiny_checkpoint, "--device", "cpu"]
    out = tmp_path / "out"
    out.mkdir()
    decode = ["decode", long_tokens, "-o", out / "a.mp4", *model, "--steps", 20]
    both([decode, decode])
    assert sum(1 for _ in read_frames(out / "a.mp4")) == 65
    both([["truncate", long_tokens, "-k", k, "-o", out / "a.vft"] for k in (2, 3)])
    assert Tokens.load(out / "a.vft").budget in (2, 3)
    assert names(out) == ["a.mp4", "a.vft"]


@pytest.mark.slow
def test_two_demos_in_one_folder(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = ["--tokenizer", tiny_checkpoint, "--device", "cpu", "--steps", 1]
    write_video(tmp_path / "a.mp4", moving_picture(33, 32, 32), 8)
    write_video(tmp_path / "b.mp4", moving_picture(17, 32, 32), 8)
    out = tmp_path / "out"
    said = both([["demo", tmp_path / f"{n}.mp4", "--out", out, "--budgets", 1, 8, *model]
                 for n in "ab"])  # fmt: skip
    assert sum("another demo is writing" in text for text in said) == 1
    lengths = {sum(1 for _ in read_frames(f)) for f in out.glob("*.mp4")}
    assert len(lengths) == 1, "the files of one clip, not of two"
    assert not [n for n in names(out) if n.startswith(".")]


@pytest.mark.slow
def test_two_trainings_in_one_folder(tmp_path: Path) -> None:
    train = ["train", "vae", "--preset", "tiny", "--no-real", "--out", tmp_path / "run"]
    said = both([train, train])
    assert sum("another process trains" in text for text in said) == 1
    assert (tmp_path / "run" / "vae.safetensors").exists()


def test_check_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    check_place(tmp_path / "a")
    check_place(tmp_path / "b")
    with pytest.raises(VftError, match="existing folder"):
        check_place(tmp_path / "no" / "b")
    with pytest.raises(VftError, match="cannot write"), replacing(tmp_path / "b"):
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


def test_safetensors_own_temporaries_are_not_made() -> None:
    """Its save_file writes to a file of another name first, which a kill leaves behind for good:
    write_safetensors and write_bytes do without."""
    library = Path(__file__).resolve().parents[2] / "vft_lib"
    assert not [f.name for f in library.rglob("*.py") if "save_file(" in f.read_text("utf-8")]
