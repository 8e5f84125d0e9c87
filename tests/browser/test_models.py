"""What nodes say of a model before it is loaded: budgets to offer, what automatic values come to;
on the legacy canvas and with Nodes 2.0."""

from __future__ import annotations

from typing import Any

import pytest

from browser.test_front_end import module, node

BUDGET, SCALE = 8, [[1, 1.0], [4, 2.0]]


def written(prior: str = "default", budget: int = BUDGET, values: Any = (0.0, -1.0)) -> Any:
    """Load Prior -> Text-to-Token Prior -> Refine Tokens; a Flow Decode and an Encode without a
    tokenizer."""
    guidance, temperature = values
    link = {"name": "prior", "type": "VFT_PRIOR"}
    tokens = {"name": "tokens", "type": "VFT_TOKENS"}
    sampling = [0, "fixed", guidance, temperature, 0, 1.0]
    nodes = [
        node(1, "VFTLoadPrior", 50, [prior, "auto", "auto"], outputs=[{**link, "links": [1, 2]}]),
        node(2, "VFTTextToTokens", 420, ["a red ball", budget, *sampling, 0],
             inputs=[{**link, "link": 1}], outputs=[{**tokens, "links": [3]}]),
        node(3, "VFTRefine", 800, ["", 16, *sampling],
             inputs=[{**link, "link": 2}, {**tokens, "link": 3}]),
        node(4, "VFTDecode", 1200, [0, 0.0, 0, "fixed", False, True]),
        node(5, "VFTLoadTokenizer", 50, ["default", "auto", "auto"]),
    ]  # fmt: skip
    links = [[1, 1, 0, 2, 0, "VFT_PRIOR"], [2, 1, 0, 3, 0, "VFT_PRIOR"],
             [3, 2, 0, 3, 1, "VFT_TOKENS"]]  # fmt: skip
    return {"last_node_id": 5, "last_link_id": 3, "nodes": nodes, "links": links, "groups": [],
            "config": {}, "extra": {}, "version": 0.4}  # fmt: skip


def part(app: Any, number: int, name: str) -> str:
    return app.js(
        "([n, part]) => app.graph.getNodeById(n).widgets.find((w) => w.name === 'vft_panel')"
        ".element.querySelector('.vft-' + part).textContent", [number, name],
    )  # fmt: skip


def test_a_prior_of_16_registers_offers_no_more(app: Any) -> None:
    app.open(written())
    assert part(app, 2, "chips") == "124816"
    assert part(app, 3, "chips") == "124816"
    app.open(written(budget=32))
    assert part(app, 2, "line") == "too many: this prior writes up to 16 per frame"


def test_refining_offers_more_than_there_is(app: Any) -> None:
    """As soon as that is known."""
    grid = {"latent_frames": 5, "budget": 4, "frames": 17, "fps": 8, "size": [64, 64]}
    app.open(written())
    app.js("(g) => app.graph.getNodeById(2).onExecuted({ vft_grid: [g] })", grid)
    assert part(app, 3, "chips") == "816"
    said = module(app, "budget", "m.describe('tokens per frame', 4, 0.9, a, false, 16, 4)", grid)
    assert said == {"text": "too few: these tokens hold 4 per frame already", "warning": True}


def test_automatic_values_are_named(app: Any, made: Any) -> None:
    prior, tokenizer = made.prior.model.config, made.tokenizer.model.config
    app.open(written())
    guidance, temperature = prior.guidance_for(BUDGET), prior.temperature
    told = f"auto: guidance {guidance:g} · temperature {temperature:g}"
    assert part(app, 2, "auto") == f"{told} · {prior.frames} frames"
    assert part(app, 3, "auto") == told
    assert part(app, 4, "auto") == "auto: steps · guidance"  # of which model?
    app.js("() => app.graph.getNodeById(5).connect(0, app.graph.getNodeById(4), 'tokenizer')")
    sampling = tokenizer.sampling
    told = f"auto: {sampling.steps} steps · guidance {sampling.guidance:g}"
    assert part(app, 4, "auto") == told
    app.js(
        "() => { const w = app.graph.getNodeById(4).widgets.find((w) => w.name === 'quality');"
        " w.value = 'draft'; w.callback('draft'); }"
    )
    sampling = sampling.of("draft")
    assert part(app, 4, "auto") == (
        f"auto: {sampling.steps} steps · guidance {sampling.guidance:g}"
    )
    app.js(
        "() => { const w = app.graph.getNodeById(4).widgets.find((w) => w.name === 'steps');"
        " w.value = 3; w.callback(3); }"
    )
    assert part(app, 4, "auto") == f"auto: guidance {sampling.guidance:g}"
    app.fit()
    app.screenshot("automatic-values")


def test_chosen_values_are_not(app: Any) -> None:
    app.open(written(values=(1.5, 0.0)))
    assert part(app, 3, "auto") == ""
    sent = app.prompt()["3"]["inputs"]
    assert (sent["guidance"], sent["temperature"]) == (1.5, 0.0)


def test_the_field_of_the_legacy_canvas_says_auto(app: Any) -> None:
    app.open(written())
    shown = app.js(
        "() => app.graph.getNodeById(3).widgets.filter((w) => ['guidance', 'temperature',"
        " 'top_p'].includes(w.name)).map((w) => [w._displayValue, w.value])"
    )
    if app.nodes2 and shown[0][0] is None:
        pytest.skip("widgets of Nodes 2.0 are not drawn by themselves")
    assert shown == [["auto", 0], ["auto", -1], ["1.00", 1]]


@pytest.mark.parametrize(("budget", "scale"), [(1, 1), (3, 1), (4, 2), (16, 2)])
def test_guidance_follows_the_budget(app: Any, budget: int, scale: float) -> None:
    model = {"registers": 16, "frames": 17, "temperature": 0.8, "guidance": SCALE}
    values = {"guidance": 0, "temperature": 0.8, "budget": budget}
    said = module(app, "auto", "m.describeAuto('VFTRefine', a[0], (n) => a[1][n])", [model, values])
    assert said == f"auto: guidance {scale}"


def test_a_workflow_opens_whose_model_file_tells_nothing(app: Any) -> None:
    """One that is damaged or half downloaded, or as published; it stopped loading the workflow."""
    app.js(
        """async () => {
          const all = await (await fetch("/object_info")).json();
          for (const [kind, list] of [["VFTLoadPrior", "prior"], ["VFTLoadTokenizer", "tokenizer"]])
            all[kind].input.required[list][1].vft_models["damaged.safetensors"] = {};
          app.extensions.find((e) => e.name === "VideoFlexTok").refreshComboInNodes(all);
        }"""
    )
    workflow = written(prior="damaged.safetensors")
    workflow["nodes"][4]["widgets_values"][0] = "damaged.safetensors"
    model = {"name": "tokenizer", "type": "VFT_TOKENIZER"}
    workflow["nodes"][4]["outputs"] = [{**model, "links": [4]}]
    workflow["nodes"][3]["inputs"] = [{**model, "link": 4}]
    workflow["links"].append([4, 5, 0, 4, 0, "VFT_TOKENIZER"])
    app.open(workflow)
    assert part(app, 2, "auto") == "auto: guidance · temperature · frames"
    assert part(app, 4, "auto") == "auto: steps · guidance"


def test_another_model_is_another_budget(app: Any) -> None:
    """The list as the key R brings it, and then a choice in it."""
    app.open(written())
    app.js(
        """() => {
          const list = { default: { registers: 16, guidance: [[1, 1]] },
                         "big.safetensors": { registers: 64, guidance: [[1, 3]], temperature: 1 } };
          const entry = { name: "VFTLoadPrior", input: { required: { prior: ["COMBO",
            { vft_models: list }] } } };
          app.extensions.find((e) => e.name === "VideoFlexTok")
            .refreshComboInNodes({ VFTLoadPrior: entry });
          const widget = app.graph.getNodeById(1).widgets.find((w) => w.name === "prior");
          widget.value = "big.safetensors";
          widget.callback("big.safetensors");
        }"""
    )
    assert part(app, 2, "chips") == "1248163264"
    assert part(app, 3, "auto") == "auto: guidance 3 · temperature 1"
