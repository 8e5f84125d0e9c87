"""The pack's own front end: budget, results, token files, colours; on the legacy canvas and with
Nodes 2.0."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from browser.page_server import WEB
from vft_lib.tokens import Tokens

EXAMPLE = "example.vft [pack]"


def node(number: int, kind: str, x: int, values: list[Any], **more: Any) -> dict[str, Any]:
    return {
        "id": number, "type": kind, "pos": [x, 100], "size": [320, 160], "flags": {}, "mode": 0,
        "order": number, "properties": {"Node name for S&R": kind}, "widgets_values": values,
        **more,
    }  # fmt: skip


def chain(by: str = "tokens per frame", budget: int = 4) -> dict[str, Any]:
    """Load Tokens -> Truncate Prefix -> Tokens Info."""
    tokens = {"name": "tokens", "type": "VFT_TOKENS"}
    nodes = [
        node(1, "VFTLoadTokens", 50, [EXAMPLE], outputs=[{**tokens, "links": [1]}]),
        node(2, "VFTTruncate", 420, [by, budget, 0.9], inputs=[{**tokens, "link": 1}],
             outputs=[{**tokens, "links": [2]}, {"name": "budget", "type": "INT", "links": None}]),
        node(3, "VFTTokensInfo", 800, [], inputs=[{**tokens, "link": 2}]),
    ]  # fmt: skip
    links = [[1, 1, 0, 2, 0, "VFT_TOKENS"], [2, 2, 0, 3, 0, "VFT_TOKENS"]]
    return {"last_node_id": 3, "last_link_id": 2, "nodes": nodes, "links": links, "groups": [],
            "config": {}, "extra": {}, "version": 0.4}  # fmt: skip


def some_tokens(path: Path, workflow: dict[str, Any] | None = None) -> Path:
    ids = torch.arange(5 * 4).reshape(1, 5, 4)
    tokens = Tokens(ids, "tiny", "0" * 16, frames=17, fps=8.0, size=(64, 64))
    tokens.save(path, {} if workflow is None else {"workflow": json.dumps(workflow)})
    return path


def line(app: Any) -> str:
    return app.page.locator(".vft-line:visible").first.inner_text()


def run(app: Any) -> None:
    """Press Run, and wait until Tokens Info has its answer."""
    app.js("() => app.queuePrompt(0)")
    app.page.locator(".vft-result", has_text="latent frames ×").wait_for()


def click_widget(app: Any, number: int, name: str, from_right: int) -> None:
    """On the legacy canvas: click on a widget, so many pixels from the node's right border."""
    at = app.js(
        """([number, name, fromRight]) => {
          const node = app.graph.getNodeById(number);
          const widget = node.widgets.find((w) => w.name === name);
          const { left, top } = app.canvas.canvas.getBoundingClientRect();
          const [x, y] = app.canvas.convertOffsetToCanvas(
            [node.pos[0] + node.size[0] - fromRight, node.pos[1] + widget.last_y + 10]);
          return [left + x, top + y];
        }""",
        [number, name, from_right],
    )
    app.page.mouse.click(*at)


def module(app: Any, name: str, expression: str, argument: Any = None) -> Any:
    """Something of one of our JavaScript files: `m` is the module, `a` the argument."""
    url = f"/extensions/videoflextok/{name}.js"
    return app.js(f"async (a) => {{ const m = await import('{url}'); return {expression}; }}",
                  argument)  # fmt: skip


def test_every_file_of_ours_is_loaded_and_registers_once(app: Any) -> None:
    assert app.js("() => app.extensions.filter((e) => e.name === 'VideoFlexTok').length") == 1
    assert sorted(p.name for p in WEB.glob("*.js")) == [
        "auto.js", "budget.js", "colours.js", "files.js", "graphs.js", "grid.js", "live.js",
        "models.js", "panel.js", "refused.js", "videoflextok.js",
    ]  # fmt: skip


def test_all_nodes_can_be_added(app: Any, host: Any) -> None:
    app.open({**chain(), "nodes": [], "links": []})
    ours = list(host.nodes)
    app.js(
        "(names) => names.forEach((n, i) => { const node = LiteGraph.createNode(n);"
        " node.pos = [(i % 6) * 360, Math.floor(i / 6) * 420]; app.graph.add(node); })", ours,
    )  # fmt: skip
    app.fit()
    app.screenshot("all-nodes")
    assert app.js("() => app.graph.nodes.length") == len(ours) == 16


def test_a_budget_says_what_it_means_before_and_after_a_run(app: Any) -> None:
    app.open(chain())
    assert line(app) == "4 per latent frame · 8 B each"
    run(app)
    # The example: 33 frames, 9 latent frames of 32 tokens, at 128 px: 64 cells of a 3D grid each.
    assert line(app) == "4 per frame · 36 tokens · 72 B · 16× below a 3D grid"
    app.fit()
    app.screenshot("after-a-run")


def test_the_numbers_are_those_of_the_readme(app: Any) -> None:
    grid = {"latent_frames": 21, "budget": 256, "frames": 81, "fps": 8, "size": [256, 256]}
    said = module(app, "budget", "m.describe('tokens per frame', 32, 0.9, a, true)", grid)
    assert said["text"] == "32 per frame · 672 tokens · 1.3 kB · 8× below a 3D grid"


@pytest.mark.parametrize(
    ("by", "budget", "expected", "warning"),
    [
        ("tokens per frame", 16, "16 per frame · 144 tokens · 288 B · as many as a 3D grid", False),
        ("tokens per frame", 17, "too many: these tokens hold 16 per frame", True),
        ("tokens in all", 40, "4 per frame · 36 tokens · 72 B · 4× below a 3D grid", False),
        ("tokens in all", 8, "too few: this clip needs at least 9 tokens", True),
        ("bytes", 100, "5 per frame · 45 tokens · 90 B · 3.2× below a 3D grid", False),
        ("bytes", 9999, "16 per frame · 144 tokens · 288 B · as many as a 3D grid", False),
        ("information", 1, "as few as keep 90 % of the bits", False),
    ],
)
def test_every_way_to_count_is_described(
    app: Any, by: str, budget: int, expected: str, warning: bool
) -> None:
    grid = {"latent_frames": 9, "budget": 16, "frames": 33, "fps": 8, "size": [64, 64]}
    said = module(app, "budget", "m.describe(...a, true)", [by, budget, 0.9, grid])
    assert said["text"] == expected
    assert bool(said.get("warning")) == warning


def test_the_budget_is_what_the_node_then_keeps(app: Any, host: Any) -> None:
    """The line's arithmetic and `Tokens.budget_within` are the same."""
    grid = {"latent_frames": 9, "budget": 32, "frames": 33, "fps": 8, "size": [128, 128]}
    loaded = host.nodes["VFTLoadTokens"].PREPARE_CLASS_CLONE(None)
    (tokens,) = loaded.EXECUTE_NORMALIZED(file=EXAMPLE).result
    for by in ("tokens in all", "bytes"):
        for budget in (18, 19, 100, 143, 144, 287, 288, 5000):
            cls = host.nodes["VFTTruncate"].PREPARE_CLASS_CLONE(None)
            kept = cls.EXECUTE_NORMALIZED(tokens=tokens, by=by, budget=budget, keep_bits=0.9)
            said = module(app, "budget", "m.describe(...a, true).text", [by, budget, 0.9, grid])
            assert said.startswith(f"{kept.result[1]} per frame · ")


UNEVEN = {
    "latent_frames": 9, "budget": 6, "frames": 33, "fps": 8, "size": [64, 64],
    "bars": [6, 6, 5, 5, 4, 1, 1, 1, 1], "holding": [9, 5, 5, 5, 4, 2],
}  # fmt: skip


@pytest.mark.parametrize(
    ("by", "budget", "expected"),
    [
        ("tokens per frame", 2, "at most 2 per frame · 14 tokens · 28 B · 10.3× below a 3D grid"),
        ("tokens per frame", 7, "too many: these tokens hold 6 per frame"),
        ("tokens in all", 25, "at most 4 per frame · 24 tokens · 48 B · 6× below a 3D grid"),
        ("bytes", 999, "at most 6 per frame · 30 tokens · 60 B · 4.8× below a 3D grid"),
    ],
)  # fmt: skip
def test_budgets_of_uneven_tokens(app: Any, by: str, budget: int, expected: str) -> None:
    said = module(app, "budget", "m.describe(...a, true)", [by, budget, 0.9, UNEVEN])
    assert said["text"] == expected
    assert bool(said.get("warning")) == expected.startswith("too many")
    again = "m.describe(...a, true, undefined, undefined, true)"
    assert "cut already" in module(app, "budget", again, [by, budget, 0.9, UNEVEN])["text"]


@pytest.mark.parametrize(
    ("by", "budget", "expected"),
    [
        ("tokens per frame", 4, "4 per frame on average · 36 tokens · 72 B · 4× below a 3D grid"),
        ("tokens in all", 40, "4.4 per frame on average · 40 tokens · 80 B · 3.6× below a 3D grid"),
        ("bytes", 101, "5.6 per frame on average · 50 tokens · 100 B · 2.9× below a 3D grid"),
        ("tokens in all", 8, "too few: this clip needs at least 9 tokens"),
        ("tokens per frame", 17, "too many: these tokens hold 16 per frame"),
        ("information", 1, "as few as keep 90 % of the bits"),
    ],
)
def test_an_adaptive_budget_says_what_the_clip_costs(
    app: Any, by: str, budget: int, expected: str
) -> None:
    grid = {"latent_frames": 9, "budget": 16, "frames": 33, "fps": 8, "size": [64, 64]}
    call = "m.describe(...a, true, undefined, undefined, true).text"
    assert module(app, "budget", call, [by, budget, 0.9, grid]) == expected


def test_the_budget_over_time_is_drawn(app: Any) -> None:
    """On the node that chose it, on those behind it, and after a change of tabs."""
    graph = chain()
    graph["nodes"][1]["widgets_values"] = ["tokens in all", 41, 0.9, True]
    prior = {"name": "prior", "type": "VFT_PRIOR", "link": 3}
    graph["nodes"][1]["inputs"].append(prior)
    loader = {"name": "prior", "type": "VFT_PRIOR", "links": [3]}
    graph["nodes"].append(
        node(4, "VFTLoadPrior", 50, ["default", "auto", "auto"], outputs=[loader])
    )
    graph["links"].append([3, 4, 0, 2, 1, "VFT_PRIOR"])
    graph |= {"last_node_id": 4, "last_link_id": 3}
    app.open(graph, "adaptive")
    bars = app.page.locator(".vft-chart i")
    assert bars.count() == 0
    run(app)
    assert app.prompt()["2"]["inputs"]["adaptive"] is True
    assert line(app) == "4.6 per frame on average · 41 tokens · 82 B · 13.9× below a 3D grid"
    assert bars.count() == 18
    heights = bars.evaluate_all("(all) => all.map((i) => i.offsetHeight)")
    assert heights[:9] == heights[9:] and len(set(heights)) > 1
    assert max(heights) == 28
    text = app.page.locator(".vft-result").all_inner_texts()
    assert any(" to " in t and "41 tokens" in t for t in text)
    app.screenshot("adaptive")
    app.open(chain(), "other")
    assert bars.count() == 0
    app.js("() => app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
    app.page.wait_for_function("() => document.querySelectorAll('.vft-chart i').length === 18")


def test_buttons_step_in_powers_of_two_and_the_field_stays_free(app: Any) -> None:
    app.open(chain())
    buttons = app.page.locator(".vft-chips button")
    assert buttons.all_inner_texts() == [str(2**i) for i in range(9)]
    run(app)  # now it is known that there are 32
    assert buttons.all_inner_texts() == ["1", "2", "4", "8", "16", "32"]
    buttons.filter(has_text="8").click()
    assert app.prompt()["2"]["inputs"]["budget"] == 8
    assert line(app).startswith("8 per frame · 72 tokens")
    assert buttons.filter(has_text="8").get_attribute("aria-pressed") == "true"
    app.js(
        "() => { const w = app.graph.getNodeById(2).widgets.find((w) => w.name === 'budget');"
        " w.value = 5; w.callback(5); }"
    )
    assert app.prompt()["2"]["inputs"]["budget"] == 5
    assert line(app).startswith("5 per frame · 45 tokens")


def test_the_field_itself_moves_the_line(app: Any) -> None:
    app.open(chain())
    app.fit()
    if app.nodes2:
        app.page.locator("[data-node-id='2'] input[inputmode]").first.focus()
        app.page.keyboard.press("Control+a")
        app.page.keyboard.type("5")
        app.page.keyboard.press("Tab")
    else:  # drawn on the canvas: its right arrow
        click_widget(app, 2, "budget", from_right=22)
    app.page.wait_for_timeout(300)
    assert app.prompt()["2"]["inputs"]["budget"] == 5
    assert line(app) == "5 per latent frame · 10 B each"


def test_a_connected_budget_has_no_buttons(app: Any) -> None:
    app.open(chain())
    app.js(
        "() => { const a = LiteGraph.createNode('VFTTruncate'); app.graph.add(a);"
        " const b = app.graph.getNodeById(2);"
        " a.connect(1, b, b.findInputSlot('budget')); }"
    )
    assert app.prompt()["2"]["inputs"]["budget"] == ["4", 1]
    second = app.js(
        "() => { const w = app.graph.getNodeById(2).widgets.find((w) => w.name === 'vft_panel');"
        " return [w.element.querySelectorAll('button').length,"
        " w.element.querySelector('.vft-line').textContent]; }"
    )
    assert second == [0, ""]


def test_results_are_shown_and_not_saved(app: Any) -> None:
    app.open(chain())
    before = app.js("() => app.graph.serialize().nodes.map((n) => [n.id, n.widgets_values ?? []])")
    sent = app.prompt()
    run(app)
    results = app.page.locator(".vft-result").all_inner_texts()
    assert any("of tokenizer vft-small" in r for r in results)
    assert any("grid: 9 latent frames × 4 tokens" in r for r in results)
    after = app.js("() => app.graph.serialize().nodes.map((n) => [n.id, n.widgets_values ?? []])")
    assert sorted(after) == sorted(before)
    assert dict(before)[2] == ["tokens per frame", 4, 0.9, False], "an older file has no `adaptive`"
    assert app.prompt() == sent
    assert sent["2"]["inputs"] == {
        "by": "tokens per frame", "budget": 4, "keep_bits": 0.9, "adaptive": False,
        "tokens": ["1", 0],
    }  # fmt: skip


def test_results_survive_an_undo_and_a_change_of_tabs(app: Any) -> None:
    app.open(chain(), "first")
    run(app)
    app.page.locator(".vft-chips button", has_text="8").click()
    assert line(app).startswith("8 per frame")
    app.page.wait_for_timeout(500)
    app.js("() => app.extensionManager.command.execute('Comfy.Undo')")
    app.page.locator(".vft-line", has_text="4 per frame · 36 tokens").wait_for()
    app.page.locator(".vft-chips button", has_text="16").click()  # of the node that is there now
    assert app.prompt()["2"]["inputs"]["budget"] == 16
    assert line(app).startswith("16 per frame")
    app.page.wait_for_timeout(500)
    app.open(chain(budget=2), "second")
    assert line(app) == "2 per latent frame · 4 B each"  # of another workflow nothing is known
    app.js("() => app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
    app.page.locator(".vft-line", has_text="16 per frame · 144 tokens").wait_for()


def drop(app: Any, file: Path, at: tuple[int, int], shift: bool = False) -> None:
    app.js(
        """async ([name, data, [clientX, clientY], shiftKey]) => {
          const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File([bytes], name));
          const target = document.elementFromPoint(clientX, clientY);
          target.dispatchEvent(new DragEvent("drop", { dataTransfer, clientX, clientY, shiftKey,
                                                       bubbles: true, cancelable: true }));
        }""",
        [file.name, base64.b64encode(file.read_bytes()).decode(), at, shift],
    )


def test_a_dropped_file_becomes_a_node_there(app: Any, host: Any, tmp_path: Path) -> None:
    app.open({**chain(), "nodes": [], "links": []})
    file = some_tokens(tmp_path / f"dropped-{app.nodes2}.vft")
    drop(app, file, (700, 500))
    app.page.wait_for_function(
        "(n) => app.graph.nodes.some((x) => x.widgets?.[0]?.value === n)", arg=file.name
    )
    (loader,) = app.prompt().values()
    assert loader == {"class_type": "VFTLoadTokens", "inputs": {"file": file.name}}
    assert (host.base / "input" / file.name).read_bytes() == file.read_bytes()
    x, y = app.js("() => app.canvas.convertOffsetToCanvas([...app.graph.nodes[0].pos])")
    left, top = app.js("() => { const b = app.canvas.canvas.getBoundingClientRect();"
                       " return [b.left, b.top]; }")  # fmt: skip
    assert (x + left, y + top) == pytest.approx((700, 500), abs=12)  # it may snap to the grid
    app.screenshot("dropped")


def test_a_file_dropped_on_load_tokens_is_chosen_there(app: Any, tmp_path: Path) -> None:
    app.open(chain())
    app.fit()
    file = some_tokens(tmp_path / f"onto-{app.nodes2}.vft")
    at = app.js(
        "() => { const n = app.graph.getNodeById(1), b = app.canvas.canvas.getBoundingClientRect();"
        " const [x, y] = app.canvas.convertOffsetToCanvas([n.pos[0] + 40, n.pos[1] + 20]);"
        " return [x + b.left, y + b.top]; }"
    )
    drop(app, file, at)
    app.page.wait_for_function(
        "(n) => app.graph.getNodeById(1).widgets[0].value === n", arg=file.name
    )
    assert app.js("() => app.graph.nodes.length") == 3


def test_with_shift_the_workflow_in_the_file_is_opened(app: Any, tmp_path: Path) -> None:
    app.open({**chain(), "nodes": [], "links": []})
    file = some_tokens(tmp_path / "carries.vft", chain(budget=3))
    drop(app, file, (700, 500), shift=True)
    app.page.wait_for_function("app.graph.nodes.length === 3")
    assert app.prompt()["2"]["inputs"]["budget"] == 3


def test_a_file_without_a_workflow_is_loaded_even_with_shift(app: Any, tmp_path: Path) -> None:
    app.open({**chain(), "nodes": [], "links": []})
    drop(app, some_tokens(tmp_path / f"plain-{app.nodes2}.vft"), (700, 500), shift=True)
    app.page.wait_for_function("app.graph.nodes.length === 1")
    app.page.get_by_text("holds no workflow").first.wait_for()


def test_other_files_are_left_to_the_page(app: Any, tmp_path: Path) -> None:
    app.open({**chain(), "nodes": [], "links": []})
    file = tmp_path / "workflow.json"
    file.write_text(json.dumps(chain()))
    drop(app, file, (700, 500))
    app.page.wait_for_function("app.graph.nodes.length === 3")


def test_an_upload_is_chosen(app: Any, host: Any, tmp_path: Path) -> None:
    app.open(chain())
    app.fit()
    file = some_tokens(tmp_path / f"chosen-{app.nodes2}.vft")
    with app.page.expect_file_chooser() as chooser:
        if app.nodes2:
            app.page.get_by_text("choose .vft file to upload").click()
        else:
            click_widget(app, 1, "upload_vft", from_right=100)
    assert not chooser.value.is_multiple()
    chooser.value.set_files(file)
    app.page.wait_for_function(
        "(n) => app.graph.getNodeById(1).widgets[0].value === n", arg=file.name
    )
    assert app.prompt()["1"]["inputs"] == {"file": file.name}
    assert (host.base / "input" / file.name).exists()
    run(app)  # the node reads what was uploaded
    assert "20 tokens" in app.page.locator(".vft-result", has_text="of tokenizer").inner_text()


def test_sockets_and_wires_have_our_colours_in_every_palette(app: Any) -> None:
    ask = """() => [app.canvas.default_connection_color_byType.VFT_TOKENS,
                    app.canvas.constructor.link_type_colors.VFT_TOKENS,
                    getComputedStyle(document.documentElement)
                      .getPropertyValue("--color-datatype-VFT_TOKENS").trim()]"""
    set_palette = "(id) => app.extensionManager.setting.set('Comfy.ColorPalette', id)"
    assert app.js(ask) == ["#4fd6be"] * 3
    app.js(set_palette, "light")
    app.page.wait_for_timeout(300)
    assert app.js(ask) == ["#4fd6be"] * 3
    app.js(set_palette, "dark")
    app.page.wait_for_timeout(300)
    assert app.js(ask) == ["#4fd6be"] * 3


def test_every_node_has_a_help_page_that_is_served(app: Any, host: Any) -> None:
    url = "/extensions/videoflextok/docs/{}.md"
    for name in host.nodes:
        answer = app.page.request.get(app.server.url.rstrip("/") + url.format(name))
        assert answer.ok and answer.text().startswith("# "), name
