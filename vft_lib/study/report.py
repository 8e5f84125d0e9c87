"""The study's table and its plot: quality over the size of the prior, one line for each kind of
tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..errors import VftError
from ..evaluation.figures import save_figure
from ..files.atomic import write_bytes
from ..scoring.protocol import text_of
from .recipes import KINDS

MEASURES = {
    "frechet_frames": "Fréchet distance, frames",
    "frechet_motion": "Fréchet distance, motion",
    "color": "captions shown (colour)",
    "accuracy": "captions shown (all three)",
}
PLOTTED = ("frechet_frames", "frechet_motion", "color")
SHARES = ("color", "accuracy")  # larger is better; shown beside what real clips show
COLOURS = {"registers": "C0", "grid": "C1", "control": "0.5"}
STYLES = {4: ":", 8: "--", 16: "-"}

Point = dict[str, Any]


def points(results: Sequence[dict[str, Any]]) -> list[Point]:
    """One for each kind, budget and size: the mean over seeds, and the two farthest apart; of a
    single seed, the interval of a bootstrap over clips, where there is one.
    VftError for cells that were measured in different ways."""
    lines = {text_of(of["line"]) for of in results}
    if len(lines) > 1:
        raise VftError(f"these cells do not compare: {' | '.join(sorted(lines))}")
    groups: dict[tuple[str, int, str], list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for of in results:
        for row in of["rows"]:
            groups.setdefault((of["kind"], row["k"], of["size"]), []).append((of, row))
    found = []
    for (kind, k, size), each in groups.items():
        point: Point = {
            "kind": kind, "k": k, "size": size, "seeds": len(each),
            "parameters": each[0][0]["parameters"], "tokens": each[0][1]["tokens"],
        }  # fmt: skip
        for key in (*MEASURES, "bits", "seconds"):
            values = [_value(row, "accuracy", key) for _, row in each]
            numbers = [v for v in values if v is not None]
            if numbers:
                point[key] = float(np.mean(numbers))
                ends = [min(numbers), max(numbers)]
                if len(each) == 1:  # what the clips alone leave open
                    ends = each[0][1].get(f"{key}_interval", ends)
                point[f"{key}_ends"] = ends
        for key in SHARES:
            real = [_value(row, "own_tokens", key) or 0.0 for _, row in each]
            point[f"{key}_real"] = float(np.mean(real))
        found.append(point)
    order = {kind: i for i, kind in enumerate(KINDS)}
    return sorted(found, key=lambda p: (order[p["kind"]], p["k"], p["parameters"]))


def _value(row: dict[str, Any], read: str, key: str) -> float | None:
    """A measure of a row; captions are in `read`: "accuracy" of generated clips, "own_tokens" of
    real ones."""
    if key in SHARES:
        return row[read].get("all" if key == "accuracy" else key)
    return row.get(key)


def write_report(results: Sequence[dict[str, Any]], out: Path) -> str:
    """Write table.md and study.png into `out`; returns the table. VftError where nothing has been
    measured."""
    if not results:
        raise VftError(f"{out} holds no results yet; run `vft eval study --out {out}`")
    found = points(results)
    text = "\n".join(table(found, text_of(results[0]["line"]))) + "\n"
    write_bytes(out / "table.md", text.encode())
    plot(found, out / "study.png")
    return text


def table(found: Sequence[Point], line: str) -> Iterator[str]:
    """Markdown."""
    keys = [k for k in MEASURES if any(k in p for p in found)]
    heads = ["tokens", "prior", "parameters", "seeds", *(MEASURES[k] for k in keys),
             "bits a clip", "s a clip"]  # fmt: skip
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for p in found:
        cells = [_title(p), p["size"], f"{p['parameters'] / 1e6:.2f} M", str(p["seeds"])]
        cells += [_cell(p, key) if key in p else "" for key in keys]
        cells += [f"{p['bits']:.0f}", f"{p['seconds']:.3f}"]
        yield f"| {' | '.join(cells)} |"
    yield (
        "\nMeans over seeds; in brackets the seeds farthest apart, or for a single seed 90 % of a "
        "bootstrap over clips. Captions shown: by generated clips; real: by real clips, decoded "
        "from their own tokens."
    )
    yield f"\nProtocol: {line}."


def _cell(p: Point, key: str) -> str:
    digits = ".1%" if key in SHARES else ".2f"
    value, low, high = (format(v, digits) for v in (p[key], *p[f"{key}_ends"]))
    text = value + f" ({low}–{high})" * (low != high)
    return f"{text}; real {p[f'{key}_real']:.1%}" if key in SHARES else text


def _title(p: Point) -> str:
    return f"{p['kind']}, k = {p['k']} ({p['tokens']} a clip)"


def plot(found: Sequence[Point], path: Path) -> None:
    """One panel a measure; bands reach from the worst seed to the best, or over the interval of a
    single one; thin lines are real clips'. Up is better."""
    keys = [k for k in PLOTTED if any(k in p for p in found)]
    figure = Figure(figsize=(4.6 * len(keys), 4.2), layout="constrained")
    axes = figure.subplots(1, len(keys), squeeze=False)[0]
    for axis, key in zip(axes, keys):
        for kind, k in dict.fromkeys((p["kind"], p["k"]) for p in found):
            of = [p for p in found if (p["kind"], p["k"]) == (kind, k) and key in p]
            x = [p["parameters"] for p in of]
            low, high = zip(*(p[f"{key}_ends"] for p in of))
            axis.fill_between(x, low, high, color=COLOURS[kind], alpha=0.12, lw=0)
            axis.plot(
                x, [p[key] for p in of], "o", ls=STYLES.get(k, "-"), color=COLOURS[kind],
                label=_title(of[0]),
            )  # fmt: skip
            if key in SHARES:
                style = STYLES.get(k, "-")
                axis.axhline(of[0][f"{key}_real"], color=COLOURS[kind], ls=style, lw=0.8, alpha=0.6)
        axis.set_xscale("log")
        sizes = sorted({p["parameters"] for p in found})
        axis.set_xticks(sizes, [f"{n / 1e6:.2g} M" for n in sizes])
        axis.minorticks_off()
        axis.set(title=MEASURES[key], xlabel="parameters of the prior")
        axis.set_ylabel("larger is better ↑" if key in SHARES else "smaller is better ↑")
        if key in SHARES:
            axis.set_ylim(0, 1)
        else:
            axis.invert_yaxis()
        axis.grid(alpha=0.25)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    save_figure(figure, path)
