"""Runs the tests of this folder in one ComfyUI after another and sums up:

    python tests/comfyui/versions.py path/to/ComfyUI [another ...]

Each with the Python of its own virtual environment (.venv or venv in the checkout); or with those
in COMFYUI_PYTHON, one for all or one for each.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Result:
    """What the tests said of one ComfyUI; counts of tests, in seconds how long they took."""

    version: str
    passed: int
    failed: int
    skipped: int
    seconds: float

    def row(self) -> str:
        """A line of the table, in Markdown."""
        counts = f"{self.passed} | {self.failed} | {self.skipped}"
        return f"| {self.version} | {counts} | {self.seconds / 60:.1f} min |"


HEAD = "| ComfyUI | passed | failed | skipped | time |\n|---|---|---|---|---|"


def version_of(checkout: Path) -> str:
    """What the checkout's own file says."""
    found = re.search(r'__version__ = "(.+)"', (checkout / "comfyui_version.py").read_text())
    return found[1] if found else "unknown"


def pythons(checkouts: list[Path], given: list[str]) -> list[str]:
    """The interpreter of each checkout; ValueError if `given` are neither one nor as many."""
    if given and len(given) not in (1, len(checkouts)):
        raise ValueError(
            f"COMFYUI_PYTHON names {len(given)} interpreters for {len(checkouts)} checkouts: give "
            "one for all or one for each"
        )
    if given:
        return given if len(given) == len(checkouts) else given * len(checkouts)
    places = [[c / name / "bin" / "python" for name in (".venv", "venv")] for c in checkouts]
    return [next((str(p) for p in own if p.exists()), "python3") for own in places]


def read_report(path: Path, version: str) -> Result:
    """What pytest wrote into a JUnit file; no file, when it did not come so far: one failure."""
    if not path.exists():
        return Result(version, 0, 1, 0, 0)
    total = dict.fromkeys(("tests", "failures", "errors", "skipped", "time"), 0.0)
    for suite in ElementTree.parse(path).getroot().iter("testsuite"):
        for name in total:
            total[name] += float(suite.get(name, 0))
    failed, skipped = int(total["failures"] + total["errors"]), int(total["skipped"])
    return Result(version, int(total["tests"]) - failed - skipped, failed, skipped, total["time"])


def run(checkout: Path, python: str) -> Result:
    """All tests of this folder in one ComfyUI, off the network."""
    version = version_of(checkout)
    print(f"\n== ComfyUI {version} in {checkout}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = ["sh", str(HERE / "offline.sh"), sys.executable, "-m", "pytest", str(HERE)]
        changes = {"COMFYUI": str(checkout), "COMFYUI_PYTHON": python}
        ended = subprocess.run([*command, f"--junitxml={report}"], env=os.environ | changes)
        result = read_report(report, version)
    if ended.returncode and not result.failed:  # interrupted, or nothing was collected
        return Result(version, result.passed, 1, result.skipped, result.seconds)
    return result


def main(words: list[str]) -> int:
    """The status to end with: 0, 1 if a test failed, 2 for wrong words."""
    checkouts = [Path(word).absolute() for word in words]
    for checkout in checkouts:
        if not (checkout / "main.py").is_file():
            print(f"no main.py in {checkout}: give checkouts of ComfyUI", file=sys.stderr)
            return 2
    if not checkouts:
        print(
            'which ComfyUI? make test-comfyui COMFYUI="/path/to/one /to/another"', file=sys.stderr
        )
        return 2
    try:
        found = pythons(checkouts, os.environ.get("COMFYUI_PYTHON", "").split())
    except ValueError as e:
        print(e, file=sys.stderr)
        return 2
    results = [run(checkout, python) for checkout, python in zip(checkouts, found)]
    print(f"\n{HEAD}", *(result.row() for result in results), sep="\n")
    return int(any(result.failed for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
