"""SemanTok's tokenizers in the graph: VFT Encode with a CLIP_VISION."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_vision import ClipVision, CLIPVisionModelProjection
from comfy_world import Made
from semantok import dino_config, dino_weights, save_semantok, semantok_config

from vft_lib.checkpoints.dino import build_dino
from vft_lib.models.loading import load_tokenizer


@pytest.fixture(scope="module")
def semantok(made: Made) -> Any:
    pytest.importorskip("transformers", reason="transformers is missing: pip install .[dino]")
    save_semantok(made.host.models / "tiny-semantok.safetensors", semantok_config())
    return made.host.results("VFTLoadTokenizer", tokenizer="tiny-semantok.safetensors")[0]


def test_the_graph_encodes_what_the_library_does(made: Made, semantok: Any) -> None:
    images = made.host.results("VFTExampleClip", seed=3, frames=7, size=128)[0]
    vision = ClipVision()
    given = {"tokenizer": semantok, "images": images, "clip_vision": vision}
    tokens = made.host.results("VFTEncode", **given)
    assert tokens.ids.shape == (1, 3, 8)
    tok = load_tokenizer(made.host.models / "tiny-semantok.safetensors", device="cpu")
    tok.use_image_encoder(build_dino(dino_config(), dino_weights(), "tiny"))
    video = images.permute(3, 0, 1, 2)[None] * 2 - 1
    same = (tok.encode(video).ids == tokens.ids).float().mean()
    assert same == 1
    assert semantok.model.image_encoder is None, "it would be used by a node without one"
    decoded = made.host.results("VFTDecode", tokenizer=semantok, tokens=tokens, steps=1)[0]
    assert decoded.shape == (7, 128, 128, 3)


def test_it_says_what_to_connect(made: Made, semantok: Any) -> None:
    save_semantok(made.host.models / "wide.safetensors", semantok_config(width=1024))
    wide = made.host.results("VFTLoadTokenizer", tokenizer="wide.safetensors")[0]
    images = made.host.results("VFTExampleClip", seed=3, frames=5, size=128)[0]
    with pytest.raises(made.host.error, match="connect Load CLIP Vision with DINOv2-L"):
        made.host.results("VFTEncode", tokenizer=semantok, images=images)
    for tokenizer, vision, reason in (
        (semantok, ClipVision(CLIPVisionModelProjection), "is a CLIPVisionModelProjection; "),
        (wide, ClipVision(), "32 wide, tokenizer 'tiny' reads 1024: give DINOv2-L"),
        (semantok, "dinov2", "clip_vision got str; connect CLIP_VISION"),
    ):
        given = {"tokenizer": tokenizer, "images": images, "clip_vision": vision}
        with pytest.raises(made.host.error, match=reason):
            made.host.results("VFTEncode", **given)


def test_another_tokenizer_does_without(made: Made, semantok: Any) -> None:
    images = made.clip[0]
    out = made.host.run(
        "VFTEncode", tokenizer=made.tokenizer, images=images, clip_vision=ClipVision()
    )
    assert torch.equal(out.result[0].ids, made.tokens.ids)
    assert "vft-small reads no image features" in out.ui["text"][0]


def test_the_image_network_goes_to_clip_vision(
    made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Load CLIP Vision lists it; the loaders of this pack do not, wherever it lies."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda name: [str(tmp_path / name)])
    text = made.host.run("VFTDownloadModel", model="dinov2-large").ui["text"][0]
    assert "apache-2.0" in text
    assert str(tmp_path / "clip_vision") in text
    monkeypatch.undo()
    from vft_lib.checkpoints.checkpoint import save_image_encoder

    path = made.host.models / "dinov2-large.safetensors"
    save_image_encoder(path, dino_config(), dino_weights(), None)
    listed = made.host.module("vft_nodes.loaders").models_of
    assert path.name not in {*listed("tokenizer"), *listed("prior")}
    path.unlink()
