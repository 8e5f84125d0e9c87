"""Nothing but a download opens a connection, and the command line writes where it is told only."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import moving_picture
from offline import leaves_this_machine

from vft_lib.files.packaged import packaged
from vft_lib.video.video_out import write_png, write_video

ROOT = Path(__file__).resolve().parents[2]
OFFLINE = ROOT / "tests" / "comfyui" / "offline.sh"
PROBE = """
import socket
from offline import stay_on_this_machine
HOOK
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for reach in (
    lambda: socket.create_connection(("192.0.2.1", 443), timeout=1),
    lambda: udp.sendto(b"", ("192.0.2.1", 53)),
    lambda: udp.sendmsg([b""], [], 0, ("192.0.2.1", 53)),
    lambda: socket.getaddrinfo("example.invalid", 443),
    lambda: socket.gethostbyname("example.invalid"),
):
    try:
        reach()
    except OSError as e:
        print(repr(e))
"""
DEMO = {f"demo/{name}" for name in (
    "k001.mp4", "k002.mp4", "side_by_side.mp4", "strip.png", "rate_quality.png", "table.json",
    "tokens.vft",
)}  # fmt: skip


def run_commands(commands: list[list[Any]], cwd: Path, **env: str) -> subprocess.CompletedProcess:
    words = json.dumps([[str(word) for word in command] for command in commands])
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "MPL", "VFT_", "HF_"))}
    return subprocess.run(
        [sys.executable, str(ROOT / "tests" / "run_guarded.py")], input=words, text=True, cwd=cwd,
        capture_output=True, timeout=600, env=keep | {"PYTHONPATH": str(ROOT)} | env,
    )  # fmt: skip


@pytest.mark.slow
def test_the_commands_open_no_socket_and_write_only_what_they_were_told(tmp_path: Path) -> None:
    """In an empty folder, with a home that takes no file and a temp folder that is looked at."""
    work, given, temp = tmp_path / "work", tmp_path / "given", tmp_path / "temp"
    for folder in (work, given, temp):
        folder.mkdir()
    clip, still = given / "clip.mp4", given / "still.png"
    write_video(clip, moving_picture(17, 48, 64), 8)
    write_png(still, moving_picture(1, 48, 64)[0])
    before = {p: p.stat().st_mtime_ns for p in given.rglob("*")}
    case = next(p for p in sorted((ROOT / "tests" / "golden").iterdir()) if p.is_dir())
    commands: list[list[Any]] = [
        ["encode", clip, "-o", "t.vft"],
        ["truncate", "t.vft", "-k", 4, "-o", "u.vft"],
        ["truncate", "t.vft", "--auto", "-o", "auto.vft"],
        ["decode", "u.vft", "-o", "out.mp4", "--steps", 1, "--first-frame", still],
        ["info", "t.vft"], ["info", clip], ["info"], ["info", packaged("prior.safetensors")],
        ["generate", "a red ball", "-o", "new.mp4", "--tokens-out", "new.vft", "-k", 2,
         "--steps", 1],
        ["generate", "--list-classes"],
        ["refine", "u.vft", "-k", 5, "-o", "v.vft"],
        ["surprise", "u.vft", "--plot", "s.png"],
        ["parity", case],
        ["download", "--list"],
        ["demo", clip, "--budgets", 1, 2, "--steps", 1, "--out", "demo"],
    ]  # fmt: skip
    run = run_commands(commands, work, HOME="/dev/null/nowhere", TMPDIR=str(temp))
    assert run.returncode == 0, run.stderr[-3000:]
    wrote = {p.relative_to(work).as_posix() for p in work.rglob("*") if p.is_file()}
    told = {"t.vft", "u.vft", "auto.vft", "out.mp4", "new.mp4", "new.vft", "v.vft", "s.png"}
    assert wrote == told | DEMO
    # torch makes an empty folder for what it might compile.
    assert not [p for p in temp.rglob("*") if p.is_file()], "left behind"
    assert {p: p.stat().st_mtime_ns for p in given.rglob("*")} == before


def test_a_model_that_is_not_there_is_not_fetched(tmp_path: Path) -> None:
    """It is an error that says which command would."""
    for words in (["info", "--tokenizer", "k600-videoflextok"], ["info", "gone.safetensors"]):
        run = run_commands([words], tmp_path, HOME=str(tmp_path))
        assert run.returncode not in (0, 97), run.stderr
        assert "vft: error:" in run.stderr and "Traceback" not in run.stderr
        assert not list(tmp_path.rglob("*"))


def test_the_guard_ends_a_process_that_asks_for_a_host(tmp_path: Path) -> None:
    run = run_commands(
        [["download", "k600-videoflextok", "--yes"]], tmp_path, VFT_HOME=str(tmp_path)
    )
    assert run.returncode == 97, run.stderr
    assert "socket." in run.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("event", "args", "host"),
    [
        ("socket.connect", (None, ("127.0.0.1", 80)), ""),
        ("socket.connect", (None, ("::1", 80, 0, 0)), ""),
        ("socket.connect", (None, "/tmp/.X11-unix/X0"), ""),
        ("socket.getaddrinfo", ("localhost", 80, 0, 0, 0), ""),
        ("socket.getaddrinfo", (None, 80, 0, 0, 0), ""),
        ("socket.connect", (None, ("192.0.2.1", 443)), "192.0.2.1"),
        ("socket.sendto", (None, ("192.0.2.1", 53)), "192.0.2.1"),
        ("socket.sendmsg", (None, ("192.0.2.1", 53)), "192.0.2.1"),
        ("socket.sendmsg", (None, None), ""),
        ("socket.getaddrinfo", ("example.invalid", 443, 0, 0, 0), "example.invalid"),
        ("socket.getaddrinfo", ("192.0.2.1", 443, 0, 0, 0), ""),
        ("socket.gethostbyname", (b"example.invalid",), "example.invalid"),
        ("socket.gethostbyaddr", ("192.0.2.1",), "192.0.2.1"),
        ("open", ("example.invalid", "r", 0), ""),
    ],
)
def test_what_leaves_this_machine(event: str, args: tuple[Any, ...], host: str) -> None:
    assert leaves_this_machine(event, args) == host


def test_a_test_that_connects_is_stopped_and_found_out(connections: list[str]) -> None:
    """Even if what it calls swallows the error, which is the one of a machine without a network."""
    for reach, number in (
        (lambda: socket.create_connection(("192.0.2.1", 443), timeout=1), errno.ENETUNREACH),
        (lambda: socket.getaddrinfo("example.invalid", 443), socket.EAI_AGAIN),
    ):
        with pytest.raises(OSError) as refused:
            reach()
        assert refused.value.errno == number
    assert connections == ["192.0.2.1", "example.invalid"]
    connections.clear()


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare: network namespaces")
def test_a_namespace_refuses_with_the_errors_of_the_hook(tmp_path: Path) -> None:
    """What `make test-offline` and `make test-comfyui` run in, and what every test runs under."""
    told = []
    for prefix, note in (([], "list().append"), (["sh", str(OFFLINE)], "")):
        lines = PROBE.replace("HOOK", f"stay_on_this_machine({note})" if note else "pass")
        run = subprocess.run(
            [*prefix, sys.executable, "-c", lines], cwd=tmp_path, text=True, timeout=60,
            capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT / "tests")},
        )  # fmt: skip
        if "no network namespace" in run.stderr:
            pytest.skip(run.stderr.strip())
        assert run.returncode == 0, run.stderr
        told.append(run.stdout.splitlines())
    assert told[0] == told[1]
    assert len(told[0]) == 5


@pytest.mark.skipif("VFT_TEST_OFFLINE" not in os.environ, reason="only under make test-offline")
def test_this_run_has_no_network_but_loopback() -> None:
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
