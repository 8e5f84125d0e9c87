"""Every node, input and output has its words: a help page, and entries in each language."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LANGUAGES = ["de", "en", "fr"]


@pytest.fixture(scope="module")
def described(host: Any) -> dict[str, Any]:
    """What the schemas say, in the form of a `nodeDefs.json`."""
    found = {}
    for name, node in host.nodes.items():
        info = node.GET_NODE_INFO_V1()
        inputs = info["input"].get("required", {}) | info["input"].get("optional", {})
        outputs = zip(info["output_name"], info["output_tooltips"])
        found[name] = {
            "display_name": info["display_name"], "description": info["description"],
            "inputs": {k: {"name": k, "tooltip": v[1]["tooltip"]} for k, v in inputs.items()},
            "outputs": {
                str(i): {"name": o, "tooltip": tip} for i, (o, tip) in enumerate(outputs)
            },
        }  # fmt: skip
    return found


def words(language: str) -> dict[str, Any]:
    path = ROOT / "locales" / language / "nodeDefs.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def shape(value: Any) -> Any:
    """The keys of a tree, in order; at its leaves whether something is there."""
    if isinstance(value, dict):
        return {k: shape(v) for k, v in value.items()}
    return bool(value.strip())


def test_english_is_what_the_schemas_say(described: dict[str, Any]) -> None:
    assert words("en") == described


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_every_word(described: dict[str, Any], language: str) -> None:
    assert shape(words(language)) == shape(described)


@pytest.mark.parametrize("language", ["de", "fr"])
def test_descriptions_are_translated(described: dict[str, Any], language: str) -> None:
    for name, node in words(language).items():
        assert node["description"] != described[name]["description"]
        for key, value in node["inputs"].items():
            assert value["tooltip"] != described[name]["inputs"][key]["tooltip"]


def test_every_node_has_a_help_page_that_names_all_it_takes(described: dict[str, Any]) -> None:
    pages = {p.stem: p.read_text("utf-8") for p in (ROOT / "vft_nodes/web/docs").glob("*.md")}
    assert sorted(pages) == sorted(described)
    for name, page in pages.items():
        node = described[name]
        assert page.startswith(f"# {node['display_name']}\n")
        for part in [*node["inputs"], *(o["name"] for o in node["outputs"].values())]:
            assert f"- **{part}**" in page, f"{name}: {part}"
