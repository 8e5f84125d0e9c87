"""The pack at work in a real ComfyUI: progress, cancelling, memory, files."""

from __future__ import annotations

import io
import json
import time
from contextlib import suppress
from math import prod
from pathlib import Path

import av
import numpy as np
import pytest
from comfyui.messages import Run, read_binary
from comfyui.prompts import (
    LIMIT,
    SIZE,
    Prompt,
    pictures,
    saved_tokens,
    straight_path,
)
from comfyui.server import ComfyUI
from conftest import add_sound
from PIL import Image

from vft_lib.files.packaged import packaged
from vft_lib.video.video_out import write_video
from vft_lib.world.world import make_clip


def test_clip_to_tokens_to_clip(comfy: ComfyUI) -> None:
    run = comfy.run(straight_path(seed=1, frames=21), LIMIT)
    assert run.status == "success", run.error
    assert pictures(comfy, run.outputs["video"]["images"][0]).shape == (21, *SIZE, 3)
    tokens = saved_tokens(comfy, run)
    assert (tokens.frames, tokens.budget, tokens.fps) == (21, 8, 8)
    assert run.progress_of("encode")[-1] == run.progress_of("decode")[-1] == 1
    assert run.progress_of("decode") == sorted(run.progress_of("decode"))
    assert run.previews_of("decode")
    for preview in run.previews_of("decode"):
        assert np.asarray(Image.open(io.BytesIO(preview))).std() > 1, "an empty preview"


@pytest.mark.parametrize("node", ["encode", "decode", "write"])
def test_cancel_stops_the_node_and_the_next_run_is_clean(comfy: ComfyUI, node: str) -> None:
    prompt = straight_path(seed=2, frames=49)
    if node == "write":
        words = {"prompt": "a red ball", "budget": 16, "seed": 0, "guidance": 0.0, "frames": 17}
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


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc: memory is unknown")
def test_a_cancelled_decode_gives_its_memory_back(comfy: ComfyUI) -> None:
    """A long decode holds the frames it has made; cancelled, it lets go of them, and the server
    goes on as if nothing had been."""
    frames = 201
    prompt = straight_path(seed=8, frames=frames, steps=1)
    kept = 4 * 3 * prod(SIZE) * frames  # bytes of all frames, as an IMAGE
    known = {name: node for name, node in prompt.items() if name not in ("decode", "video")}
    comfy.run(straight_path(seed=9), LIMIT)  # imports, codecs and thread stacks stay, once
    assert comfy.run(known, LIMIT).status == "success"  # clip, model and tokens stay in the cache
    before = comfy.memory
    held: list[int] = []

    def cancel(node: str, value: int, total: int) -> None:
        if node == "decode" and value > 0.75 * total and not held:
            held.append(comfy.memory - before)
            comfy.interrupt()

    run = comfy.run(prompt, LIMIT, on_progress=cancel)
    assert run.status == "interrupted" and run.executed[-1] == "decode"
    assert held[0] > kept / 2, "nothing was held that could be given back"
    end = time.monotonic() + 10
    while (left := comfy.memory - before) > kept / 6 and time.monotonic() < end:
        time.sleep(0.2)
    assert left < kept / 6, f"{left / 1e6:.0f} of {held[0] / 1e6:.0f} MB are still held"
    again = comfy.run(straight_path(seed=10), LIMIT)
    assert again.status == "success", again.error
    assert comfy.memory - before < kept / 4


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
    assert pictures(comfy, file).shape == (24, *SIZE, 3)
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


def with_frames(prompt: Prompt) -> Prompt:
    """Its frames as PNG files too: x264 does not write small videos the same way every time."""
    inputs = {"images": ["decode", 0], "filename_prefix": "ring3/frame"}
    return prompt | {"frames": {"class_type": "SaveImage", "inputs": inputs}}


def frames_of(comfy: ComfyUI, run: Run) -> np.ndarray:
    """Those frames, uint8 `[T,H,W,3]`."""
    return np.stack([pictures(comfy, file)[0] for file in run.outputs["frames"]["images"]])


def test_same_seed_gives_the_same_tokens_and_frames(comfy: ComfyUI) -> None:
    prompt = with_frames(straight_path(seed=3, steps=2))
    tokens, clips = [], []
    for _ in range(2):
        comfy.free()  # or the second run would be the first one's cache
        run = comfy.run(prompt, LIMIT)
        assert run.cached == []
        tokens.append(saved_tokens(comfy, run).ids)
        clips.append(frames_of(comfy, run))
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


def test_words_on_a_node_are_for_the_page_that_queued_it(comfy: ComfyUI) -> None:
    """Another page that is open meanwhile may show a node of the same number."""
    prompt = straight_path(seed=1, steps=1)
    picture = {"width": 64, "height": 64, "batch_size": 1, "color": 0}
    mask = {"width": 64, "height": 64, "value": 0.5}
    prompt["picture"] = {"class_type": "EmptyImage", "inputs": picture}
    prompt["mask"] = {"class_type": "SolidMask", "inputs": mask}
    joined = {"image": ["picture", 0], "alpha": ["mask", 0]}
    prompt["joined"] = {"class_type": "JoinImageWithAlpha", "inputs": joined}
    del prompt["encode"]["inputs"]["video"]
    prompt["encode"]["inputs"]["images"] = ["joined", 0]
    with comfy.page("another") as another:
        run = comfy.run(prompt, LIMIT)
        assert run.status == "success", run.error
        assert run.words == [("encode", "alpha is dropped")]
        heard = Run("")
        with suppress(TimeoutError):
            while True:
                if isinstance(message := another.recv(0.5), bytes):
                    read_binary(heard, message)
    assert heard.words == []


def test_saved_tokens_can_be_dropped_on_the_canvas(comfy: ComfyUI) -> None:
    prompt = with_frames(straight_path(seed=1))
    run = comfy.run(prompt, LIMIT)
    file = comfy.view(run.outputs["tokens"]["vft"][0])
    name = comfy.upload("dropped.vft", file)
    prompt["encode"] = {"class_type": "VFTLoadTokens", "inputs": {"file": name}}
    again = comfy.run(prompt, LIMIT)
    assert again.status == "success", again.error
    np.testing.assert_array_equal(frames_of(comfy, run), frames_of(comfy, again))
