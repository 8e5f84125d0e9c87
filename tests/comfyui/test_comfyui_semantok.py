"""SemanTok's tokenizers in a real ComfyUI: Load CLIP Vision's DINOv2-L makes what the library does.

Weights are made up, at DINOv2-L's real size: ComfyUI knows no smaller one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from comfyui.prompts import LIMIT, Prompt, saved_tokens, straight_path
from comfyui.server import ComfyUI
from semantok import published_name, save_semantok, semantok_config

from vft_lib.checkpoints.checkpoint import save_image_encoder
from vft_lib.checkpoints.dino import DinoConfig
from vft_lib.models.loading import load_image_encoder, load_tokenizer
from vft_lib.video.frames import to_tensor
from vft_lib.world.world import make_clip

TOKENIZER, NETWORK = (
    "videoflextok/tiny-semantok.safetensors",
    "clip_vision/dinov2-large.safetensors",
)


@pytest.fixture
def models(comfy: ComfyUI) -> Iterator[Path]:
    """The folder of models, with the two; without them afterwards: nothing may be left there."""
    folder = comfy.base / "models"
    for name in (TOKENIZER, NETWORK):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    save_semantok(folder / TOKENIZER, semantok_config(width=1024, name="tiny-semantok"))
    write_dino(folder / NETWORK)
    yield folder
    for name in (TOKENIZER, NETWORK):
        (folder / name).unlink()


def write_dino(path: Path) -> None:
    """DINOv2-L by its shapes, in float16 under the published names."""
    transformers = pytest.importorskip("transformers", reason="pip install .[dino]")
    config = DinoConfig(1024, 24, 16, image_size=518)
    with torch.device("meta"):
        network = transformers.Dinov2Model(transformers.Dinov2Config(**vars(config)))
    made = torch.Generator().manual_seed(0)
    weights = {}
    for key, value in network.state_dict().items():
        noise = torch.randn(value.shape, generator=made) * 0.03
        one = key.endswith(("norm1.weight", "norm2.weight", "layernorm.weight", "lambda1"))
        weights[published_name(key)] = (noise + one).half()
    save_image_encoder(path, config, weights, None)


def with_vision(seed: int) -> Prompt:
    prompt = straight_path(seed=seed, frames=5, steps=1)
    prompt["clip"]["inputs"]["size"] = 128
    prompt["model"]["inputs"]["tokenizer"] = Path(TOKENIZER).name
    loader = {"clip_name": Path(NETWORK).name}
    prompt["vision"] = {"class_type": "CLIPVisionLoader", "inputs": loader}
    prompt["encode"]["inputs"]["clip_vision"] = ["vision", 0]
    return prompt


def test_the_graph_encodes_what_the_library_does(comfy: ComfyUI, models: Path) -> None:
    run = comfy.run(with_vision(seed=3), 2 * LIMIT)
    assert run.status == "success", run.error
    tokens = saved_tokens(comfy, run)
    tok = load_tokenizer(models / TOKENIZER, device="cpu")
    tok.use_image_encoder(load_image_encoder(models / NETWORK, device="cpu"))
    video = to_tensor(list(make_clip(3, frames=5, size=128).video))[None]
    ids = tok.encode(video).ids
    assert ids.unique().numel() > 8
    same = (ids == tokens.ids).float().mean()
    print(f"{same:.1%} of the ids are the library's")
    assert same > 0.9, "summed in another order, and no more"
    blind = with_vision(seed=3)
    del blind["vision"], blind["encode"]["inputs"]["clip_vision"]
    run = comfy.run(blind, LIMIT)
    assert "connect Load CLIP Vision with DINOv2-L" in run.error["exception_message"]
