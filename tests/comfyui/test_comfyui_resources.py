"""How a model runs, chosen in the loaders, in a real ComfyUI: its attention, its memory manager."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from comfyui.prompts import LIMIT, pictures, straight_path
from comfyui.server import LAUNCHER, ComfyUI

ROOT = Path(__file__).parents[2]


def test_a_run_with_every_choice(comfy: ComfyUI) -> None:
    prompt = straight_path(seed=21)
    prompt["model"]["inputs"] |= {"attention": "comfyui", "weights": "int8", "memory": "0.25 GB"}
    run = comfy.run(prompt, LIMIT)
    assert run.status == "success", run.error
    assert pictures(comfy, run.outputs["video"]["images"][0]).std() > 1
    for node in ("model", "encode", "decode"):
        (text,) = run.outputs[node]["text"]
        assert "cpu, float32, attention: ComfyUI's own (" in text
        assert "decoder in int8" in text
        assert "does not run here" not in text


def test_what_cannot_run_here_is_named_and_the_workflow_runs(comfy: ComfyUI) -> None:
    """A workflow from a machine with a card, on one without."""
    prompt = straight_path(seed=22)
    prompt["model"]["inputs"] |= {"attention": "xformers"}
    run = comfy.run(prompt, LIMIT)
    assert run.status == "success", run.error
    (text,) = run.outputs["model"]["text"]
    assert "attention: PyTorch SDPA" in text
    assert "attention xformers does not run here (encoder and decoder): its kernels need" in text
    told = comfy.get("/object_info/VFTLoadTokenizer")["VFTLoadTokenizer"]["input"]["optional"]
    assert set(told["attention"][1]["vft_refused"]) == {"xformers", "flex"}


def test_a_choice_that_is_not_in_the_list_is_refused(comfy: ComfyUI) -> None:
    """Before the run, or by the node itself (0.3 does not check lists of our kind)."""
    prompt = straight_path(seed=23)
    prompt["model"]["inputs"] |= {"attention": "magic"}
    try:
        told = comfy.run(prompt, LIMIT).error["exception_message"]
    except RuntimeError as e:
        told = str(e)
        assert told.startswith("/prompt: 400 ")
    assert "magic" in told
    assert "xformers" in told  # what may be chosen


def test_inside_its_attention_and_its_memory_manager(comfy: ComfyUI) -> None:
    """Without a server: every attention function that runs on this CPU is right for every mask;
    a model of which only a third is on the device gives the very same, in eight bits too."""
    program = Path(__file__).with_name("inside.py")
    run = subprocess.run(
        [str(comfy.python), str(LAUNCHER), str(program), str(comfy.checkout), str(ROOT)],
        capture_output=True, text=True, timeout=LIMIT,
        env=os.environ | {"HOME": str(comfy.base / "home")},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert {"attention_pytorch", "attention_sub_quad", "attention_split"} <= found[
        "attention"
    ].keys()
    for name, wrong in found["attention"].items():
        assert set(wrong.values()) == {""}, name
    for storage, told in found["weights"].items():
        assert told["partly"], storage
        assert 0.2 < told["share"] < 0.4, storage
        assert told["layers"] > 40, storage
        assert told["brought"] > told["layers"] / 2, storage
        assert told["same"] and told["same after"], storage
