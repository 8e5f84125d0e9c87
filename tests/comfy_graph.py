"""A small executor of graphs in ComfyUI's API form: checked, cached and run like ComfyUI does."""

from __future__ import annotations

import json
from typing import Any

from comfy_host import CORE, CORE_OUTPUTS, Host, is_widget

Prompt = dict[str, dict[str, Any]]


class Executor:
    """Runs prompts; keeps results by what went into them, from one prompt to the next."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.kept: dict[str, tuple] = {}
        self.ran: list[str] = []
        """Types of the nodes that the last prompt really ran, in order."""

    def __call__(self, prompt: Prompt) -> dict[str, tuple]:
        """Node id -> its outputs, for all nodes that outputs depend on. ValueError for a prompt
        that ComfyUI would refuse."""
        self.check(prompt)
        self.ran = []
        results: dict[str, tuple] = {}
        for node_id, node in prompt.items():
            if self._wanted(node["class_type"]):
                self._run(node_id, prompt, results)
        return results

    def check(self, prompt: Prompt) -> None:
        """What ComfyUI checks before it runs anything."""
        for node_id, node in prompt.items():
            kind = node["class_type"]
            if kind in CORE:
                continue
            schema = self.host.nodes[kind].GET_SCHEMA()
            for name in node["inputs"].keys() - {i.id for i in schema.inputs}:
                raise ValueError(f"{node_id} {kind}: has no input {name!r}")
            for i in schema.inputs:
                value = node["inputs"].get(i.id)
                if value is None and not i.optional:
                    raise ValueError(f"{node_id} {kind}: {i.id} is missing")
                if isinstance(value, list):
                    self._check_link(prompt, i, value)
                elif value is not None:
                    self._check_value(self.host.nodes[kind], i, value)

    def _check_link(self, prompt: Prompt, i: Any, link: list) -> None:
        origin, slot = link
        kind = prompt[origin]["class_type"]
        if kind in self.host.nodes:
            given = self.host.nodes[kind].GET_SCHEMA().outputs[slot].get_io_type()
            if given != i.get_io_type():
                raise ValueError(f"{i.id}: {given} is not {i.get_io_type()}")

    def _check_value(self, node: Any, i: Any, value: Any) -> None:
        if not is_widget(i):
            raise ValueError(f"{i.id}: takes a link, got {value!r}")
        kind = i.get_io_type()
        own = overrides(node, "validate_inputs")
        if kind == "COMBO" and own and i.id in node.validate_inputs.__code__.co_varnames:
            if (said := node.validate_inputs(**{i.id: value})) is not True:
                raise ValueError(f"{i.id}: {said}")
        elif kind == "COMBO" and value not in i.options:
            raise ValueError(f"{i.id}: {value!r} is not in {i.options}")
        elif kind in ("INT", "FLOAT") and not i.min <= value <= i.max:
            raise ValueError(f"{i.id}: {value} is not in {i.min}..{i.max}")

    def _wanted(self, kind: str) -> bool:
        if kind in CORE:
            return kind in CORE_OUTPUTS
        return self.host.nodes[kind].GET_SCHEMA().is_output_node

    def _run(self, node_id: str, prompt: Prompt, results: dict[str, tuple]) -> None:
        if node_id in results:
            return
        kind, inputs = prompt[node_id]["class_type"], dict(prompt[node_id]["inputs"])
        for name, value in inputs.items():
            if isinstance(value, list):
                self._run(value[0], prompt, results)
                inputs[name] = results[value[0]][value[1]]
        key = self.key(node_id, prompt)
        if key not in self.kept:
            self.ran.append(kind)
            if kind in CORE:
                self.kept[key] = CORE[kind](**inputs)
            else:
                self.kept[key] = self.host.run(kind, unique_id=node_id, **inputs).result or ()
        results[node_id] = self.kept[key]

    def key(self, node_id: str, prompt: Prompt) -> str:
        """All that a node's result depends on: its inputs, and what the node itself says."""
        kind, inputs = prompt[node_id]["class_type"], prompt[node_id]["inputs"]
        parts: dict[str, Any] = {"kind": kind}
        for name, value in sorted(inputs.items()):
            link = isinstance(value, list)
            parts[name] = [self.key(value[0], prompt), value[1]] if link else value
        node = self.host.nodes.get(kind)
        if node is not None and overrides(node, "fingerprint_inputs"):
            constants = {k: v for k, v in inputs.items() if not isinstance(v, list)}
            parts["says"] = node.fingerprint_inputs(**constants)
        return json.dumps(parts)


def overrides(node: Any, method: str) -> bool:
    """Whether our node class defines a method that ComfyUI's base class has too."""
    return any(method in vars(c) for c in node.__mro__ if "vft_nodes" in c.__module__)
