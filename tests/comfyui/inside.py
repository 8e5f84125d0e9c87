"""A program for ComfyUI's own Python: the pack's models in its memory manager, and its attention
functions in the pack.

    python inside.py path/to/ComfyUI path/to/the/pack

Prints one line of JSON: by attention function, what is wrong with it for each kind of mask; by
storage of the decoder's weights, what came of a model that was loaded in part.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from typing import Any

MASKS = ("full", "causal", "time_block_causal", "time_block_causal_last")


def main(checkout: str, folder: str) -> None:
    os.chdir(checkout)
    sys.path.insert(0, checkout)
    sys.argv = ["main.py", "--cpu"]
    options = importlib.import_module("comfy.options")
    options.enable_args_parsing()
    import torch

    torch.set_num_threads(1)
    pack = load(folder)
    found = {"attention": attention_functions(pack), "weights": {}}
    with torch.inference_mode():
        for storage in ("as they are", "int8", "fp8"):
            found["weights"][storage] = in_part(pack, storage)
    print(json.dumps(found))


def load(folder: str) -> Any:
    """The pack, the way ComfyUI loads it; a function that gives its modules."""
    name = folder.replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(
        name, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    assert spec is not None and spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])

    def pack(module: str) -> Any:
        return importlib.import_module(f"{name}.{module}")

    pack("vft_nodes.host").add_model_folder()
    return pack


def attention_functions(pack: Any) -> dict[str, dict[str, str]]:
    """What is wrong with each of ComfyUI's functions that run on this CPU, by mode of the mask."""
    import torch

    host, attention = pack("vft_nodes.host"), pack("vft_lib.transformer.attention")
    config = pack("vft_lib.config.tokenizer")
    own = importlib.import_module("comfy.ldm.modules.attention")
    cpu, found = torch.device("cpu"), {}
    functions = {own.attention_basic, own.attention_pytorch, own.attention_split}
    for function in {own.optimized_attention, own.attention_sub_quad, *functions}:
        attention.adopt("comfyui", host._as_backend(function))
        found[function.__name__] = {
            mode: attention.refusal("comfyui", config.MaskConfig(mode), cpu, 64, torch.float32)
            for mode in MASKS
        }
    return found


def in_part(pack: Any, storage: str) -> dict[str, Any]:
    """The default tokenizer with a third of it on the device: what ComfyUI does on a small card."""
    import torch

    loaders, sampling = pack("vft_nodes.loaders"), pack("vft_lib.tokenizer.sampling")
    loaded = loaders.LoadTokenizer.execute(
        tokenizer="default", dtype="auto", device="auto", weights=storage
    ).result[0]
    model, patcher = loaded.model, loaded.patcher

    def latents() -> torch.Tensor:
        noise = torch.randn(
            1, *model.config.latent_shape, generator=torch.Generator().manual_seed(1)
        )
        ids = torch.arange(20).reshape(1, 5, 4) * 50
        return model.sample_latents(ids, noise, sampling.Sampling(2, 2.0))

    whole = latents()
    size, cpu = patcher.model_size(), torch.device("cpu")
    patcher.load(cpu, lowvram_model_memory=size // 3)
    layers = [m for m in model.decoder.trunk.modules() if hasattr(m, "comfy_cast_weights")]
    brought = [m for m in layers if hasattr(m, "prev_comfy_cast_weights")]  # when they are used
    told = {
        "partly": model.model_lowvram, "share": patcher.loaded_size() / size,
        "layers": len(layers), "brought": len(brought), "same": torch.equal(latents(), whole),
    }  # fmt: skip
    patcher.unpatch_model(cpu)
    return told | {"same after": torch.equal(latents(), whole)}


if __name__ == "__main__":
    main(*sys.argv[1:])
