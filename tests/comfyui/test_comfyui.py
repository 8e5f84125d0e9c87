"""The pack in a real ComfyUI: `make test-comfyui COMFYUI=/path/to/ComfyUI`."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from comfyui.server import PACK_NAME, ComfyUI, Run
from conftest import add_sound
from PIL import Image

from vft_lib import Tokens
from vft_lib.packaged import packaged
from vft_lib.video_out import write_video
from vft_lib.world import make_clip

ROOT = Path(__file__).parents[2]
API_PROMPTS = ROOT / "tests" / "workflows" / "api"
WORKFLOWS = ROOT / "workflows"
LIMIT = 180  # seconds a workflow may take here
Prompt = dict[str, Any]


@pytest.fixture(scope="session")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    """A running ComfyUI with the pack; its log is printed where a test fails."""
    python = os.environ.get("COMFYUI_PYTHON", "python3")
    python = str(Path(python).absolute()) if os.sep in python else python
    base = tmp_path_factory.mktemp("comfyui")
    with ComfyUI(Path(os.environ["COMFYUI"]), Path(python), base, ROOT) as server:
        yield server


@pytest.fixture(autouse=True)
def _log_of_a_failure(comfy: ComfyUI) -> Iterator[None]:
    before = len(comfy.log)
    yield
    print(comfy.log[before:])  # pytest shows it if the test failed


def straight_path(seed: int, frames: int = 17, budget: int = 8, steps: int = 4) -> Prompt:
    """A clip to tokens to a clip. Its nodes are called after what they do."""
    nodes = {
        "clip": ("VFTExampleClip", {"seed": seed, "frames": frames, "size": 64}),
        "model": ("VFTLoadTokenizer", {"tokenizer": "default", "dtype": "auto", "device": "auto"}),
        "encode": (
            "VFTEncode",
            {"tokenizer": ["model", 0], "video": ["clip", 1], "fps": 0.0, "fit": "crop"},
        ),
        "truncate": (
            "VFTTruncate",
            {"tokens": ["encode", 0], "by": "tokens per frame", "budget": budget, "keep_bits": 0.9},
        ),
        "tokens": (
            "VFTSaveTokens",
            {"tokens": ["truncate", 0], "filename_prefix": "ring3/clip"},
        ),
        "decode": (
            "VFTDecode",
            {
                "tokenizer": ["model", 0], "tokens": ["truncate", 0], "steps": steps,
                "guidance": 1.0, "seed": 0, "keep_bars": False, "preview": True,
            },
        ),
        "video": (
            "SaveVideo",
            {
                "video": ["decode", 1], "filename_prefix": "ring3/clip", "format": "mp4",
                "codec": "h264",
            },
        ),
    }  # fmt: skip
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def nodes_of(prompt: Prompt, kind: str) -> list[str]:
    """Ids of the nodes of one class."""
    return [name for name, node in prompt.items() if node["class_type"] == kind]


def downstream(prompt: Prompt, start: str) -> set[str]:
    """A node and all that depends on it."""
    found, grew = {start}, True
    while grew:
        users = {
            name
            for name, node in prompt.items()
            if any(isinstance(v, list) and v[0] in found for v in node["inputs"].values())
        }
        grew = not users <= found
        found |= users
    return found


def pictures(comfy: ComfyUI, file: dict[str, str]) -> np.ndarray:
    """An output picture or video, uint8 `[T,H,W,3]`."""
    content = io.BytesIO(comfy.view(file))
    if file["filename"].endswith((".mp4", ".webm")):
        with av.open(content) as video:
            return np.stack([f.to_ndarray(format="rgb24") for f in video.decode(video=0)])
    return np.asarray(Image.open(content).convert("RGB"))[None]


def saved_tokens(comfy: ComfyUI, run: Run) -> Tokens:
    """What the node called "tokens" wrote."""
    file = run.outputs["tokens"]["vft"][0]
    return Tokens.load(comfy.base / "output" / file["subfolder"] / file["filename"])


# ------------------------------------------------------------------ what ComfyUI sees of the pack


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
    names = sorted(file.stem for file in WORKFLOWS.glob("*.json"))
    assert names
    assert sorted(comfy.get("/api/workflow_templates")[PACK_NAME]) == names
    for name in names:
        served = f"/api/workflow_templates/{PACK_NAME}/{name}"
        assert json.loads(comfy.fetch(f"{served}.json")) == json.loads(
            (WORKFLOWS / f"{name}.json").read_text()
        )
        with Image.open(io.BytesIO(comfy.fetch(f"{served}.jpg"))) as picture:
            assert picture.format == "JPEG"


# ------------------------------------------------------------------ running


def test_clip_to_tokens_to_clip(comfy: ComfyUI) -> None:
    run = comfy.run(straight_path(seed=1, frames=21), LIMIT)
    assert run.status == "success", run.error
    assert pictures(comfy, run.outputs["video"]["images"][0]).shape == (21, 64, 64, 3)
    tokens = saved_tokens(comfy, run)
    assert (tokens.frames, tokens.budget, tokens.fps) == (21, 8, 8)
    assert run.progress_of("encode")[-1] == run.progress_of("decode")[-1] == 1
    assert run.progress_of("decode") == sorted(run.progress_of("decode"))
    assert run.previews_of("decode")
    for preview in run.previews_of("decode"):
        assert np.asarray(Image.open(io.BytesIO(preview))).std() > 1, "an empty preview"


SHAPES = {
    "01_original": (33, 256, 256), "01_rebuilt": (33, 64, 64), "02_text_to_video": (17, 64, 64),
    "03_long_clip": (161, 64, 64), "04_budget_sweep": (33, 562, 780), "05_coarse": (17, 64, 64),
    "05_refined": (17, 64, 64), "06_plain": (17, 64, 64), "06_edited": (17, 64, 64),
    "07_share": (33, 64, 64), "08_original": (33, 256, 256),
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


@pytest.mark.parametrize("node", ["encode", "decode", "write"])
def test_cancel_stops_the_node_and_the_next_run_is_clean(comfy: ComfyUI, node: str) -> None:
    prompt = straight_path(seed=2, frames=49)
    if node == "write":
        words = {"prompt": "a red ball", "budget": 16, "seed": 0, "guidance": 0.0, "frames": 0}
        prompt["prior"] = {
            "class_type": "VFTLoadPrior",
            "inputs": {"prior": "default", "dtype": "auto", "device": "auto"},
        }
        prompt["write"] = {
            "class_type": "VFTTextToTokens",
            "inputs": {
                "prior": ["prior", 0], "temperature": 1.0, "top_k": 0, "top_p": 1.0, **words,
            },
        }  # fmt: skip
        prompt["truncate"]["inputs"]["tokens"] = ["write", 0]
    long = json.loads(json.dumps(prompt))
    long["clip"]["inputs"]["frames"] = 481 if node == "encode" else 49
    long["decode"]["inputs"]["steps"] = 200 if node == "decode" else 1
    pressed: list[float] = []

    def cancel(which: str, value: int, total: int) -> None:
        if which == node and not pressed:
            comfy.interrupt()
            pressed.append(time.monotonic())

    run = comfy.run(long, LIMIT, on_progress=cancel)
    assert run.status == "interrupted"
    assert run.executed[-1] == node
    assert time.monotonic() - pressed[0] < 10, "the node does not look often enough"

    again = comfy.run(prompt, LIMIT)
    assert again.status == "success", again.error
    frames = pictures(comfy, again.outputs["video"]["images"][0])
    assert len(frames) == (17 if node == "write" else 49)


def loaded_video(name: str, start: float = 0, duration: float = 0) -> Prompt:
    """The straight path from a file in the input folder, with its sound; or of a part of it."""
    prompt = straight_path(seed=0, steps=2)
    prompt["clip"] = {"class_type": "LoadVideo", "inputs": {"file": name}}
    prompt["parts"] = {"class_type": "GetVideoComponents", "inputs": {"video": ["clip", 0]}}
    prompt["decode"]["inputs"]["audio"] = ["parts", 1]
    prompt["encode"]["inputs"]["video"] = ["clip", 0]
    if duration:
        times = {"start_time": start, "duration": duration, "strict_duration": False}
        prompt["slice"] = {"class_type": "Video Slice", "inputs": {"video": ["clip", 0], **times}}
        prompt["encode"]["inputs"]["video"] = ["slice", 0]
    return prompt


def write_clip(comfy: ComfyUI, name: str) -> None:
    """Three seconds at 24 frames per second with a tone, in the input folder."""
    silent = comfy.base / "silent.mp4"
    write_video(silent, iter(make_clip(7, frames=72, size=128).video), 24)
    add_sound(silent, comfy.base / "input" / name)


def test_video_file_with_sound(comfy: ComfyUI) -> None:
    """Three seconds of a file are sampled at the tokenizer's rate; the sound goes on."""
    write_clip(comfy, "clip.mp4")
    run = comfy.run(loaded_video("clip.mp4"), LIMIT)
    assert run.status == "success", run.error
    assert saved_tokens(comfy, run).frames == 24
    file = run.outputs["video"]["images"][0]
    assert pictures(comfy, file).shape == (24, 64, 64, 3)
    with av.open(io.BytesIO(comfy.view(file))) as video:
        assert [stream.type for stream in video.streams] == ["video", "audio"]
        assert abs(float(video.duration / av.time_base) - 3) < 0.2


def test_part_of_a_video_file(comfy: ComfyUI) -> None:
    """A trimmed VIDEO still has the whole file behind it: only the part is encoded."""
    if "Video Slice" not in comfy.get("/object_info"):
        pytest.skip("this ComfyUI cannot trim videos")
    write_clip(comfy, "clip.mp4")
    run = comfy.run(loaded_video("clip.mp4", start=1, duration=1), LIMIT)
    assert run.status == "success", run.error
    assert saved_tokens(comfy, run).frames == 8


def test_same_seed_gives_the_same_tokens_and_frames(comfy: ComfyUI) -> None:
    prompt = straight_path(seed=3, steps=2)
    prompt["frames"] = {
        "class_type": "SaveImage",
        "inputs": {"images": ["decode", 0], "filename_prefix": "ring3/frame"},
    }
    tokens, clips = [], []
    for _ in range(2):
        comfy.free()  # or the second run would be the first one's cache
        run = comfy.run(prompt, LIMIT)
        assert run.cached == []
        tokens.append(saved_tokens(comfy, run).ids)
        clips.append(np.stack([pictures(comfy, f)[0] for f in run.outputs["frames"]["images"]]))
    np.testing.assert_array_equal(tokens[0], tokens[1])
    np.testing.assert_array_equal(clips[0], clips[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc: memory is unknown")
def test_freed_models_give_their_memory_back(comfy: ComfyUI) -> None:
    """A run holds at least the tokenizer's weights; after Free Memory they are gone, twice over."""
    weights = packaged("default.safetensors").stat().st_size
    comfy.run(straight_path(seed=4), LIMIT)  # imports, codecs and thread stacks stay, once
    comfy.free()
    empty = comfy.memory
    for seed in (5, 6):
        comfy.run(straight_path(seed=seed), LIMIT)
        full = comfy.memory
        comfy.free()
        assert full - empty >= weights
        # Room for small blocks that the C library keeps; a copy of the weights would not fit.
        assert comfy.memory - empty < weights / 2


def test_saved_tokens_can_be_dropped_on_the_canvas(comfy: ComfyUI) -> None:
    run = comfy.run(straight_path(seed=1), LIMIT)
    file = comfy.view(run.outputs["tokens"]["vft"][0])
    prompt = straight_path(seed=1)
    name = comfy.upload("dropped.vft", file)
    prompt["encode"] = {"class_type": "VFTLoadTokens", "inputs": {"file": name}}
    again = comfy.run(prompt, LIMIT)
    assert again.status == "success", again.error
    first, second = (pictures(comfy, r.outputs["video"]["images"][0]) for r in (run, again))
    np.testing.assert_array_equal(first, second)


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


# ------------------------------------------------------------------ after all that


def test_nothing_was_fetched(comfy: ComfyUI) -> None:
    for folder in ("models", "home/models"):
        assert [p for p in (comfy.base / folder).rglob("*") if p.is_file()] == []
    if "VFT_TEST_OFFLINE" not in os.environ:
        pytest.skip("the network was on: offline.sh found no way to take it away")
    with pytest.raises(OSError, match="unreachable"):  # 192.0.2.0/24 is for documentation
        socket.create_connection(("192.0.2.1", 443), timeout=5)


def test_nothing_of_ours_warned(comfy: ComfyUI) -> None:
    """Python's warnings begin with the file's path."""
    ours = rf"(?:{PACK_NAME}|{re.escape(str(ROOT))})/.*(?:Warning|Error):"
    assert re.findall(ours, comfy.log) == []
