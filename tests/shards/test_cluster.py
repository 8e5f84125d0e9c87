"""Shards made by a local Ray of two actors, one of them killed: those of one process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from shards.conftest import tokenize
from shards.test_tokenizing import files
from vft_lib.shards import cluster

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_killed_actor_changes_nothing(
    clips: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:  # fmt: skip
    pytest.importorskip("ray", reason="Ray is not installed: pip install .[cluster]")
    out, whole = tmp_path / "out", tmp_path / "whole"
    one = ("--clips-per-shard", "1", "--window", "17", "--stride", "4")
    assert tokenize(clips, whole, tiny_checkpoint, *one) == 0
    command = [sys.executable, "-m", "vft_lib", "tokenize", clips, "--out", out, "--tokenizer",
               tiny_checkpoint, "--device", "cpu", "--ray", "--actors", "2", *one]  # fmt: skip
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(list(map(str, command)), env=env, stdout=log, stderr=log)
    killed = 0
    while run.poll() is None:
        if not killed and list(out.glob("shard-*.tar")):
            actors = [
                p for p in psutil.Process(run.pid).children(recursive=True)
                if "MapWorker" in " ".join(p.cmdline())
            ]  # fmt: skip
            assert len(actors) == 2
            actors[0].kill()
            killed = actors[0].pid
        time.sleep(0.02)
    said = (tmp_path / "log").read_text()
    assert run.returncode == 0, said[-3000:]
    assert killed and "Traceback" not in said
    assert files(out) == files(whole)


def test_without_ray_one_line_names_the_extra(
    clips: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", None)
    assert tokenize(clips, tmp_path / "out", tiny_checkpoint, "--ray") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == 'vft: error: --ray needs Ray: pip install ".[cluster]"'
    assert cluster.Cluster().address == "local"


def test_without_pyarrow_one_line_names_the_extra(
    clips: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert tokenize(clips, tmp_path / "out", tiny_checkpoint) == 2
    assert 'needs pyarrow: pip install ".[library]"' in capsys.readouterr().err
