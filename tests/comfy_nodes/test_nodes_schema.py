"""What the nodes promise: their ids, inputs and outputs, which saved workflows rely on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

STORED = Path(__file__).parents[1] / "workflows" / "nodes.json"
"""Inputs and outputs of every node, in order: `widgets_values` and links are positional. Append to
it, never reorder; `python tests/comfy_nodes/test_nodes_schema.py` prints what there is now."""


def described(host: Any) -> dict[str, Any]:
    found = {}
    for node_id, node in host.nodes.items():
        schema = node.GET_SCHEMA()
        found[node_id] = {
            "inputs": [f"{i.id}: {i.get_io_type()}{'?' * i.optional}" for i in schema.inputs],
            "outputs": [f"{o.display_name}: {o.get_io_type()}" for o in schema.outputs],
        }
    return found


def test_inputs_and_outputs_keep_their_places(host: Any) -> None:
    now = described(host)
    for node_id, stored in json.loads(STORED.read_text()).items():
        for side, names in stored.items():
            assert now[node_id][side][: len(names)] == names, f"{node_id}: {side}"


def test_every_node_is_in_the_stored_list(host: Any) -> None:
    assert described(host) == json.loads(STORED.read_text())


def test_ids_names_and_categories(host: Any) -> None:
    for node_id, node in host.nodes.items():
        schema = node.GET_SCHEMA()
        assert re.fullmatch(r"VFT[A-Z][A-Za-z]+", node_id)
        assert "VFT" in schema.display_name
        assert schema.category == "VideoFlexTok"
        assert 20 < len(schema.description) < 300, node_id
    names = [n.GET_SCHEMA().display_name for n in host.nodes.values()]
    assert len(names) == len(set(names))


def test_every_input_and_output_says_what_it_is(host: Any) -> None:
    for node_id, node in host.nodes.items():
        schema = node.GET_SCHEMA()
        for port in (*schema.inputs, *schema.outputs):
            assert port.tooltip, f"{node_id}: {port.id}"
            assert port.tooltip.endswith("."), f"{node_id}: {port.tooltip}"
        assert len({o.display_name for o in schema.outputs}) == len(schema.outputs)


def test_seeds_can_change_after_a_run(host: Any) -> None:
    for node in host.nodes.values():
        for i in node.GET_SCHEMA().inputs:
            if i.id == "seed":
                assert i.control_after_generate


def test_new_keywords_are_left_out_where_they_are_unknown(host: Any, monkeypatch: Any) -> None:
    """ComfyUI before 0.11 has no search_aliases: the schema is made without."""
    types = host.module("vft_nodes.types")

    class OldSchema:
        def __init__(self, node_id: str, display_name: str, category: str) -> None:
            self.node_id = node_id

    monkeypatch.setattr(types.io, "Schema", OldSchema)
    assert types.schema("VFTOld", "VFT Old", search_aliases=["x"]).node_id == "VFTOld"


def test_the_model_folder_joins_what_is_there(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """extra_model_paths.yaml may have named folders before."""
    import folder_paths

    known = folder_paths.folder_names_and_paths
    monkeypatch.setitem(known, "videoflextok", (["/elsewhere"], {".sft"}))
    host.module("vft_nodes.host").add_model_folder()
    host.module("vft_nodes.host").add_model_folder()
    paths, extensions = known["videoflextok"]
    assert list(paths) == ["/elsewhere", str(host.models)]
    assert extensions == {".safetensors", ".sft"}


if __name__ == "__main__":
    import tempfile

    from comfy_host import Host

    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(described(Host(Path(folder))), indent=1))
