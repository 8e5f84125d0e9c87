"""Every workflow in a real ComfyUI; then, that nothing was fetched and nothing warned."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from comfyui.messages import Run
from comfyui.prompts import (
    LIMIT,
    SIZE,
    Prompt,
    downstream,
    nodes_of,
    pictures,
)
from comfyui.server import LAUNCHER, PACK_NAME, ComfyUI

from vft_lib import Tokens

ROOT = Path(__file__).parents[2]
API_PROMPTS = ROOT / "tests" / "workflows" / "api"

SHAPES = {
    "01_original": (33, 256, 256), "01_rebuilt": (33, *SIZE), "02_text_to_video": (81, *SIZE),
    "03_long_clip": (161, *SIZE), "10_long_clip_adaptive": (161, *SIZE),
    "04_budget_sweep": (33, 562, 780), "05_coarse": (17, *SIZE),
    "05_refined": (17, *SIZE), "06_plain": (17, *SIZE), "06_edited": (17, *SIZE),
    "07_share": (33, *SIZE), "08_original": (33, 256, 256),
    "11_original": (33, 128, 128),
}  # fmt: skip
"""Frames, height and width of the videos that workflows write, by their file names."""


def stored_prompts(downloads: bool) -> list[str]:
    """The workflows that begin with a download, or the others."""
    files = sorted(API_PROMPTS.glob("*.json"))
    return [f.stem for f in files if ("VFTDownloadModel" in f.read_text()) == downloads]


def stored_prompt(name: str) -> Prompt:
    return dict(json.loads((API_PROMPTS / f"{name}.json").read_text()))


def check_outputs(comfy: ComfyUI, prompt: Prompt, run: Run) -> None:
    """The files that a run says it wrote are there, as large as they should be, and not blank;
    decoders showed their work."""
    for node, output in run.outputs.items():
        for file in output.get("images", []):
            shown = pictures(comfy, file)
            assert shown.std() > 1, f"node {node}: {file} is blank"
            if prompt[node]["class_type"] == "SaveVideo":
                name = re.sub(r"_\d+_\.mp4$", "", file["filename"])
                assert (name, shown.shape) == (name, (*SHAPES[name], 3))
    for node in set(nodes_of(prompt, "VFTDecode")) & set(run.executed):
        assert run.progress_of(node)[-1] == 1
        assert run.previews_of(node)


@pytest.mark.parametrize("name", stored_prompts(downloads=False))
def test_workflow_runs(comfy: ComfyUI, name: str) -> None:
    prompt = stored_prompt(name)
    run = comfy.run(prompt, LIMIT)
    assert run.status == "success", run.error
    assert not run.refused
    assert set(run.executed) | set(run.cached) == set(prompt)
    check_outputs(comfy, prompt, run)
    for node in nodes_of(prompt, "VFTSaveTokens"):
        (file,) = run.outputs[node]["vft"]
        path = comfy.base / "output" / file["subfolder"] / file["filename"]
        (truncate,) = nodes_of(prompt, "VFTTruncate")
        inputs, tokens = prompt[truncate]["inputs"], Tokens.load(path)
        got = tokens.id_bytes if inputs["by"] == "bytes" else tokens.budget
        assert 0 < got <= inputs["budget"]
        if inputs["adaptive"]:
            assert tokens.budgets is not None
            assert got == inputs["budget"]


@pytest.mark.parametrize("name", stored_prompts(downloads=True))
def test_workflow_of_a_published_model_asks_first(comfy: ComfyUI, name: str) -> None:
    """Nothing is fetched: the download node states its terms, and what needs a model names it,
    before the run (0.8) or when it comes to it (0.3, which does not check lists of our kind)."""
    prompt = stored_prompt(name)
    run = comfy.run(prompt, LIMIT)
    for node in nodes_of(prompt, "VFTDownloadModel"):
        (text,) = run.outputs[node]["text"]
        assert "licence" in text.lower()
        assert "accept_licence" in text
    models = {
        str(node["inputs"].get(widget))
        for node in prompt.values()
        for widget in ("tokenizer", "clip_name")
        if str(node["inputs"].get(widget)).endswith(".safetensors")
    }
    assert (run.status == "success") == bool(run.refused)
    told = str(run.refused) + run.error.get("exception_message", "")
    assert any(model in told for model in models), told
    check_outputs(comfy, prompt, run)


def test_changing_the_budget_encodes_nothing(comfy: ComfyUI) -> None:
    prompt = stored_prompt("01_reconstruct_at_any_budget")
    assert comfy.run(prompt, LIMIT).status == "success"
    (truncate,) = nodes_of(prompt, "VFTTruncate")
    (encode,) = nodes_of(prompt, "VFTEncode")
    prompt[truncate]["inputs"]["budget"] -= 1
    run = comfy.run(prompt, LIMIT)
    assert run.status == "success", run.error
    assert set(run.executed) == downstream(prompt, truncate)
    assert encode in run.cached


def test_nothing_was_fetched(comfy: ComfyUI) -> None:
    """All that the tests before had it do asked for no host and left no file where models go."""
    for folder in ("models", "home/models"):
        assert [p for p in (comfy.base / folder).rglob("*") if p.is_file()] == []
    assert comfy.reached == []


def test_a_comfyui_that_fetches_is_found_out(comfy: ComfyUI, tmp_path: Path) -> None:
    """Started like the one of these tests, a program is refused the network and noted."""
    program, reached = tmp_path / "main.py", tmp_path / "reached.txt"
    program.write_text(
        "import socket\n"
        "try:\n    socket.create_connection(('192.0.2.1', 443), timeout=5)\n"  # documentation's
        "except OSError as e:\n    print(e.errno)\n"
    )
    run = subprocess.run(
        [str(comfy.python), str(LAUNCHER), str(program)], capture_output=True, text=True,
        timeout=60, env=os.environ | {"VFT_REACHED": str(reached)},
    )  # fmt: skip
    assert run.stdout.split() == [str(errno.ENETUNREACH)], run.stderr
    (line,) = reached.read_text().splitlines()
    assert line.startswith("192.0.2.1 from ")
    assert f"{program}:3" in line


def test_nothing_of_ours_warned(comfy: ComfyUI) -> None:
    """Python's warnings begin with the file's path."""
    ours = rf"(?:{PACK_NAME}|{re.escape(str(ROOT))})/.*(?:Warning|Error):"
    assert re.findall(ours, comfy.log) == []
