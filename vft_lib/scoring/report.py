"""Results as files: JSON, a Markdown table, one plot; and tables of several results."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import VftError
from ..evaluation.figures import FLAT, plot_curves
from ..evaluation.figures import MEASURES as TITLES
from ..files.atomic import write_bytes
from ..files.untrusted import read_json
from .protocol import Line, Protocol, text_of

DIGITS = {"psnr": 2, "ssim": 4, "feature_distance": 4, "clipv": 4, "text_score": 4, "accuracy": 3}
OF_A_ROW = ("clips", "sets", "sampler", "prior", "codec")  # fields that differ from row to row
FORMAT = "vft-eval-1"


def write(results: dict[str, Any], protocol: Protocol, out: Path) -> str:
    """Write results.json, table.md and, where there are budgets, quality.png into `out`; returns
    the table."""
    whole = {"format": FORMAT, **results, "protocol": dataclasses.asdict(protocol)}
    write_bytes(out / "results.json", (json.dumps(whole, indent=1) + "\n").encode())
    text = "\n".join(table([whole])) + "\n"
    write_bytes(out / "table.md", text.encode())
    plot([whole], out / "quality.png")
    return text


def read(path: Path) -> dict[str, Any]:
    """A results.json. VftError for anything else."""
    try:
        found = read_json(path.read_bytes())
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError("it has another format")
    except (OSError, ValueError) as e:
        raise VftError(f"{path} is no result of `vft eval` ({e})") from None
    return found


def check(results: Sequence[dict[str, Any]]) -> None:
    """VftError unless the results may stand in one table: of each measure, the lines of all rows
    are equal but for counts, samplers and codecs, and those of rows of one kind, name and budget
    are equal."""
    common: dict[str, Line] = {}
    same: dict[tuple[Any, ...], Line] = {}
    for rows in (of["rows"] for of in results):
        for row in rows:
            for key, line in row["lines"].items():
                base = {k: v for k, v in line.items() if k not in OF_A_ROW}
                _equal(key, common.setdefault(key, base), base)
                place = (key, row["kind"], row["name"], row.get("budget"), row.get("limit"))
                if row["kind"] == "clips" or place[3:] != (None, None):
                    _equal(key, same.setdefault(place, line), line)


def _equal(measure: str, a: Line, b: Line) -> None:
    for field in [*a, *(k for k in b if k not in a)]:
        if a.get(field) != b.get(field):
            raise VftError(
                f"these numbers do not compare. {TITLES[measure]}, {field}: {a.get(field)!r} in "
                f"one, {b.get(field)!r} in another; measure both by one protocol"
            )


def table(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Markdown of one result or several. VftError for results that do not compare."""
    check(results)
    rows = [(of, row) for of in results for row in of["rows"]]
    keys = [k for k in TITLES if any(k in row for _, row in rows)]
    sizes = any("bytes" in row for _, row in rows)
    heads = [*(["of"] if len(results) > 1 else []), "clips", *(["bytes"] if sizes else [])]
    names = ["kept", *heads, *(TITLES[k] for k in keys)]
    yield f"| {' | '.join(names)} |"
    yield "|---" * len(names) + "|"
    for of, row in rows:
        cells = [title_of(row)]
        if len(results) > 1:
            cells.append(subject_of(of))
        cells.append(str(row["clips"]))
        if sizes:
            cells.append(f"{row['bytes']:.0f}" if "bytes" in row else "")
        yield f"| {' | '.join([*cells, *(_cell(row, k) for k in keys)])} |"
    yield "\nIn brackets: the interval in which 9 of 10 resampled sets of clips lie."
    yield ""
    for note in dict.fromkeys(n for _, row in rows for n in row["notes"]):
        yield f"{note[0].upper()}{note[1:]}.\n"
    yield "How each number was made:\n"
    for key in keys:
        lines: dict[str, list[str]] = {}
        for _, row in rows:
            if key in row["lines"]:
                lines.setdefault(text_of(row["lines"][key]), []).append(title_of(row))
        for text, of_rows in lines.items():
            which = f" ({', '.join(dict.fromkeys(of_rows))})" if len(lines) > 1 else ""
            yield f"- {text}{which}"


def title_of(row: dict[str, Any]) -> str:
    kind, name = row["kind"], row["name"]
    if kind == "reference":
        return name
    return FLAT.get(kind, f"blur, {name}" if kind == "blocks" else name)


def subject_of(of: dict[str, Any]) -> str:
    """What was measured, in a few words."""
    subject = of["subject"]
    found = subject.get("prior") or subject.get("tokenizer") or Path(str(subject["fake"])).name
    return str(found)


def _cell(row: dict[str, Any], key: str) -> str:
    if key not in row:
        return ""
    digits = DIGITS.get(key, 2)
    low, high = row[f"{key}_interval"]
    return f"{row[key]:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Every measure over bytes, of one result or several; nothing where there are no budgets."""
    sets = {
        subject_of(of): {"title": subject_of(of), "rows": of["rows"],
                         "seconds_of_video": of["seconds_of_video"]}
        for of in results if any(row["kind"] == "tokens" for row in of["rows"])
    }  # fmt: skip
    measures = [k for k in TITLES if all(k in of["rows"][0] for of in sets.values())]
    if sets and measures:
        plot_curves(sets, measures, path)
