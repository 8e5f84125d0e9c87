"""The subgraph blueprints that come with the pack, and its workflows as apps; on the legacy canvas
and with Nodes 2.0."""

from __future__ import annotations

import json
from typing import Any

import pytest

from browser.page_server import PACK_ROOT
from browser.test_front_end import chain
from browser.test_workflows import WORKFLOWS

BLUEPRINTS = sorted((PACK_ROOT / "subgraphs").glob("*.json"))
ASKED = {
    "VFT Text to Clip": ["tokenizer", "prior", "prompt", "budget", "seed"],
    "VFT Video through Tokens": ["tokenizer", "by", "budget", "seed"],
}
"""The widgets that each blueprint shows."""


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda p: p.stem)
def test_a_blueprint_is_found_by_its_name(app: Any, path: Any) -> None:
    """In the search that a double click opens, as every node."""
    app.open({**chain(), "nodes": [], "links": []})
    # Held down as a finger does: two clicks within 0.1 ms are no double click to the front end,
    # which sees no time pass between them.
    app.page.mouse.dblclick(700, 500, delay=20)
    app.page.locator("input:focus").wait_for()
    app.page.keyboard.type(path.stem)
    app.page.get_by_text(path.stem, exact=True).first.wait_for()
    app.page.wait_for_timeout(500)  # what the list shows first is what was typed last
    app.page.keyboard.press("Enter")
    app.page.mouse.click(700, 450)
    app.page.wait_for_function("app.graph.nodes.length === 1")
    (node,) = app.js("() => app.graph.nodes.map((n) => [n.title, n.widgets.map((w) => w.name)])")
    assert node == [path.stem, ASKED[path.stem]]
    inside = json.loads(path.read_text("utf-8"))["definitions"]["subgraphs"][0]["nodes"]
    assert [n["class_type"] for n in app.prompt().values()] == [n["type"] for n in inside]
    app.fit()
    app.screenshot(path.stem.replace(" ", "-"))


def test_words_become_a_clip_in_one_node(app: Any) -> None:
    path = PACK_ROOT / "subgraphs" / "VFT Text to Clip.json"
    app.open(json.loads(path.read_text("utf-8")))
    app.js(
        """() => {
          const save = LiteGraph.createNode("SaveVideo");
          app.graph.add(save);
          save.widgets.find((w) => w.name === "filename_prefix").value = "blueprint";
          app.graph.nodes[0].connect(0, save, "video");
          const budget = app.graph.nodes[0].widgets.find((w) => w.name === "budget");
          budget.value = 2;
        }"""
    )
    sent = {n["class_type"]: n["inputs"] for n in app.prompt().values()}
    assert sent["VFTTextToTokens"]["budget"] == 2
    app.run()
    app.page.locator("video").first.wait_for()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_a_workflow_is_an_app(app: Any, path: Any) -> None:
    """Opened as one, it asks for what the file lists, and has the place for its results."""
    if not app.nodes2:
        pytest.skip("apps are drawn by Nodes 2.0")
    workflow = json.loads(path.read_text("utf-8"))
    names = [name for _, name in workflow["extra"]["linearData"]["inputs"]]
    workflow["extra"]["linearMode"] = True
    app.js("([w, n]) => app.loadGraphData(w, true, true, n)", [workflow, f"app {path.stem}"])
    try:
        labels = app.page.get_by_test_id("linear-widgets").get_by_test_id("builder-widget-label")
        labels.nth(len(names) - 1).wait_for()
        assert labels.all_inner_texts() == names
    finally:
        app.js("() => app.extensionManager.command.execute('Comfy.ToggleLinear')")
