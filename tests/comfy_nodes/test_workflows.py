"""The workflows that come with the pack: sound files, of these nodes, that run."""

from __future__ import annotations

import copy
import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from workflow_files import (
    API,
    NAMES,
    NOTES,
    SAVED,
    SUBGRAPHS,
    WORKFLOWS,
    read,
    to_api,
    widget_values,
)

from comfy_nodes.test_nodes_schema import STORED
from vft_lib.models.catalog import catalog

CORE = {
    "SaveVideo": (["video: VIDEO", "filename_prefix: STRING", "format: COMBO", "codec: COMBO"], []),
    "PreviewImage": (["images: IMAGE"], []),
    "PreviewAny": (["source: *"], []),
    "ImageFromBatch": (["image: IMAGE", "batch_index: INT", "length: INT"], ["IMAGE"]),
    "RepeatImageBatch": (["image: IMAGE", "amount: INT"], ["IMAGE"]),
    "ImageBatch": (["image1: IMAGE", "image2: IMAGE"], ["IMAGE"]),
    "EmptyImage": (["width: INT", "height: INT", "batch_size: INT", "color: INT"], ["IMAGE"]),
    "ImageCompositeMasked": (
        ["destination: IMAGE", "source: IMAGE", "mask: MASK?", "x: INT", "y: INT",
         "resize_source: BOOLEAN"], ["IMAGE"],
    ),
    "CLIPVisionLoader": (["clip_name: COMBO"], ["CLIP_VISION"]),
    "CLIPLoader": (["clip_name: COMBO", "type: COMBO", "device: COMBO?"], ["CLIP"]),
}  # fmt: skip
"""Core nodes as ComfyUI 0.3.64 and 0.8.0 have them: inputs, types of the outputs."""

FILE: dict[str, type] = {
    "id": str, "revision": int, "last_node_id": int, "last_link_id": int, "nodes": list,
    "links": list, "groups": list, "config": dict, "extra": dict, "version": float,
}  # fmt: skip
NODE: dict[str, type] = {
    "id": int, "type": str, "pos": list, "size": list, "flags": dict, "order": int, "mode": int,
    "inputs": list, "outputs": list, "properties": dict, "widgets_values": list,
}  # fmt: skip
MAY: dict[str, type] = {"title": str, "color": str, "bgcolor": str}

OLD = sorted(SAVED.glob("*/*.json"))
ALL = [pytest.param(WORKFLOWS / f"{n}.json", id=n) for n in NAMES]
BLUEPRINTS = [pytest.param(p, id=p.stem) for p in sorted(SUBGRAPHS.glob("*.json"))]
BOTH = [*ALL, *(pytest.param(p, id=f"{p.parent.name} {p.stem}") for p in OLD)]


def fields(value: dict[str, Any], must: dict[str, type], may: dict[str, type]) -> None:
    assert must.keys() <= value.keys() <= must.keys() | may.keys()
    for name, kind in (must | may).items():
        assert name not in value or type(value[name]) is kind, name


def boxes(workflow: dict[str, Any]) -> list[tuple[float, ...]]:
    """Left, top, right, bottom of each node, its title bar included."""
    return [
        (n["pos"][0], n["pos"][1] - 30, n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1])
        for n in workflow["nodes"]
    ]


def apart(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_there_are_workflows() -> None:
    assert len(BLUEPRINTS) == 2
    assert len(NAMES) >= 9
    assert OLD, "a saved copy of every release stays"


@pytest.mark.parametrize("path", BOTH)
def test_the_file_is_what_the_front_end_writes(path: Any) -> None:
    workflow = read(path)
    fields(workflow, FILE, {})
    assert workflow["version"] == 0.4
    nodes = {n["id"]: n for n in workflow["nodes"]}
    assert len(nodes) == len(workflow["nodes"])
    assert max(nodes) == workflow["last_node_id"]
    for node in nodes.values():
        fields(node, NODE, MAY)
    assert sorted(n["order"] for n in nodes.values()) == list(range(len(nodes)))
    links = {link[0]: link for link in workflow["links"]}
    assert len(links) == len(workflow["links"]) == workflow["last_link_id"]
    for number, origin, slot, target, place, kind in links.values():
        output, socket = nodes[origin]["outputs"][slot], nodes[target]["inputs"][place]
        assert number in output["links"]
        assert socket["link"] == number
        assert kind == output["type"]
        assert socket["type"] in (kind, "*")
        assert nodes[origin]["order"] < nodes[target]["order"]
    for node in nodes.values():
        used = [i["link"] for i in node["inputs"] if i["link"] is not None]
        used += [number for o in node["outputs"] for number in o["links"] or []]
        assert set(used) <= links.keys()


@pytest.mark.parametrize("path", BOTH)
def test_nodes_are_ours_or_core(host: Any, path: Any) -> None:
    for node in read(path)["nodes"]:
        if node["type"] in NOTES:
            continue
        inputs = [f"{i['name']}: {i['type']}{'?' * (i.get('shape') == 7)}" for i in node["inputs"]]
        properties, outputs = node["properties"], [o["type"] for o in node["outputs"]]
        assert properties["Node name for S&R"] == node["type"]
        assert re.fullmatch(r"\d+\.\d+\.\d+", properties["ver"])
        if node["type"] in CORE:
            assert properties["cnr_id"] == "comfy-core"
            assert (inputs, outputs) == CORE[node["type"]]
            continue
        assert properties["cnr_id"] == "videoflextok-nodes"
        schema = host.nodes[node["type"]].GET_SCHEMA()
        now = [f"{i.id}: {i.get_io_type()}{'?' * i.optional}" for i in schema.inputs]
        assert set(inputs) <= set(now), "an input that a saved workflow has is gone"
        widgets = [name for name, _ in widget_values(node)]
        assert widgets == [i.id for i in schema.inputs if i.id in widgets], "widgets were reordered"
        assert [o["name"] for o in node["outputs"]] == [
            o.display_name for o in schema.outputs[: len(outputs)]
        ]


@pytest.mark.parametrize("path", ALL)
def test_a_workflow_says_what_to_look_at(path: Any) -> None:
    workflow = read(path)
    notes = [n for n in workflow["nodes"] if n["type"] in NOTES]
    assert len(notes) == 1
    title, text, *_ = notes[0]["widgets_values"][0].split("\n\n")
    assert title.startswith("## ")
    assert text.count(". ") + text.endswith(".") == 2, "two sentences: what to look at, to change"
    nodes = boxes(workflow)
    for i, a in enumerate(nodes):
        assert all(apart(a, b) for b in nodes[:i]), "nodes overlap"
    groups = [(x, y, x + w, y + h) for x, y, w, h in (g["bounding"] for g in workflow["groups"])]
    for i, a in enumerate(groups):
        assert all(apart(a, b) for b in groups[:i]), "groups overlap"
    assert all(g["title"] for g in workflow["groups"])
    for box, node in zip(nodes, workflow["nodes"]):
        around = [g for g in groups if not apart(box, g)]
        assert len(around) == (node["type"] not in NOTES), "every node is in one group"


@pytest.mark.parametrize("path", ALL)
def test_as_an_app_it_asks_for_widgets_and_shows_results(path: Any) -> None:
    """`extra.linearData`: the widgets it asks for, [node, name] each, and the nodes of results."""
    workflow = read(path)
    app, nodes = workflow["extra"]["linearData"], {n["id"]: n for n in workflow["nodes"]}
    assert app["inputs"]
    assert app["outputs"]
    for number, name in app["inputs"]:
        (widget,) = [i for i in nodes[number]["inputs"] if i["name"] == name]
        assert "widget" in widget
        assert widget["link"] is None
    names = [name for _, name in app["inputs"]]
    assert len(set(names)) == len(names), "two fields of one name cannot be told apart"
    shown = {nodes[number]["type"] for number in app["outputs"]}
    assert shown <= {"SaveVideo", "PreviewImage"}


@pytest.mark.parametrize("path", BLUEPRINTS)
def test_a_blueprint_is_of_our_nodes_as_they_are(host: Any, path: Any) -> None:
    blueprint = read(path)
    (outside,), (inside,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    assert outside["type"] == inside["id"]
    assert outside["title"] == inside["name"] == path.stem
    nodes = {str(n["id"]): n for n in inside["nodes"]}
    for node in nodes.values():
        schema = host.nodes[node["type"]].GET_SCHEMA()
        now = {i.id: i.get_io_type() for i in schema.inputs}
        assert {i["name"]: i["type"] for i in node["inputs"]}.items() <= now.items()
        widgets = [name for name, _ in widget_values(node)]
        assert widgets == [i.id for i in schema.inputs if i.id in widgets], "widgets were reordered"
    for link in inside["links"]:
        number, origin, target = link["id"], link["origin_id"], link["target_id"]
        if origin > 0:
            assert number in nodes[str(origin)]["outputs"][link["origin_slot"]]["links"]
        if target > 0:
            socket = nodes[str(target)]["inputs"][link["target_slot"]]
            assert (socket["link"], socket["type"]) == (number, link["type"])
    for number, name in outside["properties"]["proxyWidgets"]:
        assert name in dict(widget_values(nodes[number]))


@pytest.mark.parametrize("name", NAMES)
def test_the_picture_is_small(name: str) -> None:
    path = WORKFLOWS / f"{name}.jpg"
    assert path.stat().st_size < 60_000
    with Image.open(path) as picture:
        assert picture.size == (512, 288)
        assert np.asarray(picture).std() > 10


@pytest.mark.parametrize("name", NAMES)
def test_the_api_form_is_the_workflows(name: str) -> None:
    """`python tests/workflow_files.py` writes it anew."""
    assert read(API / f"{name}.json") == to_api(read(WORKFLOWS / f"{name}.json"))


def test_every_node_is_in_a_workflow_or_known_not_to_be() -> None:
    used = {n["type"] for p in WORKFLOWS.glob("*.json") for n in read(p)["nodes"]}
    known = {"VFTClassToTokens", "VFTJoinTokens", "VFTSliceTokens"}
    assert read(STORED).keys() - used == known


def test_models_are_linked_for_the_missing_models_dialog() -> None:
    linked = []
    for path in WORKFLOWS.glob("*.json"):
        for node in read(path)["nodes"]:
            for model in node["properties"].get("models", []):
                assert model.keys() == {"name", "url", "directory"}
                assert model["name"] in node["widgets_values"]
                assert model["url"].startswith("https://")
                assert model["url"].endswith(".safetensors")
                if model["directory"] in ("videoflextok", "clip_vision"):
                    entry = catalog()[model["name"].removesuffix(".safetensors")]
                    published = f"{entry.repo}/resolve/{entry.revision}/{entry.files[-1]}"
                    assert model["url"].endswith(f"/{published}")
                    linked.append(entry.name)
            values = [v for v in node["widgets_values"] if str(v).endswith(".safetensors")]
            assert values == [m["name"] for m in node["properties"].get("models", [])]
    assert len(linked) == 5


# ---------------------------------------------------------------------- run


@pytest.fixture(scope="module")
def execute(host: Any) -> Any:
    """An executor with tiny models in the place, and under the names, of the published ones."""
    from comfy_graph import Executor
    from comfy_host import Clip
    from conftest import save_tiny
    from prior.test_prior import PUBLISHED, made

    from vft_lib.checkpoints.checkpoint import save_prior

    save_tiny(host.models / "videoflextok_d18_d28.safetensors", 1, "videoflextok_d18_d28", 40)
    save_tiny(host.models / "uco3d-videoflextok.safetensors", 2, "uco3d-videoflextok", 40)
    config = dataclasses.replace(
        PUBLISHED, name="uco3d-videoflextok-d16", tokenizer="uco3d-videoflextok", seq_len=200,
        ctx_dim=Clip.dim,
    )  # fmt: skip
    state = made(config).state_dict()
    save_prior(host.models / "uco3d-videoflextok-d16.safetensors", config, state, None)
    pytest.importorskip("transformers", reason="transformers is missing: pip install .[dino]")
    from semantok import save_semantok, semantok_config

    semantok = semantok_config(chunk=17, name="k600-semantok", registers=40)
    save_semantok(host.models / "k600-semantok.safetensors", semantok)
    return Executor(host)


def quick(name: str) -> dict[str, Any]:
    """A workflow's graph with one sampling step where it says 0, "what is best"; long clips as
    drafts."""
    prompt = copy.deepcopy(read(API / f"{name}.json"))
    for node in prompt.values():
        if node["inputs"].get("steps") == 0:
            node["inputs"]["steps"] = 1
        if max(EXPECTED[name]["frames"]) > 100 and "quality" in node["inputs"]:
            node["inputs"]["quality"] = "draft"
    return prompt


EXPECTED: dict[str, dict[str, Any]] = {
    "01_reconstruct_at_any_budget": {"frames": [33, 33], "budgets": [32]},
    "02_text_to_video": {"frames": [81], "budgets": [16]},
    "03_long_clip_streaming": {"frames": [161], "budgets": [32]},
    "04_budget_sweep": {"frames": [33], "budgets": []},
    "05_refine_details": {"frames": [17, 17], "budgets": [2, 16]},
    "06_first_frame_edit": {"frames": [17, 17], "budgets": [1]},
    "07_share_tokens": {"frames": [33], "budgets": [32, 32]},
    "08_published_tokenizer": {"frames": [33, 33], "budgets": [32]},
    "09_published_text_to_video": {"frames": [17], "budgets": [32]},
    "10_long_clip_adaptive": {"frames": [161], "bytes": 2700},
    "11_semantok_encode": {"frames": [33, 33], "budgets": [32]},
}
"""Frames of the videos saved, and budgets of the tokens made from others' or from words, or what
they take together."""
MAKERS = {"VFTTruncate", "VFTTextToTokens", "VFTRefine", "VFTLoadTokens"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_workflow_runs(execute: Any, name: str) -> None:
    from comfy_host import read_frames

    prompt = quick(name)
    results = execute(prompt)
    assert results.keys() == prompt.keys(), "a node that nothing depends on"
    by_type: dict[str, list[Any]] = {}
    for node_id, node in prompt.items():
        by_type.setdefault(node["class_type"], []).append(results[node_id])
    videos = [np.stack(list(read_frames(path))) for (path,) in by_type["SaveVideo"]]
    assert [len(v) for v in videos] == EXPECTED[name]["frames"]
    assert all(len(np.unique(v)) > 20 for v in videos), "a picture"
    made = [tokens for kind in MAKERS for tokens, *_ in by_type.get(kind, [])]
    if "bytes" in EXPECTED[name]:  # which part gets how many, a processor's rounding decides
        (tokens,) = made
        assert tokens.id_bytes == EXPECTED[name]["bytes"]
        assert len(set(tokens.rows)) > 1, "not all parts need the same"
    else:
        assert sorted(t.budget for t in made) == EXPECTED[name]["budgets"]
    assert all(len(torch.unique(t.ids)) > 1 for t in made)
    if name.startswith("05"):
        coarse, fine = sorted(made, key=lambda t: t.budget)
        assert torch.equal(fine.ids[:, :, :2], coarse.ids)
    if name.startswith("06"):
        plain, edited = videos
        assert np.abs(plain[0].astype(int) - edited[0]).max() > 100
        assert (edited[0].reshape(-1, 3).argmax(1) == 2).sum() > 100, "a blue square"


@pytest.mark.parametrize("path", BOTH)
def test_workflows_of_every_release_are_accepted(execute: Any, path: Any) -> None:
    execute.check(to_api(read(path)))
