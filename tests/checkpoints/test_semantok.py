"""SemanTok's tokenizers: converted, decoded without an image network, encoded with one."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published import SMALL_VAE, VAE_ID, config_of, tensors_of, write_folder
from semantok import save_semantok, semantok_config
from torch import Tensor

from vft_lib import read_video, write_video
from vft_lib.checkpoints import convert
from vft_lib.cli.vft import main
from vft_lib.config.tokenizer import DecoderStep
from vft_lib.errors import VftError
from vft_lib.image_features import ImageEncoder, ImageFeatures, image_features
from vft_lib.models.loading import load_image_encoder, load_tokenizer
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.tokens import Tokens

CASE, WIDTH = "semantok-encode", 24  # of its features
PATCH = "encoder.module_dict.enc_patch_emb.patch_proj.weight"
VECTOR = "global_token_input.proj"
Change = Callable[[dict[str, Any], dict[str, Tensor]], None]


@pytest.fixture(autouse=True)
def _small_vae(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(convert.VAES, VAE_ID, SMALL_VAE)


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    """Under their published names. The case has 32 px; here they are used at 128, the published
    size, at which there is one patch of the latents for each of the network's."""
    return tensors_of(CASE)


def written(
    folder: Path, stored: dict[str, Tensor], change: Change = lambda c, t: None, **semantok: Any
) -> Path:
    config, tensors = copy.deepcopy(config_of(CASE)), dict(stored)
    config["videoflextok"] |= {"vae_video_sizes": [2, 16, 16], "chunk_size": 5}  # short, to be fast
    config["semantok"] |= semantok
    change(config, tensors)
    return write_folder(folder / "made-up", config, tensors)


def without_grids(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """The encoder reads latents alone: its first module turns them channels-last, as usual."""
    net = config["videoflextok"]["video_flex_tok"]
    plain = config_of("time-causal")["video_flex_tok"]["encoder"]["module_dict"]
    embed = net["encoder"]["module_dict"]["enc_patch_emb"]
    turn = copy.deepcopy(plain["enc_channels_to_last"])
    embed |= {"channels_in": 16, "input_tensor_list_read_key": turn["write_key"]}
    net["encoder"]["module_dict"] = {"turn": turn, **net["encoder"]["module_dict"]}
    key = next(k for k in tensors if k.endswith(PATCH))
    tensors[key] = tensors[key][:, WIDTH:].clone()


def without_vectors(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    for key in [k for k in tensors if VECTOR in k]:
        del tensors[key]


def pixels(pictures: Tensor) -> Tensor:
    """A network whose state of a patch is its mean colour eight times over, and its CLS that of
    the picture: what became of every frame can be followed."""
    patches = pictures.unflatten(3, (16, 14)).unflatten(2, (16, 14)).mean((3, 5))  # (N, 3, 16, 16)
    states = patches.flatten(2).transpose(1, 2)
    return torch.cat([states.mean(1, keepdim=True), states], 1).repeat(1, 1, WIDTH // 3)


NETWORK = ImageEncoder("a network of colours", WIDTH, torch.device("cpu"), pixels)


def test_it_decodes_without_an_image_network(
    tmp_path: Path, stored: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key that no module writes used to end the conversion."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    out = tmp_path / "ours.safetensors"
    assert main(["convert", str(written(tmp_path, stored)), str(out)]) == 0
    tok = load_tokenizer(out, device="cpu")
    c = tok.config.encoder
    assert (c.feature_channels, c.global_feature) == (WIDTH, WIDTH)
    assert (c.feature_aggregate, c.global_mode) == ("avg", "per_frame")
    assert tok.config.sampling.guidance == 3.0
    key = next(k for k in stored if k.endswith(PATCH))
    assert torch.equal(tok.state_dict()["encoder.patch_proj.weight"], stored[key])
    tok.use_image_encoder(NETWORK)
    video = torch.rand(1, 3, 9, 128, 128) * 2 - 1
    tokens = tok.encode(video)
    alone = load_tokenizer(out, device="cpu")
    assert torch.equal(
        alone.decode(tokens.truncate(2), steps=1), tok.decode(tokens.truncate(2), steps=1)
    )
    with pytest.raises(VftError, match="'made-up' encodes from DINOv2") as e:
        alone.encode(video)
    assert "`vft download dinov2-large`" in str(e.value)
    with pytest.raises(VftError, match="768 wide, tokenizer 'made-up' reads 24"):
        alone.use_image_encoder(dataclasses.replace(NETWORK, width=768))
    plain = load_tokenizer("default", device="cpu")
    with pytest.raises(VftError, match="'vft-small' reads no image features"):
        plain.use_image_encoder(NETWORK)


def test_frames_that_begin_a_chunk_need_the_network_unless_the_decoder_masks_them(
    tmp_path: Path,
) -> None:
    """Said before any work, with the remedy; else the second chunk found out."""
    config = semantok_config(width=WIDTH)
    assert "prefix_masking" in config.decoder.steps
    steps: tuple[DecoderStep, ...] = ("posemb", "nested_dropout", "null_condition")
    looks = dataclasses.replace(
        config, name="looks", decoder=dataclasses.replace(config.decoder, steps=steps)
    )
    video = torch.rand(1, 3, 9, 128, 128, generator=torch.Generator().manual_seed(2)) * 2 - 1
    for c in (config, looks):
        file = save_semantok(tmp_path / f"{c.name}.safetensors", c)
        alone, tok = (load_tokenizer(file, device="cpu") for _ in range(2))
        tok.use_image_encoder(NETWORK)
        long, short = tok.encode(video), tok.encode(video[:, :, :5])
        pin: dict[str, Any] = {"first_frame": video[:, :, 0]}
        for tokens, more in ((long, {}), (short, pin), (short, {})):
            made = tok.decode(tokens, steps=1, **more)
            if c is looks and not (tokens is short and not more):
                with pytest.raises(VftError, match=r"'looks' reads DINOv2 .* `vft decode --dino`"):
                    alone.decode(tokens, steps=1, **more)
            else:
                assert torch.equal(alone.decode(tokens, steps=1, **more), made)


def test_each_chunk_of_a_long_clip_is_encoded_on_its_own(
    tmp_path: Path, stored: dict[str, Tensor]
) -> None:
    """Written out by hand: latents rounded through float16, the features of the same frames."""
    tok = load_tokenizer(written(tmp_path, stored), device="cpu")
    tok.use_image_encoder(NETWORK)
    video = torch.rand(2, 3, 7, 128, 128, generator=torch.Generator().manual_seed(1)) * 2 - 1
    ids = tok.encode(video).ids
    assert ids.shape == (2, 3, 8)
    padding = video[:, :, -1:].expand(-1, -1, 2, -1, -1)
    parts = [(video[:, :, :5], ids[:, :2]), (torch.cat([video[:, :, 4:], padding], 2), ids[:, 2:])]
    for part, expected in parts:
        for i in range(2):  # on a CPU one clip after the other
            features = image_features(NETWORK, part[i : i + 1], "avg", "per_frame")
            with torch.inference_mode():
                latents = tok.vae.encode(part[i : i + 1]).half().float()
                own = tok.fsq.ids(tok.encoder(latents, features))
            assert torch.equal(own[0, -expected.shape[1] :], expected[i])
    streamed = torch.cat(list(tok.encode_chunks(video.unbind(2), budget=4)), dim=1)
    assert torch.equal(streamed, ids[..., :4])


def test_what_a_picture_shows_reaches_the_ids(tmp_path: Path, stored: dict[str, Tensor]) -> None:
    """The same latents, other features: other ids from the first register on."""
    tok = load_tokenizer(written(tmp_path, stored), device="cpu")
    latents = torch.randn(1, 16, 2, 16, 16)
    made = image_features(NETWORK, torch.rand(1, 3, 5, 32, 32), "avg", "per_frame")
    none = ImageFeatures(torch.zeros_like(made.grids), torch.zeros_like(made.vectors))  # type: ignore[arg-type]
    with torch.inference_mode():
        seen, unseen = tok.encoder(latents, made), tok.encoder(latents, none)
        vectors = tok.encoder(latents, dataclasses.replace(none, vectors=made.vectors))
    assert not torch.allclose(seen, unseen)
    assert not torch.allclose(vectors, unseen)


@pytest.mark.parametrize("mode", ["per_frame", "frame0"])
def test_vectors_alone(tmp_path: Path, stored: dict[str, Tensor], mode: str) -> None:
    path = written(
        tmp_path, stored, without_grids, dino_input=False, dino_frame_agg=None,
        global_token_mode=mode,
    )  # fmt: skip
    tok = load_tokenizer(path, device="cpu")
    assert tok.config.encoder.feature_channels == 0
    tok.use_image_encoder(NETWORK)
    assert tok.encode(torch.rand(1, 3, 5, 128, 128)).ids.shape == (1, 2, 8)
    vectors = torch.randn(1, 2, WIDTH) if mode == "per_frame" else torch.randn(1, WIDTH)
    _added_to_register_0(tok, vectors)


def _added_to_register_0(tok: Tokenizer, vectors: Tensor) -> None:
    """A vector of the width of the projection's bias does what register 0 plus it does."""
    latents = torch.randn(1, 16, 2, 16, 16)
    assert tok.encoder.global_proj is not None
    with torch.inference_mode():
        got = tok.encoder(latents, ImageFeatures(vectors=vectors))
        weight, bias = tok.encoder.global_proj.weight, tok.encoder.global_proj.bias
        added = vectors @ weight.T + bias
        frames = tok.encoder.registers[:2, 0] + (added[0] if added.ndim == 3 else added)
        before = tok.encoder.registers.data
        tok.encoder.registers.data = before.clone()
        tok.encoder.registers.data[:2, 0] = frames
        weight.zero_(), bias.zero_()
        expected = tok.encoder(latents, ImageFeatures(vectors=vectors))
    assert torch.allclose(got, expected, atol=1e-5)


def test_grids_alone(tmp_path: Path, stored: dict[str, Tensor]) -> None:
    path = written(tmp_path, stored, without_vectors, global_token=False, dino_frame_agg="first")
    tok = load_tokenizer(path, device="cpu")
    c = tok.config.encoder
    assert (c.feature_channels, c.global_feature, c.feature_aggregate) == (WIDTH, 0, "first")
    tok.use_image_encoder(NETWORK)
    assert tok.encode(torch.rand(1, 3, 5, 128, 128)).ids.shape == (1, 2, 8)


def test_a_module_whose_output_nobody_reads(tmp_path: Path, stored: dict[str, Tensor]) -> None:
    """Beside the tensor from outside the latents may be turned channels-last, for nobody."""

    def turned(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        encoder = config["videoflextok"]["video_flex_tok"]["encoder"]
        plain = config_of("time-causal")["video_flex_tok"]["encoder"]["module_dict"]
        turn = plain["enc_channels_to_last"]
        encoder["module_dict"] = {"turn": turn, **encoder["module_dict"]}

    expected = load_tokenizer(written(tmp_path / "a", stored), device="cpu").fingerprint
    path = written(tmp_path / "b", stored, turned)
    assert load_tokenizer(path, device="cpu").fingerprint == expected


def embed(**options: Any) -> Change:
    def change(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        encoder = config["videoflextok"]["video_flex_tok"]["encoder"]["module_dict"]
        encoder["enc_patch_emb"] |= options

    return change


def nothing(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    pass


REFUSED: dict[str, tuple[Change, dict[str, Any], str]] = {
    "other aggregate": (nothing, {"dino_frame_agg": "mean"}, "dino_frame_agg is 'mean'"),
    "other mode": (nothing, {"global_token_mode": "add"}, "global_token_mode is 'add'"),
    "no aggregate": (nothing, {"dino_frame_agg": None}, "dino_frame_agg is None"),
    "a word for a switch": (nothing, {"dino_input": "yes"}, "dino_input: expected bool"),
    "unknown entry": (nothing, {"dino_layers": 3}, "'dino_layers'"),
    "features without the switch": (nothing, {"dino_input": False}, "channels_in is 40"),
    "the switch without features": (
        embed(input_tensor_list_read_key="vae_latents"), {}, "holds latents at that point"
    ),
    "no room for features": (embed(channels_in=16), {}, "dino_input is true"),
    "a key that nobody hands in": (
        embed(input_tensor_list_read_key="enc_other"), {}, "'enc_other', which holds nothing"
    ),
    "vectors without the switch": (nothing, {"global_token": False}, "global_token_input.proj"),
    "the switch without vectors": (without_vectors, {}, "no matrix global_token_input.proj"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(
    tmp_path: Path, stored: dict[str, Tensor], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    change, semantok, reason = REFUSED[name]
    path = written(tmp_path, stored, change, **semantok)
    assert main(["convert", str(path), str(tmp_path / "out.safetensors")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert reason in error, error
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.slow
def test_the_command_line(
    tmp_path: Path, stored: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A real network of DINOv2's kind, 24 wide, in a folder as the hub has it."""
    pytest.importorskip("transformers", reason="transformers is missing: pip install .[dino]")
    from transformers import Dinov2Config, Dinov2Model

    monkeypatch.setenv("VFT_HOME", str(tmp_path / "home"))
    tokenizer = tmp_path / "ours.safetensors"
    assert main(["convert", str(written(tmp_path, stored)), str(tokenizer)]) == 0
    clip, out = tmp_path / "clip.mp4", tmp_path / "clip.vft"
    write_video(clip, [np.full((128, 128, 3), 20 * i, np.uint8) for i in range(7)], 8.0)
    words = ["encode", str(clip), "-o", str(out), "--tokenizer", str(tokenizer), "--device", "cpu"]
    assert main(words) == 2
    assert "`vft download dinov2-large` fetches it" in capsys.readouterr().err
    sizes: dict[str, Any] = {"hidden_size": WIDTH, "num_attention_heads": 2, "num_hidden_layers": 1}
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**sizes, image_size=518)).save_pretrained(tmp_path / "dino")
    assert main([*words, "--dino", str(tmp_path / "dino")]) == 0
    tokens = Tokens.load(out)
    assert tokens.ids.shape == (1, 3, 8)
    tok = load_tokenizer(tokenizer, device="cpu")
    tok.use_image_encoder(load_image_encoder(tmp_path / "dino", device="cpu"))
    assert torch.equal(tok.encode(read_video(clip, size=128)).ids, tokens.ids)
    assert main(["decode", str(out), "-o", str(tmp_path / "again.mp4"), "--tokenizer",
                 str(tokenizer), "--steps", "1", "--device", "cpu"]) == 0  # fmt: skip
    home = tmp_path / "home" / "dinov2-large.safetensors"
    home.parent.mkdir()
    assert main(["convert", str(tmp_path / "dino"), str(home)]) == 0
    again = tmp_path / "again.vft"
    assert main([*words[:3], str(again), *words[4:]]) == 0, "found by its name"
    assert torch.equal(Tokens.load(again).ids, tokens.ids)
    capsys.readouterr()
    assert main(["encode", str(clip), "-o", str(out), "--dino", str(home), "--device", "cpu"]) == 2
    assert "'vft-small' reads no image features" in capsys.readouterr().err
    assert main([*words, "--dino", str(tokenizer)]) == 2
    assert "is a VFT tokenizer, but not a VFT image encoder" in capsys.readouterr().err
