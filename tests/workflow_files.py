"""The workflows of the pack: their files, and what ComfyUI's front end makes of them.

Run as a program, it writes the API form of every workflow to tests/workflows/api/.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = ROOT / "workflows"
SUBGRAPHS = ROOT / "subgraphs"
API = ROOT / "tests" / "workflows" / "api"
SAVED = ROOT / "tests" / "workflows" / "saved"
NOTES = {"Note", "MarkdownNote"}  # of the front end alone
AFTER_GENERATE = {"fixed", "increment", "decrement", "randomize"}

NAMES = sorted(p.stem for p in WORKFLOWS.glob("*.json"))


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def widget_values(node: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Name and value of each widget. A seed takes two places: its value, and what becomes of it
    after a run, which is the front end's business alone."""
    values = iter(node["widgets_values"])
    for name in (i["widget"]["name"] for i in node["inputs"] if "widget" in i):
        yield name, next(values)
        if name == "seed" and (after := next(values)) not in AFTER_GENERATE:
            raise ValueError(f"{node['type']}: {after!r} after the seed")
    if left := list(values):
        raise ValueError(f"{node['type']}: values of no widget: {left}")


def to_api(workflow: dict[str, Any]) -> dict[str, Any]:
    """What the front end sends to /prompt: nodes by id, widgets and links by name."""
    links = {link[0]: link for link in workflow["links"]}
    api = {}
    for node in sorted(workflow["nodes"], key=lambda n: n["order"]):
        if node["type"] in NOTES:
            continue
        inputs = dict(widget_values(node))
        for i in node["inputs"]:
            if i["link"] is not None:
                _, origin, slot, *_ = links[i["link"]]
                inputs[i["name"]] = [str(origin), slot]
        title = node.get("title", node["type"])
        api[str(node["id"])] = {
            "inputs": inputs, "class_type": node["type"], "_meta": {"title": title},
        }  # fmt: skip
    return api


if __name__ == "__main__":
    API.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        text = json.dumps(to_api(read(WORKFLOWS / f"{name}.json")), indent=1, ensure_ascii=False)
        (API / f"{name}.json").write_text(text + "\n", encoding="utf-8")
