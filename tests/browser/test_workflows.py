"""Every workflow that comes with the pack opens and sends what is stored beside it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from browser.page_server import PACK_ROOT

WORKFLOWS = sorted((PACK_ROOT / "workflows").glob("*.json"))
API = PACK_ROOT / "tests" / "workflows" / "api"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_it_opens_whole_and_sends_the_stored_prompt(app: Any, path: Any) -> None:
    workflow = json.loads(path.read_text("utf-8"))
    app.open(workflow, path.stem)
    assert app.missing() == []
    app.fit()
    app.screenshot(path.stem)
    assert app.prompt() == {
        number: {key: value for key, value in node.items() if key != "_meta"}
        for number, node in json.loads((API / path.name).read_text("utf-8")).items()
    }
    # Opened and saved again, the values of every node of ours are where they were.
    saved = {
        n["id"]: n.get("widgets_values") or [] for n in app.js("() => app.graph.serialize().nodes")
    }
    for node in workflow["nodes"]:
        if node["type"].startswith("VFT"):
            assert saved[node["id"]] == (node.get("widgets_values") or []), node["type"]


def test_there_are_workflows() -> None:
    assert WORKFLOWS
