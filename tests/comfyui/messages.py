"""One run of a prompt, put together from what ComfyUI sends over the WebSocket."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

WORDS = 3  # the kind of binary message that brings words for a node
PREVIEW_WITH_METADATA = 4  # the kind of binary message that today's frontend asks for


@dataclass
class Run:
    """One queued prompt, from its first message to its last."""

    prompt_id: str
    status: str = ""  # "success", "error" or "interrupted"
    seconds: float = 0.0
    executed: list[str] = field(default_factory=list)  # ids of the nodes that ran, in order
    cached: list[str] = field(default_factory=list)  # ids of those that did not have to
    progress: list[tuple[str, int, int]] = field(
        default_factory=list
    )  # node id, value, of how many
    previews: list[tuple[str, bytes]] = field(default_factory=list)  # node id, JPEG or PNG file
    words: list[tuple[str, str]] = field(default_factory=list)  # node id, what is said on it
    error: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, Any] = field(default_factory=dict)  # by id of a node whose inputs are wrong
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)  # by node id, from /history

    def progress_of(self, node: str) -> list[float]:
        """How far one node was, 0 to 1, message by message."""
        return [value / total for which, value, total in self.progress if which == node]

    def previews_of(self, node: str) -> list[bytes]:
        """One node's previews."""
        return [image for which, image in self.previews if which == node]


def read_text(
    run: Run, message: dict[str, Any], on_progress: Callable[[str, int, int], None] | None
) -> None:
    """Notes what a text message says of `run`."""
    kind, data = message["type"], message.get("data", {})
    if data.get("prompt_id", run.prompt_id) != run.prompt_id:
        return
    if kind == "execution_cached":
        run.cached += data["nodes"]
    elif kind == "executing" and data["node"] is not None:
        run.executed.append(data["node"])
    elif kind == "progress":
        step = (data["node"], int(data["value"]), int(data["max"]))
        run.progress.append(step)
        if on_progress:
            on_progress(*step)
    elif kind in ("execution_success", "execution_error", "execution_interrupted"):
        run.status = kind.removeprefix("execution_")
        run.error = data if kind == "execution_error" else {}


def read_binary(run: Run, message: bytes) -> None:
    """Notes the preview or the words that a binary message holds."""
    kind, length = struct.unpack_from(">II", message)
    if kind == WORDS:
        node, words = message[8 : 8 + length], message[8 + length :]
        run.words.append((node.decode(), words.decode()))
    if kind == PREVIEW_WITH_METADATA:
        metadata, image = json.loads(message[8 : 8 + length]), message[8 + length :]
        run.previews.append((metadata["node_id"], image))
