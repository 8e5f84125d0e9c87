"""`vft tokenize` on a collection, killed and shared out: `python tests/thousand.py DIR --real R`.

Draws worlds, takes real clips from a folder (a second of each) and puts broken and missing ones
between them. Then one process, four shards and a local Ray of two actors tokenize the list with a
tiny tokenizer; each is killed once (of Ray, an actor) and goes on. Their files are to be the same.
`--speed` compares the default tokenizer on prepared frames with the whole command, by turns.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import torch
from conftest import save_tiny

from vft_lib.footage.footage import to_video
from vft_lib.footage.real import clip_files
from vft_lib.models.loading import load_tokenizer
from vft_lib.shards.decoding import chunks_of
from vft_lib.shards.encoding import read_chunks
from vft_lib.shards.sources import open_source
from vft_lib.shards.tokenizing import Machine, plan_of
from vft_lib.video.video_in import read_frames
from vft_lib.video.video_out import write_video
from vft_lib.world.world import draw_scene

ROOT = Path(__file__).resolve().parents[1]
BROKEN = 20
PER_SHARD = 25


def make_list(folder: Path, real: Path, count: int) -> Path:
    """`folder/list.csv`: so many clips, with captions."""
    found = sorted(clip_files(real), key=lambda p: p.stat().st_size)
    taken = list(itertools.islice(filter(moves, found), count * 38 // 100))
    rows = [[str(path.resolve()), f"a preview of {path.stem}", "1.0"] for path in taken]
    for i in range(count - BROKEN - len(rows)):
        scene, path = draw_scene(2_000_000 + i), folder / f"world{i:04d}.mp4"
        if not path.exists():
            write_video(path, scene.render(17 + 4 * (i % 3), 64), 8)
        rows.insert(0, [path.name, scene.caption(np.random.default_rng(i)), ""])
    good = (folder / "world0000.mp4").read_bytes()
    for i in range(BROKEN):
        name = f"broken{i}.mp4"
        if i % 2:  # every second one is missing
            (folder / name).write_bytes((b"", b"text", good[:600], bytes(4000), good[:40])[i // 4])
        rows.insert((i + 1) * count // (BROKEN + 1), [name, "broken", ""])
    with (folder / "list.csv").open("w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([["path", "caption", "end"], *rows])
    return folder / "list.csv"


def moves(path: Path) -> bool:
    """Whether a file holds two frames, and is no still."""
    return len(list(read_frames(path, size=(64, 64), max_frames=2))) == 2


class Runs:
    """Starts the command for one folder after another."""

    def __init__(self, source: Path, tokenizer: Path) -> None:
        self.command = [
            sys.executable, "-m", "vft_lib", "tokenize", str(source), "--tokenizer", str(tokenizer),
            "--device", "cpu", "--clips-per-shard", str(PER_SHARD), "--workers", "1", "--window",
            "17", "--stride", "16", "--json", "--resume",
        ]  # fmt: skip
        self.rng = random.Random(0)

    def start(self, out: Path, *more: str) -> subprocess.Popen[str]:
        with out.with_suffix(".log").open("a") as log:
            return subprocess.Popen(
                [*self.command, "--out", str(out), *more], stdout=subprocess.PIPE, stderr=log,
                text=True, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def kill(self, out: Path, shards: int, *more: str) -> None:
        """kill -9 within a second of when so many are there."""
        run = self.start(out, *more)
        while run.poll() is None and len(done(out)) < shards:
            time.sleep(0.02)
        time.sleep(self.rng.random())
        assert run.poll() is None, "it was at its end before"
        run.send_signal(signal.SIGKILL)
        run.wait()
        print(f"killed with {len(done(out))} shards there")

    def finish(self, out: Path, *more: str) -> None:
        """To the end; prints the memory on the way."""
        run, seen = self.start(out, *more), {}
        while run.poll() is None:
            seen[len(done(out))] = psutil.Process(run.pid).memory_info().rss
            time.sleep(0.1)
        assert run.returncode == 0, out.with_suffix(".log").read_text()[-2000:]
        assert run.stdout is not None
        facts = json.loads(run.stdout.read())
        print(f"{facts['records']} records, {facts['failures']} failures, MB by shards there:",
              {n: round(size / 1e6) for n, size in list(seen.items())[:-1][:: len(seen) // 8 + 1]},
              flush=True)  # fmt: skip

    def kill_an_actor(self, out: Path) -> None:
        run, hit = self.start(out, "--ray", "--actors", "2"), False
        while run.poll() is None:
            actors = [p for p in psutil.Process(run.pid).children(recursive=True) if maps(p)]
            if not hit and len(done(out)) >= 10 and actors:
                actors[0].kill()
                hit = True
                print(f"killed one of {len(actors)} actors with {len(done(out))} shards there")
            time.sleep(0.1)
        assert hit and run.returncode == 0, out.with_suffix(".log").read_text()[-2000:]


def maps(process: psutil.Process) -> bool:
    """Whether a process is one of Ray's actors that tokenize; one that has ended is none."""
    try:
        return "MapWorker" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def done(out: Path) -> list[Path]:
    return list(out.glob("shard-*.json"))


def content(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}


def speed(source: Path, out: Path, turns: int) -> None:
    """One thread for the model, one process that decodes; CPU time is of the model's process."""
    torch.set_num_threads(1)
    tokenizer = load_tokenizer("default", device="cpu")
    clips = open_source(source)
    plan = plan_of(clips, tokenizer, per_shard=len(clips.clips))
    frames = [
        np.stack(part + [part[-1]] * (plan.settings.chunk - len(part)))
        for clip in clips.clips for _, part in chunks_of(clip, plan.settings, {}, str(out.parent))
    ]  # fmt: skip
    for _ in range(turns):
        wall, cpu = time.monotonic(), time.process_time()
        for i in range(0, len(frames), 4):
            read_chunks(tokenizer, to_video(torch.from_numpy(np.stack(frames[i : i + 4]))))
        alone = time.monotonic() - wall, time.process_time() - cpu
        shutil.rmtree(out, ignore_errors=True)
        plan.begin(out, False)
        with closing(Machine(clips, plan, tokenizer, out, workers=1, batch=4)) as machine:
            wall, cpu = time.monotonic(), time.process_time()
            list(machine.run([0]))
            whole = time.monotonic() - wall, time.process_time() - cpu
        pace = machine.pace
        print(f"{len(frames)} chunks: wall {alone[0]:.1f} s alone, {whole[0]:.1f} s whole; CPU "
              f"{alone[1]:.1f} and {whole[1]:.1f} s; waited {pace.waited / pace.seconds:.1%}",
              flush=True)  # fmt: skip


def parts(args: argparse.Namespace, runs: Runs) -> Iterator[Path]:
    one, four, ray = (args.folder / name for name in ("one", "four", "ray"))
    for out in (one, four, ray):
        shutil.rmtree(out, ignore_errors=True)
    runs.kill(one, args.count // PER_SHARD // 3)
    runs.finish(one)
    yield one
    for i in range(4):
        runs.kill(four, len(done(four)) + 3, "--shard", f"{i}/4")
        runs.finish(four, "--shard", f"{i}/4")
    yield four
    runs.kill_an_actor(ray)
    yield ray


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--real", type=Path, required=True, help="a folder of clips")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--speed", type=int, metavar="TURNS", default=0, help="that alone, on REAL")
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.speed:
        speed(args.real, args.folder / "speed", args.speed)
        return 0
    source = make_list(args.folder, args.real, args.count)
    runs = Runs(source, save_tiny(args.folder / "tiny.safetensors"))
    first: dict[str, bytes] | None = None
    for out in parts(args, runs):
        first = first or content(out)
        assert content(out) == first, f"{out} differs"
        print(f"{out}: {len(first)} files, the same as the first's", flush=True)
    assert pq.read_table(args.folder / "one" / "failures.parquet").num_rows == BROKEN
    return 0


if __name__ == "__main__":
    sys.exit(main())
