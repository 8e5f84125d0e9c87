"""Every workflow that comes with the pack opens and sends what is stored beside it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from browser.page_server import PACK_ROOT

WORKFLOWS = sorted((PACK_ROOT / "workflows").glob("*.json"))
API = PACK_ROOT / "tests" / "workflows" / "api"
MISPLACED = """() => {
  const box = ({ title }, [x, y, w, h]) => ({ title, x0: x, y0: y, x1: x + w, y1: y + h });
  const nodes = app.graph.nodes.map((n) => box(n, n.getBounding()));
  const groups = app.graph.groups.map((g) => box(g, g._bounding ?? g.boundingRect));
  const apart = (a, b) => a.x1 <= b.x0 || b.x1 <= a.x0 || a.y1 <= b.y0 || b.y1 <= a.y0;
  const inside = (a, b) => b.x0 <= a.x0 && b.y0 <= a.y0 && a.x1 <= b.x1 && a.y1 <= b.y1;
  return nodes.flatMap((a, i) => [
    ...nodes.slice(i + 1).filter((b) => !apart(a, b)),
    ...groups.filter((b) => !apart(a, b) && !inside(a, b)),
  ].map((b) => `${a.title}: ${b.title}`));
}"""
"""Nodes, as large as the page makes them, that lie on another or reach out of their group."""


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_it_opens_whole_and_sends_the_stored_prompt(app: Any, path: Any) -> None:
    workflow = json.loads(path.read_text("utf-8"))
    app.open(workflow, path.stem)
    assert app.missing() == []
    app.fit()
    app.screenshot(path.stem)
    assert app.js(MISPLACED) == []
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


def test_one_runs_and_shows_what_came_out(app: Any) -> None:
    """The whole way, with the default tokenizer: the page's prompt, our nodes, the page again."""
    path = PACK_ROOT / "workflows" / "01_reconstruct_at_any_budget.json"
    app.open(json.loads(path.read_text("utf-8")), "run")
    app.fit()
    app.run()
    app.page.locator("video").nth(1).wait_for()
    results = app.page.locator(".vft-result").all_inner_texts()
    assert sum("32 per latent frame · 288 tokens · 576 B" in r for r in results) == 2
    assert any("128 per latent frame · 1,152 tokens" in r for r in results)
    assert "vft-small · 128 px, 128 tokens per latent frame, 8 fps" in "".join(results)
    heights = app.js("() => app.graph.nodes.map((n) => n.size[1])")
    assert max(heights) < 450  # no node has grown by more than its lines of text
    app.fit()
    app.screenshot("run")
