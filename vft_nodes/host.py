"""All that the nodes ask of ComfyUI beyond its node API: folders, memory, progress, cancelling.

ComfyUI's private modules are imported inside the functions that need them, never as the pack loads.
"""

from __future__ import annotations

import gc
import inspect
import logging
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from ..vft_lib import VftError
from ..vft_lib.tokenizer.eight_bit import EightBitLinear
from ..vft_lib.transformer.attention import Foreign
from ..vft_lib.transformer.offload import device_bytes
from .listed import spellings

FOLDER = "videoflextok"  # of models
EXTENSIONS = {".safetensors", ".sft"}
PREVIEW = 512  # pixels a side, at most
log = logging.getLogger("videoflextok")
T = TypeVar("T")

# ------------------------------------------------------------------ folders


def add_model_folder() -> None:
    """Make `models/videoflextok` known, beside what extra_model_paths.yaml may have added."""
    import folder_paths

    here = os.path.join(folder_paths.models_dir, FOLDER)
    paths, extensions = folder_paths.folder_names_and_paths.get(FOLDER, ([], set()))
    paths = list(paths) if here in paths else [*paths, here]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, set(extensions) | EXTENSIONS)


def model_files() -> list[str]:
    """Names of the files in the model folders."""
    import folder_paths

    return folder_paths.get_filename_list(FOLDER)


def model_path(name: str) -> Path:
    """The file of a name that :func:`model_files` lists, in either system's spelling: nothing else
    can be asked for. A link in a model folder may point anywhere, as ComfyUI's users have it: no
    workflow can put one there."""
    import folder_paths

    known = set(model_files())
    listed = [n for n in spellings(name) if n in known] if isinstance(name, str) else []
    path = folder_paths.get_full_path(FOLDER, listed[0]) if listed else None
    if path is None:
        raise VftError(
            f"{name!r} is not in models/{FOLDER}: put the file there, or fetch it with the node "
            "Download VFT Model"
        )
    return Path(path)


def download_folder(kind: str = "") -> Path:
    """The first model folder; of an "image encoder", that of Load CLIP Vision."""
    import folder_paths

    name = "clip_vision" if kind == "image encoder" else FOLDER
    return Path(folder_paths.get_folder_paths(name)[0])


def folder(kind: str) -> Path:
    """ComfyUI's "input", "output" or "temp" folder."""
    import folder_paths

    return Path(folder_paths.get_directory_by_type(kind))


def confined(name: str, kind: str) -> Path:
    """The file `name` below a folder of ComfyUI; VftError if it would lie outside of it, by a
    link, `..` or an absolute path, of Windows' kind too."""
    try:
        root = os.path.realpath(folder(kind))
        path = os.path.realpath(os.path.join(root, name))
        foreign = PureWindowsPath(name)
        inside = not os.path.isabs(name) and os.path.commonpath([root, path]) == root
        inside = inside and not foreign.drive and not foreign.root and ".." not in foreign.parts
    except (ValueError, OSError):  # a null byte, another drive, a loop of links
        inside = False
    if not inside:
        raise VftError(
            f"{name!r} is not inside ComfyUI's {kind} folder; only what lies there is used"
        )
    return Path(path)


def output_path(prefix: str, suffix: str) -> tuple[Path, str]:
    """A new numbered file below the output folder, and its subfolder there."""
    import folder_paths

    confined(prefix, "output")  # ComfyUI's own check does not look where links lead
    try:
        directory, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            prefix, folder_paths.get_output_directory()
        )
    except (OSError, ValueError) as e:  # a name too long, a file where a folder should be
        reason = getattr(e, "strerror", None) or e
        raise VftError(f"{prefix!r} cannot be written ({reason}); give another name") from None
    return Path(directory) / f"{name}_{counter:05}_{suffix}", subfolder


def metadata_allowed() -> bool:
    """Whether files may carry the workflow (`--disable-metadata` says no)."""
    from comfy.cli_args import args

    return not args.disable_metadata


# ------------------------------------------------------------------ memory


def place(device: str, dtype: str) -> tuple[torch.device, torch.device, torch.dtype]:
    """Where to compute, where to rest, and the weights' dtype, from what a loader was asked for
    ("auto" or a name)."""
    import comfy.model_management as mm

    compute = torch.device("cpu") if device == "cpu" else mm.get_torch_device()
    rest = torch.device("cpu") if device == "cpu" else mm.unet_offload_device()
    if dtype != "auto":
        return compute, rest, getattr(torch, dtype)
    if compute.type != "cpu" and mm.should_use_bf16(compute):
        return compute, rest, torch.bfloat16
    if compute.type != "cpu" and mm.should_use_fp16(compute):
        return compute, rest, torch.float16
    return compute, rest, torch.float32


def compute_device() -> torch.device:
    """The one that ComfyUI computes on."""
    import comfy.model_management as mm

    return mm.get_torch_device()


def layer_classes() -> Any:
    """Layers that bring their weights to where they are used, when they are."""
    import comfy.ops

    return comfy.ops.manual_cast


def eight_bit_layer() -> type[EightBitLinear]:
    """The same for weights in eight bits, which travel as they are."""
    import comfy.ops

    # From 0.4 on weights may come by a stream of their own, which waits until they have been used.
    streams = "offloadable" in inspect.signature(comfy.ops.cast_bias_weight).parameters

    class CastEightBitLinear(EightBitLinear):
        comfy_cast_weights = True

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.weight_function: list[Any] = []
            self.bias_function: list[Any] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            kind = {"dtype": self.weight.dtype, "device": x.device, "bias_dtype": x.dtype}
            if not streams:
                return self.product(x, *comfy.ops.cast_bias_weight(self, **kind))
            weight, bias, stream = comfy.ops.cast_bias_weight(self, **kind, offloadable=True)
            y = self.product(x, weight, bias)
            comfy.ops.uncast_bias_weight(self, weight, bias, stream)
            return y

    return CastEightBitLinear


def attention() -> Foreign:
    """ComfyUI's own: what it was started with, or what another pack has put in its place."""
    from comfy.ldm.modules import attention as module

    return _as_backend(module.optimized_attention)


@lru_cache(maxsize=4)
def _as_backend(own: Callable[..., torch.Tensor]) -> Foreign:
    name = getattr(own, "__name__", "attention").removeprefix("attention_")
    exact = not any(word in name for word in ("sage", "int8"))

    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        return own(q, k, v, q.shape[1], mask=mask, skip_reshape=True, skip_output_reshape=True)

    return Foreign(name, attend, masks=exact and "flash" not in name, exact=exact)


def patcher(model: torch.nn.Module, compute: torch.device, rest: torch.device) -> Any:
    """`model` under ComfyUI's memory management, which counts the weights that go to the device:
    its own count, of the state dict, has those that stay in the host's memory too."""
    import comfy.model_patcher as mp

    kind = getattr(mp, "CoreModelPatcher", mp.ModelPatcher)
    return kind(model, compute, rest, size=device_bytes(model))


def load(patchers: Sequence[Any], memory: int, whole: bool = False) -> None:
    """Bring models to their devices, `memory` bytes of which are needed for the work itself.
    `whole`: not in parts."""
    import comfy.model_management as mm

    mm.load_models_gpu(list(patchers), memory_required=memory, force_full_load=whole)
    for p in patchers:
        if whole:  # ComfyUI with --novram loads in parts all the same
            p.model.to(p.load_device)
        p.model.device = p.load_device


def free_memory(device: torch.device) -> int:
    """Bytes that are free there, after what ComfyUI's models take."""
    import comfy.model_management as mm

    return int(mm.get_free_memory(device))


def with_retry(work: Work, attempt: Callable[[bool], T], advice: str) -> T:
    """`attempt(False)`; if the device runs out of memory, all models go, and `attempt(True)` does
    it with less at once. VftError with `advice` if that fails too."""
    import comfy.model_management as mm

    # Not ComfyUI's OOM_EXCEPTION: some versions set it to Exception, which would hide a cancel.
    oom = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
    try:
        return attempt(False)
    except oom:
        pass  # the traceback, and the tensors it holds, end here
    work.say("Out of memory: freeing all models and trying again")
    gc.collect()
    mm.unload_all_models()
    mm.soft_empty_cache()
    try:
        return attempt(True)
    except oom:
        raise VftError(f"out of memory, even with all models freed: {advice}") from None


# ------------------------------------------------------------------ while a node runs


class Work:
    """One run of a node: its progress, preview and words on it; raises when the user cancels."""

    def __init__(self, hidden: Any) -> None:
        import comfy.utils

        self.node = getattr(hidden, "unique_id", None)
        self.bar = comfy.utils.ProgressBar(1)
        self.seen: tuple[int, int] = (0, 1)

    def __call__(self, done: int, total: int | None) -> None:
        """Progress of the whole; a callback of the library."""
        self.check()
        self.seen = done, max(total or done + 1, 1)
        self.bar.update_absolute(*self.seen)

    def check(self) -> None:
        """Raise ComfyUI's own exception if the run has been cancelled."""
        import comfy.model_management as mm

        mm.throw_exception_if_processing_interrupted()

    def show(self, frame: np.ndarray) -> None:
        """A preview, uint8 `[H,W,3]`; small ones are enlarged."""
        image = Image.fromarray(frame)
        scale = max(1, PREVIEW // 2 // max(image.size))
        if scale > 1:
            image = image.resize(
                (image.width * scale, image.height * scale), Image.Resampling.BICUBIC
            )
        self.bar.update_absolute(*self.seen, ("JPEG", image, PREVIEW))

    def warn(self, text: str) -> None:
        """What the user should know of: on the node, and in ComfyUI's log."""
        log.warning("%s", text)
        self.say(text)

    def say(self, text: str) -> None:
        """Words on the node, in the page that queued this run."""
        log.debug("%s: %s", self.node, text)
        try:
            from server import PromptServer
        except ImportError:  # run without a server
            return
        server = getattr(PromptServer, "instance", None)
        page = getattr(server, "client_id", None)  # without one, all pages would be told
        if server is not None and page is not None and self.node is not None:
            server.send_progress_text(text, self.node, page)
