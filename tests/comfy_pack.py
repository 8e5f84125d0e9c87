"""The node pack as the front end hears of it, and what is missing to test it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


def skip_without(missing: list[str]) -> None:
    """Skip if something is missing; where VFT_NO_SKIP is set, as in CI, fail."""
    if missing and os.environ.get("VFT_NO_SKIP"):
        pytest.fail("missing: " + ", ".join(missing))
    if missing:
        pytest.skip(
            "missing: " + ", ".join(missing) + "; `make test` installs the packages",
            allow_module_level=True,
        )


@dataclass(frozen=True)
class Pack:
    """Node classes by node id, what /object_info says of them, and ComfyUI's input folder."""

    nodes: dict[str, Any]
    object_info: dict[str, Any]
    input_folder: Path


def described(host: Any) -> Pack:
    """The pack as loaded by `comfy_host.Host`, described as /object_info does."""
    info = {
        name: cls.GET_NODE_INFO_V1() | {"python_module": "custom_nodes.videoflextok"}
        for name, cls in host.nodes.items()
    }
    return Pack(host.nodes, info, host.base / "input")
