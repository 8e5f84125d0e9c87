"""`vft gpu-check`: everything that only a GPU can prove, in a few minutes, nothing of it lost.

The parts run in order of importance in a process of their own, each within its share of the time;
every measurement is written down at once, one that fails is written down too, and where a crash
takes the process with it, the parts after it run in a new one. Without a GPU the same code runs at
tiny sizes on the CPU, and the report names what that does not prove.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import VftError
from ..files.atomic import write_bytes
from . import compare, decoder, graphs, prior, safety
from .rows import Part, Place, Row


@dataclass(frozen=True)
class Spec:
    """A part: `share` of the time it may take, and what it proves."""

    name: str
    share: float
    proves: str


SPECS = (
    Spec("attention", 0.06, "sdpa and xformers give the formula's result"),
    Spec("parity", 0.11, "the published code's numbers come out on this device"),
    Spec("decoder", 0.27, "speed and memory of the flow decoder and the autoencoder"),
    Spec(
        "graphs", 0.14, "CUDA graphs: their gain, and the same result; which attention backend wins"
    ),
    Spec("prior", 0.13, "ids a second"),
    Spec("safety", 0.1, "determinism, cancel, out of memory, unloading, weights moved in parts"),
    Spec("compiled", 0.12, "what torch.compile gains over the same kernels in a graph"),
    Spec("flex", 0.07, "flex attention, compiled for each kind, gives the formula's result"),
)
GRACE = 20.0  # seconds beyond its time after which a part is ended from outside
STICKY = 3  # exit status: the device no longer answers this process


PARTS: dict[str, Part] = {
    "attention": compare.attention, "flex": compare.flex, "parity": compare.parity,
    "decoder": decoder.decoder, "graphs": graphs.graphs, "prior": prior.prior,
    "safety": safety.safety, "compiled": graphs.compiled,
}  # fmt: skip


# ------------------------------------------------------------------ the process that measures


def run_parts(names: Sequence[str], place: Place, out: Path, end: float) -> int:
    """Run parts one after another, each into `out/part-NAME.json`; `end`: time.time() by which all
    are done. Returns the exit status."""
    left = [s for s in SPECS if s.name in names]
    for i, spec in enumerate(left):
        shares = sum(s.share for s in left[i:])
        until = min(time.time() + (end - time.time()) * spec.share / shares * 1.15, end)
        if not _run_part(spec, place, out, until):
            return STICKY
    return 0


def _run_part(spec: Spec, place: Place, out: Path, until: float) -> bool:
    """Whether the device still answers afterwards."""
    began = time.time()
    facts: dict[str, Any] = {
        "part": spec.name, "proves": spec.proves, "status": "running", "until": until,
        "rows": [], "errors": [], "skipped": [],
    }  # fmt: skip

    def save(**more: Any) -> None:
        facts.update(more, seconds=round(time.time() - began, 2))
        write_bytes(out / f"part-{spec.name}.json", json.dumps(facts).encode())

    def failed(what: str, e: BaseException) -> None:
        text = " ".join((str(e).strip() or "no message").split())[:600]
        facts["errors"].append({"what": what, "error": f"{type(e).__name__}: {text}"})
        print(f"{spec.name}: {what}: {type(e).__name__}: {text}", flush=True)

    save()
    alive = True
    try:
        for what, measure in PARTS[spec.name](place):
            if time.time() > until:
                facts["skipped"].append(what)
                continue
            save(doing=what)
            at = time.time()
            try:
                with torch.inference_mode():
                    rows = measure()
            except Exception as e:
                failed(what, e)
            else:
                facts["rows"] += [plain(r) for r in rows]
                for r in rows:
                    print(f"{spec.name}: {line(plain(r))}", flush=True)
            print(f"    ({what}: {time.time() - at:.1f} s)", flush=True)
            if not _tidy(place):
                alive = False
                break
    except Exception as e:  # while a part sets itself up
        failed("setting up", e)
        alive = _tidy(place)
    save(status="done" if alive else "lost", doing="")
    return alive


def plain(row: Row) -> dict[str, Any]:
    """A row for JSON, which knows no NaN: it becomes a word."""
    found = asdict(row)
    if row.value is not None and not math.isfinite(row.value):
        found["value"], found["note"] = None, f"{row.value} {row.note}".strip()
    return found


def _tidy(place: Place) -> bool:
    """Return memory; False if the device no longer answers."""
    import gc

    gc.collect()
    if not place.cuda:
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


# ------------------------------------------------------------------ the process that watches


def run_gpu_check(
    out: Path, *, minutes: float = 4.0, device: torch.device | None = None,
    cases: Path | None = None, only: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Run the check within `minutes` and write `gpu-check.json` and `gpu-check.md` to `out`, after
    every measurement anew. Returns what the JSON holds. `cases`: the folder of parity cases (the
    checkout's unless given). `only`: some parts."""
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = Path(__file__).parents[2] / "tests" / "golden" if cases is None else cases
    names = [s.name for s in SPECS]
    unknown = set(only) - set(names)
    if unknown:
        raise VftError(f"no part {unknown.pop()!r}; choose among {', '.join(names)}")
    out.mkdir(parents=True, exist_ok=True)
    wanted = [n for n in names if not only or n in only]
    for name in names:
        (out / f"part-{name}.json").unlink(missing_ok=True)
    began, end = time.time(), time.time() + 60 * minutes
    left = list(wanted)

    def report() -> dict[str, Any]:
        found = collect(out, wanted, device, time.time() - began, minutes)
        write_bytes(out / "gpu-check.json", json.dumps(found, indent=1).encode())
        write_bytes(out / "gpu-check.md", markdown(found).encode())
        return found

    while left and time.time() < end:
        child = [
            sys.executable,
            "-u",
            "-m",
            "vft_lib.gpu_check.check",
            str(out),
            str(device),
            str(cases),
            str(end),
        ]
        with (out / "gpu-check.log").open("a") as log:
            process = subprocess.Popen([*child, *left], stdout=log, stderr=subprocess.STDOUT)
        _watch(process, out, left, end, report)
        before = list(left)
        left = [n for n in left if n not in _started(out)]
        if left == before:  # it cannot even begin: once more would be the same
            break
    found = report()
    for name in wanted:  # the report holds them
        (out / f"part-{name}.json").unlink(missing_ok=True)
    return found


def _watch(
    process: subprocess.Popen[bytes], out: Path, names: list[str], end: float,
    report: Callable[[], object],
) -> None:  # fmt: skip
    """Until the process ends; it is ended where a part does not keep its time."""
    while process.poll() is None:
        time.sleep(0.5)
        report()
        running = [p for p in _parts(out, names) if p["status"] == "running"]
        limit = min([p["until"] for p in running], default=end) + GRACE
        if time.time() > min(limit, end + GRACE):
            process.kill()
            with suppress(subprocess.TimeoutExpired):  # a driver may hold it: go on without
                process.wait(timeout=10)
            break
    for p in _parts(out, names):
        if p["status"] == "running":
            why = (
                "ended from outside: it took too long"
                if process.returncode in (-9, None)
                else (f"the process ended with status {process.returncode}")
            )
            p["errors"].append({"what": p.get("doing", ""), "error": why})
            p["status"] = "lost"
            write_bytes(out / f"part-{p['part']}.json", json.dumps(p).encode())


def _parts(out: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    files = [out / f"part-{name}.json" for name in names]
    return [json.loads(f.read_text()) for f in files if f.is_file()]


def _started(out: Path) -> set[str]:
    return {p["part"] for p in _parts(out, [s.name for s in SPECS])}


def collect(
    out: Path, names: Sequence[str], device: torch.device, seconds: float, minutes: float
) -> dict[str, Any]:
    """What has been measured so far."""
    parts = _parts(out, names)
    rows = [r for p in parts for r in p["rows"]]
    unproven = [f"{p['part']}: {w}" for p in parts for w in p["skipped"]]
    unproven += [f"{p['part']}: {e['what']} ({e['error']})" for p in parts for e in p["errors"]]
    there = {p["part"] for p in parts}
    unproven += [f"{s.name}: {s.proves}" for s in SPECS if s.name in names and s.name not in there]
    cuda = device.type == "cuda"
    if not cuda:
        unproven += [f"on a GPU, {s.name}: {s.proves}" for s in SPECS]
    return {
        "device": torch.cuda.get_device_name(device) if cuda else "CPU",
        "torch": torch.__version__, "minutes": minutes, "seconds": round(seconds, 1),
        "tiny": not cuda, "failed": [r["what"] for r in rows if r["ok"] is False],
        "errors": sum(len(p["errors"]) for p in parts), "unproven": unproven, "parts": parts,
    }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    value = "" if row["value"] is None else f" {number(row['value'])} {row['unit']}".rstrip()
    target = f" (target {row['target']})" if row["target"] else ""
    verdict = {True: " ok", False: " MISSED", None: ""}[row["ok"]]
    return f"{row['what']}:{value}{target}{verdict}" + f" [{row['note']}]" * bool(row["note"])


def number(value: float) -> str:
    """Four digits, whatever the size."""
    return f"{value:.3g}" if abs(value) < 1e-3 or abs(value) >= 1e6 else f"{value:,.4g}"


def markdown(report: dict[str, Any]) -> str:
    """The report as a page: a table for each part, then what was not proven."""
    where = f"{report['device']}, torch {report['torch']}"
    lines = [f"# `vft gpu-check` on {where}", "", f"{report['seconds']} s.", ""]
    if report["tiny"]:
        lines += ["Tiny sizes on a CPU: the code runs; **no speed or memory here means anything**.",
                  ""]  # fmt: skip
    for p in report["parts"]:
        lines += [f"## {p['part']}: {p['proves']} ({p['seconds']} s)", ""]
        lines += ["| what | value | target | |", "|---|---:|---|---|"]
        for r in p["rows"]:
            value = "" if r["value"] is None else f"{number(r['value'])} {r['unit']}"
            verdict = {True: "ok", False: "**missed**", None: ""}[r["ok"]]
            note = " ".join(x for x in (verdict, r["note"]) if x)
            lines.append(f"| {r['what']} | {value} | {r['target']} | {note} |")
        lines.append("")
    lines += ["## Not proven", ""]
    lines += [f"- {text}" for text in report["unproven"]] or ["- nothing is left"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    folder, where, golden, deadline, *rest = sys.argv[1:]
    on = torch.device(where)
    if on.index is not None:  # events, memory and captures are the current device's
        torch.cuda.set_device(on)
    here = Place(on, Path(golden), tiny=on.type == "cpu")
    sys.exit(run_parts(rest, here, Path(folder), float(deadline)))
