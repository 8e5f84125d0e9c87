"""What a real ComfyUI sees of the pack before anything runs, and what it refuses."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from comfyui.prompts import (
    LIMIT,
    straight_path,
)
from comfyui.server import PACK_NAME, ComfyUI
from PIL import Image

from vft_lib.files.packaged import packaged

ROOT = Path(__file__).parents[2]


def test_pack_loads_quietly(comfy: ComfyUI) -> None:
    before, times = comfy.log.split("Starting server")[0].split("Import times for custom nodes:")
    # A pack that does not load has "(IMPORT FAILED)" before the colon.
    assert re.search(rf"\d\.\d+ seconds: .*{PACK_NAME}$", times, re.MULTILINE)
    lines = [line for line in before.splitlines() if re.search(r"videoflextok|vft_", line, re.I)]
    assert [line for line in lines if "Adding extra search path" not in line] == []


def our_nodes(comfy: ComfyUI) -> dict[str, dict[str, Any]]:
    found = comfy.get("/object_info")
    ours = {n: info for n, info in found.items() if PACK_NAME in info.get("python_module", "")}
    assert ours, "ComfyUI has no node of the pack"
    return ours


def test_every_node_is_there_and_explains_itself(comfy: ComfyUI) -> None:
    source = "".join(file.read_text() for file in (ROOT / "vft_nodes").glob("*.py"))
    nodes = our_nodes(comfy)
    assert set(nodes) == set(re.findall(r'"(VFT[A-Z][A-Za-z]+)"', source))
    for name, info in nodes.items():
        assert info["description"], name
        assert info["category"].startswith("VideoFlexTok"), name
        assert len(info["output_tooltips"] or []) == len(info["output"]), name
        assert all(info["output_tooltips"] or []), name
        for group in info["input"].values():
            for widget, spec in group.items():
                if group is not info["input"].get("hidden"):
                    assert spec[1].get("tooltip"), f"{name}.{widget}"


def test_the_essential_nodes_are_among_comfyuis(comfy: ComfyUI) -> None:
    """Where this ComfyUI has such a list (after 0.8)."""
    found = comfy.get("/object_info")
    listed = {name for name, info in found.items() if info.get("essentials_category")}
    if found["SaveVideo"].get("essentials_category"):
        assert {"VFTEncode", "VFTDecode", "VFTTextToTokens"} <= listed
    else:
        assert not {name for name in listed if name.startswith("VFT")}


def test_blueprints_are_listed(comfy: ComfyUI) -> None:
    """Where this ComfyUI has subgraph blueprints (0.3.64 does not)."""
    if not (comfy.checkout / "app" / "subgraph_manager.py").exists():
        return
    found = comfy.get("/global_subgraphs")
    ours = {k: b["name"] for k, b in found.items() if PACK_NAME in b["info"]["node_pack"]}
    files = {file.stem: file for file in (ROOT / "subgraphs").glob("*.json")}
    assert sorted(ours.values()) == sorted(files)
    for key, name in ours.items():
        data = json.loads(comfy.get(f"/global_subgraphs/{key}")["data"])
        assert data == json.loads(files[name].read_text("utf-8"))


def test_every_node_has_a_help_page(comfy: ComfyUI) -> None:
    for name in our_nodes(comfy):
        page = comfy.fetch(f"/extensions/{PACK_NAME}/docs/{name}.md").decode()
        assert page.startswith("#"), name


def test_translations_are_served(comfy: ComfyUI) -> None:
    served = comfy.get("/i18n")
    languages = [folder.name for folder in (ROOT / "locales").iterdir()]
    assert languages
    for language in languages:
        assert set(our_nodes(comfy)) <= set(served[language]["nodeDefs"]), language


def test_scripts_are_served(comfy: ComfyUI) -> None:
    ours = [path for path in comfy.get("/extensions") if PACK_NAME in path]
    assert len(ours) == len(list((ROOT / "vft_nodes" / "web").rglob("*.js")))
    for path in ours:
        assert comfy.fetch(path)


def test_models_are_found_in_both_folders(comfy: ComfyUI) -> None:
    """The one below models/ and the one that extra_model_paths.yaml adds; no restart needed."""
    assert comfy.get("/models/videoflextok") == []
    folders = [comfy.base / "models" / "videoflextok", comfy.base / "extra"]
    folders[0].mkdir(exist_ok=True)
    files = [folder / f"{folder.name}.safetensors" for folder in folders]
    try:
        for file in files:
            shutil.copy(packaged("default.safetensors"), file)
            (file.parent / "notes.txt").touch()
        assert comfy.get("/models/videoflextok") == sorted(file.name for file in files)
        for file in files:
            prompt = straight_path(seed=1, steps=1)
            prompt["model"]["inputs"]["tokenizer"] = file.name
            assert comfy.run(prompt, LIMIT).status == "success"
    finally:
        for folder in folders:
            shutil.rmtree(folder)
            folder.mkdir()


def test_templates_are_listed_with_thumbnails(comfy: ComfyUI) -> None:
    workflows = ROOT / "workflows"
    names = sorted(file.stem for file in workflows.glob("*.json"))
    assert names
    assert sorted(comfy.get("/api/workflow_templates")[PACK_NAME]) == names
    for name in names:
        served = f"/api/workflow_templates/{PACK_NAME}/{name}"
        assert json.loads(comfy.fetch(f"{served}.json")) == json.loads(
            (workflows / f"{name}.json").read_text()
        )
        with Image.open(io.BytesIO(comfy.fetch(f"{served}.jpg"))) as picture:
            assert picture.format == "JPEG"


@pytest.mark.parametrize("name", ["/etc/hostname", "../outside.vft", "missing.vft"])
def test_token_files_outside_of_the_input_folder_are_refused(comfy: ComfyUI, name: str) -> None:
    shutil.copy(packaged("example.vft"), comfy.base / "outside.vft")
    prompt = {
        "1": {"class_type": "VFTLoadTokens", "inputs": {"file": name}},
        "2": {"class_type": "VFTTokensInfo", "inputs": {"tokens": ["1", 0]}},
    }
    with pytest.raises(RuntimeError, match=r"/prompt: 400 .*(not inside|no token file)"):
        comfy.run(prompt)


def test_a_users_mistake_is_one_line_on_the_node(comfy: ComfyUI) -> None:
    prompt = straight_path(seed=1)
    del prompt["encode"]["inputs"]["video"]
    run = comfy.run(prompt)
    assert run.status == "error"
    assert run.error["node_id"] == "encode"
    assert run.error["exception_message"].strip() == (
        "connect a video or images to VFT Encode, one of them"
    )
