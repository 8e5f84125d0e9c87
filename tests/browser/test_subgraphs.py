"""Nodes of ours inside a subgraph; on the legacy canvas and with Nodes 2.0."""

from __future__ import annotations

from typing import Any

from browser.test_front_end import EXAMPLE, chain, node

INSIDE = "5c5f3f8e-0b1d-4c54-9d6e-6a7b8f2f0a11"


def nested() -> dict[str, Any]:
    """Load Tokens -> [Truncate Prefix -> Tokens Info ->] Truncate Prefix -> Tokens Info: what is in
    brackets is a subgraph, whose output are the tokens that its Truncate Prefix keeps."""
    tokens = {"name": "tokens", "type": "VFT_TOKENS"}

    def border(number: int, name: str, links: list[int]) -> dict[str, Any]:
        return {"id": f"5c5f3f8e-0b1d-4c54-9d6e-6a7b8f2f0a{number}", "name": name,
                "type": "VFT_TOKENS", "linkIds": links, "pos": [0, 0]}  # fmt: skip

    def link(number: int, origin: int, target: int) -> dict[str, Any]:
        return {"id": number, "origin_id": origin, "origin_slot": 0, "target_id": target,
                "target_slot": 0, "type": "VFT_TOKENS"}  # fmt: skip

    inside = {
        "id": INSIDE, "version": 1, "revision": 0, "config": {}, "name": "Shorter", "groups": [],
        "state": {"lastGroupId": 0, "lastNodeId": 13, "lastLinkId": 3, "lastRerouteId": 0},
        "inputNode": {"id": -10, "bounding": [0, 100, 120, 60]},
        "outputNode": {"id": -20, "bounding": [1200, 100, 120, 60]},
        "inputs": [border(21, "tokens", [1])], "outputs": [border(22, "tokens", [3])],
        "widgets": [], "extra": {},
        "nodes": [
            node(12, "VFTTruncate", 200, ["tokens per frame", 8, 0.9],
                 inputs=[{**tokens, "link": 1}],
                 outputs=[{**tokens, "links": [2, 3]},
                          {"name": "budget", "type": "INT", "links": None}]),
            node(13, "VFTTokensInfo", 700, [], inputs=[{**tokens, "link": 2}]),
        ],
        "links": [link(1, -10, 12), link(2, 12, 13), link(3, 12, -20)],
    }  # fmt: skip
    nodes = [
        node(1, "VFTLoadTokens", 50, [EXAMPLE], outputs=[{**tokens, "links": [1]}]),
        node(4, INSIDE, 420, [], inputs=[{**tokens, "link": 1}],
             outputs=[{**tokens, "links": [2]}]),
        node(2, "VFTTruncate", 800, ["tokens per frame", 2, 0.9], inputs=[{**tokens, "link": 2}],
             outputs=[{**tokens, "links": [3]}, {"name": "budget", "type": "INT", "links": None}]),
        node(3, "VFTTokensInfo", 1200, [], inputs=[{**tokens, "link": 3}]),
    ]  # fmt: skip
    links = [[1, 1, 0, 4, 0, "VFT_TOKENS"], [2, 4, 0, 2, 0, "VFT_TOKENS"],
             [3, 2, 0, 3, 0, "VFT_TOKENS"]]  # fmt: skip
    return {
        "id": "5c5f3f8e-0b1d-4c54-9d6e-6a7b8f2f0a99", "last_node_id": 4, "last_link_id": 3,
        "nodes": nodes, "links": links, "groups": [], "config": {}, "extra": {}, "version": 0.4,
        "definitions": {"subgraphs": [inside]},
    }  # fmt: skip


def shown(app: Any, number: int) -> dict[str, str]:
    """Line and result of a node of ours, wherever it is."""
    return app.js(
        """(number) => {
          const root = app.graph.rootGraph ?? app.graph;
          const graph = number > 10 ? [...root.subgraphs.values()][0] : root;
          const { element } = graph.getNodeById(number).widgets.find((w) => w.name === "vft_panel");
          const text = (part) => element.querySelector(".vft-" + part).textContent;
          return { line: text("line"), result: text("result"), chips: text("chips") };
        }""",
        number,
    )


def test_a_budget_knows_what_comes_through_a_subgraphs_border(app: Any) -> None:
    """Into it and out of it."""
    app.open(nested())
    assert set(app.prompt()) == {"1", "2", "3", "4:12", "4:13"}
    assert shown(app, 12)["line"] == "8 per latent frame · 16 B each"
    app.run()
    found = shown(app, 12)
    assert found["line"] == "8 per frame · 72 tokens · 144 B · 8× below a 3D grid"
    assert found["chips"] == "12481632"  # the example holds 32
    found = shown(app, 2)
    assert found["line"] == "2 per frame · 18 tokens · 36 B · 32× below a 3D grid"
    assert found["chips"] == "1248"  # what the subgraph leaves


def test_a_change_of_tabs_takes_nothing_from_a_subgraph(app: Any) -> None:
    app.open(nested(), "nested")
    app.run()
    app.page.locator(".vft-chips:visible button", has_text="4").first.click()
    app.page.wait_for_timeout(500)  # older pages keep no results of a tab without a change
    before = [shown(app, number) for number in (2, 3, 12, 13)]
    assert "grid: 9 latent frames × 8 tokens" in before[3]["result"]
    app.open(chain(), "flat")
    app.js("() => app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
    app.page.wait_for_function("() => app.graph.nodes.length === 4")
    app.page.wait_for_timeout(500)
    assert [shown(app, number) for number in (2, 3, 12, 13)] == before
    app.js("() => app.canvas.openSubgraph(app.graph.nodes.find((n) => n.subgraph).subgraph)")
    app.page.locator(".vft-line:visible", has_text="8 per frame · 72 tokens").wait_for()
    app.screenshot("inside-a-subgraph")
