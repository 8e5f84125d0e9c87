"""The loaders' choices of how a model runs: old workflows get them, and what cannot run on this
machine is marked; on the legacy canvas and with Nodes 2.0."""

from __future__ import annotations

import json
from typing import Any

from browser.page_server import PACK_ROOT
from browser.test_front_end import module, node
from browser.test_models import part

SAVED = PACK_ROOT / "tests" / "workflows" / "saved" / "0.1.0"


def loader(**chosen: str) -> dict[str, Any]:
    asked = {"attention": "auto", "weights": "as they are", "compile": "off", "memory": "auto"}
    values = ["default", "auto", "auto", *(asked | chosen).values()]
    nodes = [node(1, "VFTLoadTokenizer", 50, values), node(2, "VFTLoadPrior", 450, ["default"])]
    return {"last_node_id": 2, "last_link_id": 0, "nodes": nodes, "links": [], "groups": [],
            "config": {}, "extra": {}, "version": 0.4}  # fmt: skip


def test_a_workflow_from_before_has_them_as_ever(app: Any) -> None:
    workflow = json.loads((SAVED / "02_text_to_video.json").read_text("utf-8"))
    app.open(workflow)
    sent = {n["class_type"]: n["inputs"] for n in app.prompt().values()}
    assert sent["VFTLoadTokenizer"] == {
        "tokenizer": "default", "dtype": "auto", "device": "auto", "attention": "auto",
        "weights": "as they are", "compile": "off", "memory": "auto",
    }  # fmt: skip
    assert sent["VFTLoadPrior"]["compile"] == "off"


def test_what_cannot_run_here_is_marked_and_said(app: Any) -> None:
    app.open(loader(attention="xformers"))
    assert part(app, 1, "auto") == (
        "attention xformers does not run here: its kernels need a CUDA device"
    )
    labels = app.js(
        "() => { const w = app.graph.getNodeById(1).widgets.find((w) => w.name === 'attention');"
        " return w.options.values.map(w.options.getOptionLabel); }"
    )
    assert labels == ["auto", "comfyui", "sdpa", "xformers (not here)", "flex (not here)"]
    assert app.prompt()["1"]["inputs"]["attention"] == "xformers"  # another machine may run it
    app.js(
        "() => { const n = app.graph.getNodeById(1); n.showAdvanced = true;"
        " n.setSize(n.computeSize()); app.graph.setDirtyCanvas(true, true); }"
    )
    app.fit()
    app.page.wait_for_timeout(500)
    app.screenshot("resources")
    if app.nodes2:
        app.page.locator("[data-node-id='1']", has_text="xformers (not here)").wait_for()
    app.js(
        "() => { const w = app.graph.getNodeById(1).widgets.find((w) => w.name === 'attention');"
        " w.value = 'sdpa'; w.callback('sdpa'); }"
    )
    assert part(app, 1, "auto") == ""


def test_a_run_says_what_ran(app: Any) -> None:
    app.open(loader(attention="flex", weights="int8"))
    # An output node that asks for the tokenizer: without one nothing runs.
    app.js(
        "() => { const any = LiteGraph.createNode('PreviewAny'); app.graph.add(any);"
        " app.graph.getNodeById(1).connect(1, any, 'source'); }"
    )
    app.run()
    result = app.page.locator(".vft-result", has_text="vft-small · 128 px").inner_text()
    assert "attention: PyTorch SDPA, decoder in int8" in result
    assert "attention flex does not run here (encoder and decoder): on a CPU" in result


def test_choices_are_told_apart_by_node(app: Any) -> None:
    kind = ["COMBO", {"vft_refused": {"b": "why"}}]
    told = module(
        app, "refused",
        "[m.noteRefused(a), m.describeRefused('VFTOther', (n) => ({ kind: 'b' })[n]),"
        " m.describeRefused('VFTOther', () => 'c'), m.describeRefused('VFTEncode', () => 'b')]",
        {"name": "VFTOther", "input": {"optional": {"kind": kind}}},
    )  # fmt: skip
    assert told[1:] == ["kind b does not run here: why", "", ""]
