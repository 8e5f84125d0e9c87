"""Training clips as latents: the same ones however often encoding is interrupted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import TINY
from measure.test_features import made_up
from safetensors.torch import save_file

from vft_lib.autoencoder.vae import VideoAutoencoder
from vft_lib.footage.bank import ClipBank
from vft_lib.footage.footage import Footage, to_video
from vft_lib.footage.textures import textures
from vft_lib.footage.worlds import Worlds
from vft_lib.measure.features import FORMAT, FrozenFeatures, _folded
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.train import dataset
from vft_lib.train.dataset import Latents, encode_dataset, world_count
from vft_lib.train.tokenizer import encode_ids

CPU = torch.device("cpu")
BLOCK, SHARE = 32, 0.25  # eight worlds a block
SEEDS = list(range(500, 540))


@pytest.fixture(autouse=True)
def _small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:  # of its own: a test may undo what it patched
        patch.setattr(dataset, "BLOCK", BLOCK)
        yield


@pytest.fixture(scope="module")
def vae() -> VideoAutoencoder:
    torch.manual_seed(0)
    return VideoAutoencoder(TINY.vae).eval()


@pytest.fixture(scope="module")
def footage() -> Footage:
    return Footage(ClipBank({}, textures(2, 40)), Worlds(SEEDS, 17, 32))


def encode(
    vae: VideoAutoencoder, footage: Footage, clips: int, folder: Path | None,
    deadline: float | None = None,
) -> Latents:  # fmt: skip
    if folder is not None:
        folder.mkdir(exist_ok=True)
    return encode_dataset(
        TINY, vae, footage, clips, SHARE, 3, CPU, torch.float32, folder, deadline=deadline
    )


def test_an_interrupted_encoding_goes_on_to_the_same_latents(
    vae: VideoAutoencoder, footage: Footage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encode(vae, footage, 2 * BLOCK, tmp_path / "whole")
    draws, draw = [], footage.bank.draw if footage.bank else None
    assert draw is not None and footage.bank is not None

    def failing(*args: object, **kwargs: object) -> torch.Tensor:
        draws.append(1)
        if len(draws) == 4:  # in the second block
            raise KeyboardInterrupt
        return draw(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(footage.bank, "draw", failing)
    with pytest.raises(KeyboardInterrupt):
        encode(vae, footage, 2 * BLOCK, tmp_path / "parts")
    assert (tmp_path / "parts/latents.done").read_text().split()[0] == str(BLOCK)
    monkeypatch.undo()
    parts = encode(vae, footage, 2 * BLOCK, tmp_path / "parts")
    assert torch.equal(parts.latents, whole.latents)
    kept = encode(vae, footage, BLOCK, None)
    assert torch.equal(kept.latents, whole.latents[:BLOCK]), "in memory as in files"


def test_latents_of_other_footage_or_another_autoencoder_are_made_anew(
    vae: VideoAutoencoder, footage: Footage, tmp_path: Path
) -> None:
    """The folder of a run keeps what follows from both."""
    first = encode(vae, footage, BLOCK, tmp_path).latents.clone()
    other = Footage(ClipBank({}, textures(3, 40)), footage.worlds)
    second = encode(vae, other, BLOCK, tmp_path).latents.clone()
    assert torch.equal(second[: int(BLOCK * SHARE)], first[: int(BLOCK * SHARE)]), "worlds"
    assert not torch.equal(second, first)
    torch.manual_seed(1)
    third = encode(VideoAutoencoder(TINY.vae).eval(), other, BLOCK, tmp_path).latents.clone()
    assert not torch.isclose(third, second).all(1).any()
    assert torch.equal(encode(vae, footage, BLOCK, tmp_path).latents, first)
    (tmp_path / "latents.done").write_text(str(BLOCK))  # of an earlier version: taken as they are
    assert torch.equal(encode(vae, other, BLOCK, tmp_path).latents, first)


def test_a_run_by_mistake_that_is_stopped_at_once_leaves_nothing_behind(
    vae: VideoAutoencoder, footage: Footage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = encode(vae, footage, BLOCK, tmp_path).latents.clone()
    other = Footage(ClipBank({}, textures(3, 40)), footage.worlds)
    torch.manual_seed(1)
    wrong = VideoAutoencoder(TINY.vae).eval()
    assert other.bank is not None

    def stopped(*_: object, **__: object) -> torch.Tensor:  # after the block's worlds
        raise KeyboardInterrupt

    monkeypatch.setattr(other.bank, "draw", stopped)
    with pytest.raises(KeyboardInterrupt):
        encode(wrong, other, BLOCK, tmp_path)
    assert torch.equal(encode(vae, footage, BLOCK, tmp_path).latents, first)


def test_features_of_another_network_are_made_anew(
    vae: VideoAutoencoder, footage: Footage, tmp_path: Path
) -> None:
    found = []
    for factor in (1, 2, 1):
        weights = {k: factor * v for k, v in _folded(made_up()).items()}
        path = tmp_path / "features.safetensors"
        save_file(weights, path, {"format": FORMAT, "network": "lite0"})
        network = FrozenFeatures(path, (8,))
        (tmp_path / "run").mkdir(exist_ok=True)
        latents = encode_dataset(
            TINY, vae, footage, BLOCK, SHARE, 3, CPU, torch.float32, tmp_path / "run", network
        )
        assert latents.features is not None
        found.append(latents.features.clone())
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_ids_of_other_latents_are_made_anew(tmp_path: Path) -> None:
    tokenizer, cache = Tokenizer(TINY, "f" * 16).eval(), tmp_path / "ids.safetensors"
    latents = torch.randn(2, 4, *TINY.latent_shape).half()
    first, second = (encode_ids(tokenizer, x, cache) for x in latents)
    assert not torch.equal(first, second)
    assert torch.equal(encode_ids(tokenizer, latents[0], cache), first)
    written = cache.stat().st_mtime_ns
    assert torch.equal(encode_ids(tokenizer, latents[0], cache), first)
    assert cache.stat().st_mtime_ns == written, "encoded once"


def test_features_that_were_not_asked_for_before_are_made(
    vae: VideoAutoencoder, footage: Footage, tmp_path: Path
) -> None:
    """They would be zeros, in a file of the right size."""
    network = tmp_path / "features.safetensors"
    save_file(_folded(made_up()), network, {"format": FORMAT, "network": "lite0"})
    plain = encode(vae, footage, BLOCK, tmp_path / "run")
    seen = encode_dataset(
        TINY, vae, footage, BLOCK, SHARE, 3, CPU, torch.float32, tmp_path / "run",
        FrozenFeatures(network, (8,)),
    )  # fmt: skip
    assert torch.equal(seen.latents, plain.latents)
    assert seen.features is not None
    assert seen.features.flatten(1).abs().sum(1).min() > 0


@pytest.mark.slow
def test_at_the_deadline_what_is_encoded_is_enough(vae: VideoAutoencoder, footage: Footage) -> None:
    """At least four blocks: less is no data set."""
    data = encode(vae, footage, 5 * BLOCK, None, deadline=time.monotonic() - 1)
    assert len(data) == 4 * BLOCK
    assert len(encode(vae, footage, BLOCK, None, deadline=time.monotonic() + 900)) == BLOCK


def test_worlds_come_first_in_every_block(vae: VideoAutoencoder, footage: Footage) -> None:
    data = encode(vae, footage, 2 * BLOCK, None)
    assert world_count(2 * BLOCK, SHARE) == 16
    assert footage.worlds is not None
    with torch.no_grad():
        expected = vae.encode(to_video(footage.worlds.clips([0, 9])))
    assert torch.allclose(data.latents[[0, BLOCK + 1]].float(), expected, atol=1e-2)


def test_footage_of_one_kind_fills_all_blocks(vae: VideoAutoencoder, footage: Footage) -> None:
    none = Footage(footage.bank, None)
    assert len(encode(vae, none, BLOCK, None)) == BLOCK
    worlds = Worlds(range(BLOCK), 17, 32)
    only = encode(vae, Footage(None, worlds), BLOCK, None)
    with torch.no_grad():
        last = vae.encode(to_video(worlds.clips([BLOCK - 1])))
    assert torch.allclose(only.latents[-1:].float(), last, atol=1e-2)
