"""Fixtures that several test files share."""

from __future__ import annotations

import dataclasses
import gc
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from offline import stay_on_this_machine

from vft_lib.checkpoints.checkpoint import save_tokenizer
from vft_lib.config.sampling import SamplingDefaults
from vft_lib.config.tokenizer import (
    DecoderConfig,
    EncoderConfig,
    PosembConfig,
    TokenizerConfig,
    TransformerConfig,
    VAEConfig,
)
from vft_lib.models.loading import load_tokenizer
from vft_lib.tokenizer.tokenizer import Tokenizer

# One thread, here and in what a test starts: xdist's workers share the processor, and sums are
# added up in the same order everywhere.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
torch.set_num_threads(1)
settings.register_profile("suite", derandomize=True, database=None, deadline=None)
settings.load_profile("suite")

# Those need a ComfyUI: `make test-comfyui`.
collect_ignore = [] if "COMFYUI" in os.environ else ["comfyui"]

STARTED = time.monotonic()
_reached: list[str] = []
stay_on_this_machine(_reached.append)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--minutes", type=float, metavar="M",
        help="start no slow test after so many minutes; those left out are counted at the end",
    )  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    minutes = item.config.getoption("minutes")
    late = minutes is not None and time.monotonic() - STARTED > 60 * minutes
    if late and item.get_closest_marker("slow"):
        pytest.skip(f"not within {minutes:g} minutes")


def pytest_collection_finish() -> None:
    """Take all that was imported out of the garbage collector's sight: looking through it costs a
    quarter of a second, and ComfyUI collects before every run of a model."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What was skipped, and why, in one line."""
    why = Counter(
        str(report.longrepr[2]).removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
    )
    if why:
        line = ", ".join(f"{count} ({reason})" for reason, count in sorted(why.items()))
        terminalreporter.write_line(f"skipped: {line}")


@pytest.fixture(autouse=True)
def connections() -> Iterator[list[str]]:
    """Hosts beyond this machine that the test tried to reach: none, or it fails."""
    _reached.clear()
    yield _reached
    assert not _reached, f"this test reached out to {_reached}"


TINY = TokenizerConfig(
    name="tiny",
    size=32,
    registers=8,
    vae=VAEConfig(
        width=8, multipliers=(1, 1, 2, 2), encoder_blocks=1, decoder_blocks=1, latent_channels=4
    ),
    encoder=EncoderConfig(TransformerConfig(32, 2, 16), (1, 2, 2), PosembConfig((5, 4, 4)), 5),
    decoder=DecoderConfig(
        TransformerConfig(32, 2, 16, modulation_kinds=2),
        (1, 2, 2),
        PosembConfig((5, 4, 4)),
        PosembConfig((5, 8)),
    ),
    sampling=SamplingDefaults(steps=5),  # not 25: more than a draft's
)


def save_tiny(path: Path, seed: int = 0, name: str = "tiny", registers: int = 8) -> Path:
    """A tokenizer with random weights, none of them zero: every token changes the picture."""
    decoder = dataclasses.replace(TINY.decoder, register_posemb=PosembConfig((5, registers)))
    config = dataclasses.replace(TINY, name=name, registers=registers, decoder=decoder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = Tokenizer(config).state_dict()
        weights = {k: v if v.any() else torch.randn_like(v) * 0.1 for k, v in weights.items()}
    save_tokenizer(path, config, weights, torch.float32)
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a tiny tokenizer: 32 px, 8 registers, random weights."""
    return save_tiny(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    """A tiny tokenizer on the CPU in float32, read from `tiny_checkpoint`."""
    return load_tokenizer(tiny_checkpoint, device="cpu")


def moving_picture(frames: int, height: int, width: int) -> np.ndarray:
    """A clip in which every frame differs: uint8 `[T,H,W,3]`."""
    y, x = np.mgrid[:height, :width]
    return np.stack(
        [np.stack([x * 5 + 9 * t, y * 5 + 4 * t, x + y + 0 * t], -1) % 256 for t in range(frames)]
    ).astype(np.uint8)


def add_sound(clip: Path, out: Path, longer: float = 0) -> Path:
    """The same video with a tone beside it (AAC), which may go on for some seconds more."""
    import av

    with av.open(str(clip)) as source, av.open(str(out), "w") as target:
        picture: Any = source.streams.video[0]
        seconds = float(picture.duration * picture.time_base) + longer
        video = target.add_stream_from_template(picture)
        sound: Any = target.add_stream("aac", rate=44100, layout="mono")
        for packet in source.demux(picture):
            if packet.dts is not None:
                packet.stream = video
                target.mux(packet)
        tone = np.sin(np.arange(int(seconds * 44100)) / 16).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        frame.sample_rate = 44100
        target.mux([*sound.encode(frame), *sound.encode(None)])
    return out


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The node pack in a ComfyUI of its own (see comfy_host.py)."""
    from comfy_host import Host

    return Host(tmp_path_factory.mktemp("comfyui"))


@pytest.fixture(scope="session")
def made(host: Any) -> Any:
    """The default models in that ComfyUI, and a clip encoded (see comfy_world.py)."""
    from comfy_world import make

    return make(host)


@pytest.fixture(scope="session")
def small(host: Any) -> Any:
    """The same with tiny models, for what does not depend on what a model has learned."""
    from comfy_world import make, small_models

    with small_models(host) as name:
        return make(host, name)


@pytest.fixture(scope="session")
def comfy_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A running ComfyUI with the pack, the one that `make test-comfyui` was given."""
    from comfyui.server import ComfyUI

    python = os.environ.get("COMFYUI_PYTHON", "python3")
    if os.sep in python:  # else a name to look up; no resolve(): a virtual environment is a link
        python = str(Path(python).absolute())
    checkout, pack = Path(os.environ["COMFYUI"]), Path(__file__).parent.parent
    with ComfyUI(checkout, Path(python), tmp_path_factory.mktemp("comfyui"), pack) as server:
        yield server


@pytest.fixture
def comfy(comfy_server: Any) -> Iterator[Any]:
    """That ComfyUI; what it logs during a test that fails is shown."""
    before = len(comfy_server.log)
    yield comfy_server
    print(comfy_server.log[before:])
