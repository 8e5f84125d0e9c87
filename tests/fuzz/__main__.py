"""Hunt: python -m tests.fuzz TARGET [--seconds N] [--corpus DIR]. Needs `pip install '.[fuzz]'`.

Begins with the target's examples, the kept seeds and what is in DIR, into which inputs that reach
new code are written. Stops at the first finding: the input lies in DIR/found/.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
from pathlib import Path


def main() -> None:
    try:
        import atheris
    except ImportError:
        sys.exit("the fuzzers need atheris: pip install '.[fuzz]'")
    sys.path.insert(0, str(Path(__file__).parent.parent))  # as pytest has it
    with atheris.instrument_imports(include=["vft_lib"]):
        from fuzz.mutate import mutate
        from fuzz.oracle import FOLDER, judge, warm
        from fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=1200)
    parser.add_argument("--corpus", type=Path, default=Path("build/fuzz"))
    args = parser.parse_args()
    target = TARGETS[args.target]
    corpus = args.corpus / args.target
    found = corpus / "found"
    found.mkdir(parents=True, exist_ok=True)
    kept = Path(__file__).parent / "seeds" / args.target
    for i, data in enumerate(target.examples()):
        (corpus / f"example-{i}").write_bytes(data)
    for seed in kept.glob("*"):
        shutil.copy(seed, corpus / f"seed-{seed.name}")
    warm(target.run, target.examples())
    if child := os.fork():  # libFuzzer ends its process where it stands
        _, status = os.waitpid(child, 0)
        shutil.rmtree(FOLDER, ignore_errors=True)
        sys.exit(os.waitstatus_to_exitcode(status))
    # A new process counts a library's pages when it first touches them: not as an input's memory.
    warm(target.run, target.examples())

    def one(data: bytes) -> None:
        judge(target.run, data)

    def bend(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.1:
            return atheris.Mutate(data, max_size)
        bent = mutate(target, data, rng)
        return bent if len(bent) <= max_size else data

    options = [
        f"-max_total_time={args.seconds}", f"-artifact_prefix={found}/", "-max_len=65536",
        "-len_control=0", "-rss_limit_mb=4096", "-timeout=60", "-print_final_stats=1",
        "-report_slow_units=5",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], str(corpus), *options], one, custom_mutator=bend)
    atheris.Fuzz()


main()
