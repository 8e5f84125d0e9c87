"""kill -9 at random moments: `python tests/kills.py --kills 210`.

Each command is run to its end once; its files are the reference. Then it is started again and
again in one folder and killed: most kills at any time, the others just after something in the
folder has changed. After every kill each file is absent, the one that was there before, or
complete, byte for byte; at the end of a chain of kills a run to the end leaves exactly the
reference, however often it was interrupted and resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from conftest import moving_picture, save_tiny
from fake_hub import FakeHub, FakeRepo, serve
from PIL import Image
from published import config_of, tensors_of, write_folder
from safetensors import safe_open

from vft_lib import load_tokenizer
from vft_lib.autoencoder.vae import VideoAutoencoder
from vft_lib.checkpoints.checkpoint import save_vae
from vft_lib.clips.stream import encode_file
from vft_lib.shards.dataset import Shards
from vft_lib.tokens import Tokens
from vft_lib.train.presets import PRESETS
from vft_lib.video.video_in import read_frames
from vft_lib.video.video_out import write_video

OLD = b"what was there before"
TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.tmp")
# Starts a process for each line of arguments that is read, torch being loaded once: the kills then
# fall on what a command does. Prints its process id, then how it ended.
STARTER = """
import json, os, sys
import huggingface_hub, matplotlib, torch
from vft_lib.checkpoints import checkpoint, convert
from vft_lib.cli import vft as cli
from vft_lib.models import hub, hub_files, loading
from vft_lib.clips import stream
from vft_lib.train import loop, presets, run, tokenizer, vae
from published import SMALL_VAE, VAE_ID
convert.VAES[VAE_ID] = SMALL_VAE
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.nice(3)  # who kills it is awake in time
        out, sys.stdin = os.open(os.devnull, os.O_WRONLY), open(os.devnull)
        os.dup2(out, 1)
        code = 1
        try:
            code = cli.main(json.loads(line))
        finally:
            os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def safetensors_whole(file: Path) -> None:
    with safe_open(file, "np") as f:
        for name in f.keys():  # noqa: SIM118  (no mapping)
            f.get_tensor(name)


def rows_whole(file: Path) -> None:
    """All rows but the last, which the next run drops if it is cut."""
    for row in file.read_text().splitlines()[:-1]:
        json.loads(row)


@dataclass
class Case:
    """One command. `{out}` in its arguments is the folder that it writes into; `working` are
    files that change while it runs, by name pattern, with what they must stand at any moment;
    `loose` ones need not be the reference's in the end. `loads` opens the result."""

    name: str
    args: list[str]
    old: str | None = None  # the file that stands there before
    before: Path | None = None  # or a folder whose files do
    working: dict[str, Callable[[Path], object]] = field(default_factory=dict)
    loose: str = "$."
    loads: Callable[[Path], object] = lambda folder: None
    reference: dict[str, bytes] = field(default_factory=dict)
    seconds: float = 0.0

    def arguments(self, out: Path) -> list[str]:
        return [a.replace("{out}", str(out)) for a in self.args]

    def fresh(self, out: Path, old: bool) -> None:
        shutil.rmtree(out, ignore_errors=True)
        if self.before is None:
            out.mkdir()
        else:
            shutil.copytree(self.before, out)
        if old and self.old is not None:
            (out / self.old).write_bytes(OLD)

    def learn(self, out: Path, starter: Starter) -> None:
        """One run to its end."""
        self.fresh(out, False)
        starter.start(self.arguments(out))
        while starter.running():
            self.seconds = max(self.seconds, starter.seconds())
            time.sleep(0.001)
        assert not starter.kill()
        self.reference = {n: f.read_bytes() for n, f in files(out)}
        self.loads(out)

    def check(self, out: Path) -> str:
        """What a killed run has left; AssertionError if that is no good."""
        left = Counter[str]()
        state = "absent"
        for name, file in files(out):
            if TEMPORARY.fullmatch(file.name.partition(".tmp")[0] + ".tmp"):
                left[re.sub(r"[0-9a-f]{8}\.tmp", "", name)] += 1
                continue
            for pattern, whole in self.working.items():
                if re.fullmatch(pattern, name):
                    whole(file)
                    break
            else:
                assert name in self.reference, f"{self.name} left a stray {name}"
                data = file.read_bytes()
                assert data in (OLD, self.reference[name]), f"{self.name} left half a {name}"
                state = "old" if data == OLD else "complete"
        assert all(n == 1 for n in left.values()), f"{self.name}: temporaries pile up: {left}"
        return "temporary" if left else state

    def finished(self, out: Path) -> None:
        """After a run to its end: nothing but the reference is there."""
        slow = r".*/samples-\d+\.png"  # drawn in between, if it takes long
        there = {
            n: f.read_bytes() for n, f in files(out)
            if n in self.reference or not re.fullmatch(slow, n)
        }  # fmt: skip
        assert there.keys() == self.reference.keys(), (self.name, sorted(there))
        for name, data in there.items():
            same = re.fullmatch(self.loose, name) or data == self.reference[name]
            assert same, f"{self.name}: {name} is not what an uninterrupted run writes"
        self.loads(out)


def files(out: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted(out.rglob("*")):
        if file.is_file() and file.suffix != ".lock":
            yield file.relative_to(out).as_posix(), file


def seen(out: Path) -> list[tuple[str, int, int]]:
    found = []
    for folder, _, names in os.walk(out):
        for name in names:
            try:
                stat = os.stat(os.path.join(folder, name))
                found.append((name, stat.st_size, stat.st_mtime_ns))
            except OSError:
                pass
    return sorted(found)


def kill_once(case: Case, out: Path, starter: Starter, rng: random.Random) -> bool:
    """Start the command and kill it at a random moment; False if it was at its end before."""
    untouched = seen(out)
    starter.start(case.arguments(out))
    if rng.random() < 0.6:
        moment = rng.uniform(0, 1) * case.seconds
        while starter.running() and starter.seconds() < moment:
            time.sleep(0.001)
    else:
        for _ in range(rng.randint(1, 4)):  # changes
            while starter.running() and seen(out) == untouched:
                time.sleep(0.0005)
            untouched = seen(out)
        time.sleep(rng.uniform(0, 0.02))
    return starter.kill()


def kill(
    case: Case, folder: Path, starter: Starter, kills: int, rng: random.Random
) -> Counter[str]:
    """Kill the command that often; a chain is cleared when a run comes to its end, or by chance."""
    out, found = folder / case.name.replace(" ", "-"), Counter[str]()
    case.learn(out, starter)
    case.fresh(out, True)
    while found["kills"] < kills:
        if kill_once(case, out, starter, rng):
            found["kills"] += 1
            found[case.check(out)] += 1
            if rng.random() > 0.12 and found["kills"] < kills:
                continue
            starter.run(case.arguments(out))  # what is left is cleaned or gone on with
        case.finished(out)
        found["runs to the end"] += 1
        case.fresh(out, rng.random() < 0.5)
    return found


class Starter:
    """Starts the command line, one process at a time, and kills it."""

    def __init__(self, env: dict[str, str]) -> None:
        here = Path(__file__).resolve().parent
        paths = os.pathsep.join([str(here.parent), str(here)])
        self.process = subprocess.Popen(
            [sys.executable, "-c", STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env=os.environ | env | {"PYTHONPATH": paths}, bufsize=0,
        )  # fmt: skip
        assert self.process.stdin is not None and self.process.stdout is not None
        self.to, self.said = self.process.stdin, self.process.stdout
        self.child = 0

    def start(self, arguments: list[str]) -> None:
        self.to.write(json.dumps(arguments).encode() + b"\n")
        self.child = int(self.said.readline())

    def running(self) -> bool:
        return not select.select([self.said], [], [], 0)[0]

    def seconds(self) -> float:
        """That the command has computed for: it starts later and takes longer on a busy machine."""
        try:
            return int(Path(f"/proc/{self.child}/schedstat").read_text().split()[0]) / 1e9
        except (OSError, IndexError):
            return 0.0

    def kill(self) -> bool:
        """False if the command had ended by itself, and well."""
        if self.running():
            with suppress(ProcessLookupError):  # waited for in this moment: its end follows
                os.kill(self.child, signal.SIGKILL)
        code = int(self.said.readline())
        assert code in (0, -signal.SIGKILL), f"it failed with {code}"
        return code != 0

    def run(self, arguments: list[str]) -> None:
        self.start(arguments)
        code = int(self.said.readline())
        assert code == 0, f"{arguments} ended with {code}"

    def close(self) -> None:
        self.process.communicate()


# ------------------------------------------------------------------ the commands


@contextmanager
def cases(folder: Path) -> Iterator[tuple[list[Case], Starter]]:
    """Every command that writes, with tiny models."""
    tiny = save_tiny(folder / "tiny.safetensors")
    clip, tokens = folder / "clip.mp4", folder / "clip.vft"
    write_video(clip, moving_picture(65, 32, 32), 8)
    tokenizer = load_tokenizer(tiny, device="cpu")
    encode_file(tokenizer, clip).save(tokens)
    model = ["--tokenizer", str(tiny), "--device", "cpu"]
    clips = folder / "clips"
    clips.mkdir()
    for i in range(8):
        write_video(clips / f"{i}.mp4", moving_picture(9 + 8 * i, 32, 32), 8)
    (clips / "broken.mp4").write_bytes(b"no clip")
    published = write_folder(folder / "src", config_of("options"), tensors_of("options"))
    train = [
        "--preset",
        "tiny",
        "--no-real",
        "--device",
        "cpu",
        "--checkpoint-seconds",
        "0",
        "--steps",
        "6",
    ]
    trained: dict[str, Callable[[Path], object]] = {
        r"(vae|tokenizer|prior)/checkpoint(-before)?\.safetensors": safetensors_whole,
        r"(vae|tokenizer|prior)/optimizer-\d+\.safetensors": safetensors_whole,
        r"(vae|tokenizer|prior)/log\.jsonl": rows_whole,
        r"latents\.(f16|done)": lambda file: None,
        r"(vae|tokenizer|prior)/samples-\d+\.png": lambda file: Image.open(file).load(),
    }
    base = folder / "base"
    base.mkdir()
    save_vae(base / "vae.safetensors", VideoAutoencoder(PRESETS["tiny"].tokenizer.config.vae))

    def decoded(out: Path) -> None:
        assert sum(1 for _ in read_frames(out / "c.mp4")) == 65

    with ExitStack() as stack:
        hub = stack.enter_context(serve())
        env = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
        starter = stack.enter_context(closing(Starter(env | {"OMP_NUM_THREADS": "1"})))
        every = [
            Case("encode", ["encode", str(clip), "-o", "{out}/t.vft", *model], "t.vft",
                 loads=lambda out: Tokens.load(out / "t.vft")),
            Case("tokenize", ["tokenize", str(clips), "--out", "{out}/tokens", "--resume",
                              "--clips-per-shard", "2", "--workers", "1", *model],
                 loads=lambda out: [record.tokens for record in Shards(out / "tokens")]),
            Case("truncate", ["truncate", str(tokens), "-k", "3", "-o", "{out}/u.vft"], "u.vft",
                 loads=lambda out: Tokens.load(out / "u.vft")),
            Case("decode", ["decode", str(tokens), "-o", "{out}/c.mp4", *model, "--resume",
                            "--steps", "6"], "c.mp4", loads=decoded,
                 working={r"c\.mp4\.chunks/\d{5}\.safetensors": safetensors_whole}),
            Case("convert", ["convert", str(published), "{out}/m.safetensors"], "m.safetensors",
                 loads=lambda out: load_tokenizer(out / "m.safetensors")),
            download(hub),
            Case("train vae", ["train", "vae", "--out", "{out}", *train], working=trained,
                 loose=r"vae/(log\.jsonl|checkpoint(-before)?\.safetensors|optimizer-.*)"),
            Case("train tokenizer", ["train", "tokenizer", "--out", "{out}", *train],
                 before=base, working=trained,
                 loose=r"tokenizer/(log\.jsonl|checkpoint(-before)?\.safetensors|optimizer-.*)",
                 loads=lambda out: load_tokenizer(out / "tokenizer.safetensors")),
        ]  # fmt: skip
        yield every, starter


def download(hub: FakeHub) -> Case:
    """A published model, with an autoencoder of its own, from a hub on this machine."""
    name = "EPFL-VILAB/videoflextok_d18_d28"
    source = write_folder(Path(tempfile.mkdtemp()), config_of("options"), tensors_of("options"))
    hub.repos[name] = FakeRepo({f.name: f.read_bytes() for f in source.iterdir()})
    shutil.rmtree(source)
    return Case(
        "download", ["download", name.rpartition("/")[2], "--yes", "--to", "{out}"],
        working={r"\.sources/.*": lambda file: None},
        loads=lambda out: load_tokenizer(out / "videoflextok_d18_d28.safetensors"),
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=210, help="over all commands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one command")
    args = parser.parse_args(argv)
    rng, total = random.Random(args.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder, cases(Path(folder)) as (every, starter):
        chosen = [c for c in every if args.only in (None, c.name)]
        for case in chosen:
            found = kill(case, Path(folder), starter, -(-args.kills // len(chosen)), rng)
            total += found
            print(f"{case.name:16}{case.seconds:5.1f} s  {dict(found)}", flush=True)
    print(f"{total['kills']} kills, no file lost or half written: {dict(total)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
