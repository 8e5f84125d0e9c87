"""What the nodes ask of ComfyUI: caching, cancelling, memory, lists of models."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_graph import Executor
from comfy_world import Made
from conftest import save_tiny
from prior.test_prior import OURS
from prior.test_prior import made as made_prior
from safetensors.torch import save_file

from vft_lib.checkpoints.checkpoint import save_prior


def decoded(made: Made, **words: Any) -> torch.Tensor:
    words = {"steps": 3, "preview": False, "tokens": made.tokens} | words
    return made.host.results("VFTDecode", tokenizer=made.tokenizer, **words)[0]


# ---------------------------------------------------------------------- caching


PROMPT: dict[str, Any] = {
    "1": {"class_type": "VFTLoadTokenizer",
          "inputs": {"tokenizer": "default", "dtype": "auto", "device": "auto"}},
    "2": {"class_type": "VFTExampleClip", "inputs": {"seed": 1, "frames": 5, "size": 64}},
    "3": {"class_type": "VFTEncode",
          "inputs": {"tokenizer": ["1", 0], "images": ["2", 0], "fps": 0.0, "fit": "crop"}},
    "4": {"class_type": "VFTTruncate",
          "inputs": {"tokens": ["3", 0], "by": "tokens per frame", "budget": 4, "keep_bits": 0.9}},
    "5": {"class_type": "VFTTokensInfo", "inputs": {"tokens": ["4", 0]}},
}  # fmt: skip


def test_another_budget_does_not_encode_again(made: Made) -> None:
    execute = Executor(made.host)
    execute(PROMPT)
    assert execute.ran == [f"VFT{n}" for n in (
        "LoadTokenizer", "ExampleClip", "Encode", "Truncate", "TokensInfo",
    )]  # fmt: skip
    execute(PROMPT)
    assert execute.ran == []
    less = {**PROMPT["4"], "inputs": {**PROMPT["4"]["inputs"], "budget": 2}}
    assert execute(PROMPT | {"4": less})["5"][1] == 2
    assert execute.ran == ["VFTTruncate", "VFTTokensInfo"]


def test_a_changed_token_file_is_read_again(made: Made) -> None:
    path = made.host.base / "input" / "changing.vft"
    made.tokens.truncate(4).save(path)
    prompt = {
        "1": {"class_type": "VFTLoadTokens", "inputs": {"file": "changing.vft"}},
        "2": {"class_type": "VFTTokensInfo", "inputs": {"tokens": ["1", 0]}},
    }
    execute = Executor(made.host)
    assert execute(prompt)["2"][1] == 4
    made.tokens.truncate(2).save(path)
    assert execute(prompt)["2"][1] == 2


def test_changed_models_are_loaded_again(made: Made) -> None:
    path = save_tiny(made.host.models / "changing.safetensors")
    loader = made.host.nodes["VFTLoadTokenizer"]

    def stamp() -> Any:
        return loader.fingerprint_inputs(
            tokenizer="changing.safetensors", dtype="auto", device="auto"
        )

    before = stamp()
    assert stamp() == before
    os.utime(path, ns=(1, 1))
    assert stamp() != before


@pytest.mark.parametrize(
    ("node", "name"),
    [
        ("VFTLoadTokenizer", "tokenizer"), ("VFTLoadPrior", "prior"), ("VFTLoadTokens", "file"),
        ("VFTDownloadModel", "model"),
    ],
)  # fmt: skip
def test_a_name_may_come_over_a_link(made: Made, node: str, name: str) -> None:
    """ComfyUI shows None for it before the run."""
    found = made.host.nodes[node]
    assert found.fingerprint_inputs(**{name: None}) == ""
    if name != "model":  # its list is ComfyUI's to check
        assert found.validate_inputs(**{name: None}) is True


def test_a_published_file_without_its_config_says_what_to_do(made: Made) -> None:
    path = made.host.models / "k600-videoflextok.safetensors"
    save_file({"decoder.weight": torch.zeros(2)}, path)
    try:
        with pytest.raises(made.host.error, match="delete it and run again"):
            made.host.run("VFTDownloadModel", model="k600-videoflextok", accept_licence=True)
    finally:
        path.unlink()


def test_a_failed_download_tells_what_to_run_here(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise made.host.error("no connection; run `vft convert FOLDER x.safetensors`")

    monkeypatch.setattr(made.host.module("vft_lib.models.hub"), "download", fails)
    with pytest.raises(made.host.error, match="python -m vft_lib convert") as e:
        made.host.run("VFTDownloadModel", model="k600-videoflextok", accept_licence=True)
    assert "run this node again" in str(e.value)


def test_a_model_that_arrives_runs_download_again(made: Made) -> None:
    node = made.host.nodes["VFTDownloadModel"]
    path = made.host.models / "k600-videoflextok.safetensors"
    words: dict[str, Any] = {
        "model": "k600-videoflextok",
        "accept_licence": True,
        "dtype": "bfloat16",
    }
    assert node.fingerprint_inputs(**words) == "missing"
    save_tiny(path)
    try:
        assert node.fingerprint_inputs(**words) != "missing"
        text = made.host.run("VFTDownloadModel", **words).ui["text"][0]
        assert f"{path.name} is in {path.parent}" in text
    finally:
        path.unlink()


# ---------------------------------------------------------------------- cancelling


@pytest.mark.parametrize("node", ["VFTDecode", "VFTEncode", "VFTTextToTokens", "VFTBudgetSweep"])
def test_a_cancelled_run_stops_and_the_next_one_is_as_ever(small: Made, node: str) -> None:
    import comfy.model_management as mm
    import comfy.utils

    inputs: dict[str, dict[str, Any]] = {
        "VFTDecode": {"tokenizer": small.tokenizer, "tokens": small.tokens, "steps": 3},
        "VFTEncode": {"tokenizer": small.tokenizer, "images": small.clip[0]},
        "VFTTextToTokens": {
            "prior": small.prior, "prompt": "a red ball", "budget": 1, "frames": 17,
        },
        "VFTBudgetSweep": {
            "tokenizer": small.tokenizer, "tokens": small.tokens, "budgets": "1 2", "steps": 1,
        },
    }  # fmt: skip

    def first(out: Any) -> torch.Tensor:
        return getattr(out.result[0], "ids", out.result[0])

    seen = []

    def cancel(value: int, total: int, preview: Any, **_: Any) -> None:
        seen.append(value)
        mm.interrupt_current_processing()

    expected = first(small.host.run(node, **inputs[node]))
    comfy.utils.set_progress_bar_global_hook(cancel)
    try:
        with pytest.raises(mm.InterruptProcessingException):
            small.host.run(node, **inputs[node])
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert len(seen) == 1
    assert not mm.processing_interrupted()
    assert torch.equal(first(small.host.run(node, **inputs[node])), expected)


@pytest.mark.parametrize(
    ("node", "inputs", "part"),
    [
        ("VFTDecode", {"steps": 50, "guidance": 1.0, "preview": False}, "decoder"),
        ("VFTEncode", {}, "encoder"),
        ("VFTTextToTokens", {"prompt": "a red ball", "budget": 8}, "network.head"),
    ],
)
def test_a_cancel_is_seen_inside_our_own_loop(
    small: Made, monkeypatch: pytest.MonkeyPatch, node: str, inputs: dict[str, Any], part: str
) -> None:
    """ComfyUI looks for a cancel between nodes and where its progress bar is drawn. Here nobody
    draws one, and the cancel comes in the middle of the network: only our own check is left."""
    import comfy.model_management as mm
    import comfy.utils

    models = {
        "VFTDecode": {"tokenizer": small.tokenizer, "tokens": small.tokens},
        "VFTEncode": {"tokenizer": small.tokenizer, "images": small.clip[0].repeat(6, 1, 1, 1)},
        "VFTTextToTokens": {"prior": small.prior},
    }
    model = small.prior.model if "prior" in models[node] else small.tokenizer.model
    module = model.get_submodule(part)
    calls: list[None] = []
    forward = module.forward

    def pressed(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == 2:
            mm.interrupt_current_processing()
        return forward(*args, **kwargs)

    monkeypatch.setattr(module, "forward", pressed)
    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", lambda *_: None)
    with pytest.raises(mm.InterruptProcessingException):
        small.host.run(node, **models[node], **inputs)
    assert len(calls) == 2, "it went on after the cancel"
    assert not mm.processing_interrupted()


# ---------------------------------------------------------------------- memory


class Hungry:
    """Makes a module's forward run out of memory the first `times` times."""

    def __init__(self, module: Any, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        self.calls, self.times, self.forward = 0, times, module.forward
        monkeypatch.setattr(module, "forward", self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls <= self.times:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.forward(*args, **kwargs)


def test_out_of_memory_is_tried_once_again_with_less(
    small: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = decoded(small, guidance=2.0)
    asked = []
    ready = type(small.tokenizer).ready

    def watched(self: Any, decoding: bool, low_memory: bool = False) -> Any:
        asked.append(low_memory)
        return ready(self, decoding, low_memory)

    monkeypatch.setattr(type(small.tokenizer), "ready", watched)
    hungry = Hungry(small.tokenizer.model.decoder, monkeypatch, 1)
    again = decoded(small, guidance=2.0)  # the library's own second try is enough
    assert asked == [False]
    assert torch.allclose(again, expected, atol=1 / 254)
    hungry.calls, hungry.times = 0, 2  # with all other models gone, and less at once from the start
    asked.clear()
    again = decoded(small, guidance=2.0)
    assert asked == [False, True]
    assert hungry.calls > 1
    assert torch.allclose(again, expected, atol=1 / 254)  # guided in two passes, not in one


def test_out_of_memory_twice_says_what_to_turn_down(
    small: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        hungry = Hungry(small.tokenizer.model.decoder, patch, 3)
        with pytest.raises(small.host.error, match="bfloat16") as e:
            decoded(small)
        assert hungry.calls == 3  # the library tries twice, and once more alone on the device
    assert "\n" not in str(e.value)
    assert "even with all models freed" in str(e.value)
    with monkeypatch.context() as patch:
        Hungry(small.tokenizer.model.encoder, patch, 4)
        with pytest.raises(small.host.error, match="the CPU in Load VFT Tokenizer"):
            small.host.run("VFTEncode", tokenizer=small.tokenizer, images=small.clip[0])
    assert len(decoded(small)) == 17  # and it goes on


def test_a_preview_without_memory_does_not_end_the_run(
    small: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {"prior": small.prior, "prompt": "a red ball", "budget": 2, "frames": 17}
    expected = small.host.results("VFTTextToTokens", **words, preview=False)
    hungry = Hungry(small.tokenizer.model.decoder, monkeypatch, 9)
    with small.previews() as shown:
        tokens = small.host.results("VFTTextToTokens", **words)
    assert hungry.calls
    assert not shown
    assert torch.equal(tokens.ids, expected.ids)


def test_other_errors_are_not_tried_again(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def broken(*_: Any, **__: Any) -> None:
        calls.append(1)
        raise RuntimeError("something else")

    monkeypatch.setattr(made.tokenizer.model.decoder, "forward", broken)
    with pytest.raises(RuntimeError, match="something else"):
        decoded(made)
    assert len(calls) == 1


def test_frames_beyond_the_limit_lie_in_a_file_and_are_the_same(
    small: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = small.host.module("vft_nodes.pictures")
    expected = decoded(small)
    files: list[Path] = []
    unlink = Path.unlink

    def watched(path: Path, missing_ok: bool = False) -> None:
        files.append(path)
        unlink(path, missing_ok)

    monkeypatch.setattr(pictures, "IN_MEMORY", 1 << 16)
    monkeypatch.setattr(Path, "unlink", watched)
    mapped = decoded(small)
    assert [f.suffix for f in files] == [".frames"]
    assert torch.equal(mapped, expected)
    assert mapped.mul(2).max() == expected.max() * 2  # what other nodes do with it
    assert not list((small.host.base / "temp").glob("*.frames"))


def test_fewer_frames_than_were_announced(made: Made) -> None:
    pictures = made.host.module("vft_nodes.pictures")
    frames = [(made.clip[0][0].numpy() * 255).astype("uint8")] * 3
    assert pictures.store(iter(frames), 5).shape == (3, 256, 256, 3)


# ---------------------------------------------------------------------- lists


def test_models_are_listed_by_kind(made: Made) -> None:
    loaders, folder = made.host.module("vft_nodes.loaders"), made.host.models / "sub"
    folder.mkdir()
    save_tiny(folder / "tokenizer.safetensors")
    prior = made_prior(OURS)
    save_prior(folder / "prior.sft", prior.config, prior.state_dict(), None)
    (folder / "broken.safetensors").write_bytes(b"\xff" * 64)
    (folder / "notes.txt").write_text("not a model")
    names = {
        kind: [n for n in loaders.models_of(kind) if n.startswith("sub")]
        for kind in ("tokenizer", "prior")
    }
    assert names == {
        "tokenizer": ["sub/broken.safetensors", "sub/tokenizer.safetensors"],
        "prior": ["sub/broken.safetensors", "sub/prior.sft"],
    }
    assert next(iter(loaders.models_of("tokenizer"))) == "default"
    assert made.host.results("VFTLoadTokenizer", tokenizer="sub/tokenizer.safetensors")
    with pytest.raises(made.host.error, match=r"broken\.safetensors") as e:
        made.host.run("VFTLoadTokenizer", tokenizer="sub/broken.safetensors")
    assert "\n" not in str(e.value)


def test_the_page_is_told_what_suits_a_model_before_it_is_loaded(made: Made) -> None:
    """It offers budgets and names automatic values by that."""
    path = save_tiny(made.host.models / "told.safetensors", registers=8)
    (made.host.models / "damaged.safetensors").write_bytes(b"no weights")
    try:
        told = {}
        for node, kind in (("VFTLoadTokenizer", "tokenizer"), ("VFTLoadPrior", "prior")):
            info = json.loads(json.dumps(made.host.nodes[node].GET_NODE_INFO_V1()))
            told[kind] = info["input"]["required"][kind][1]["vft_models"]
        prior, tokenizer = made.prior.model.config, made.tokenizer.model.config
        assert told["prior"]["default"] == {
            "registers": prior.registers, "frames": prior.frames,
            "temperature": prior.temperature, "guidance": [list(p) for p in prior.guidance],
        }  # fmt: skip
        assert told["tokenizer"]["default"] == {
            "registers": tokenizer.registers, "fps": tokenizer.fps,
            "sampling": {
                q: {"steps": of.steps, "guidance": of.guidance}
                for q in ("draft", "normal", "best")
                for of in [tokenizer.sampling.of(q)]
            },
        }  # fmt: skip
        assert told["tokenizer"]["told.safetensors"]["registers"] == 8
        assert told["tokenizer"]["damaged.safetensors"] == {}
        assert "told.safetensors" not in told["prior"]
    finally:
        path.unlink()
        path.with_name("damaged.safetensors").unlink()


def test_a_new_file_is_in_the_loaders_list_once_the_page_asks_again(made: Made) -> None:
    """Pressing R asks for /object_info, which calls define_schema anew."""
    save_tiny(made.host.models / "new.safetensors")
    schema = made.host.nodes["VFTLoadTokenizer"].GET_SCHEMA()
    assert "new.safetensors" in schema.inputs[0].options


def test_a_preview_never_pushes_out_the_prior_at_work(
    small: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a small card loading the tokenizer alone would move the prior away between two ids."""
    import comfy.model_management as mm

    asked: list[list[Any]] = []
    plain = mm.load_models_gpu

    def watched(models: list[Any], **options: Any) -> None:
        asked.append(list(models))
        plain(models, **options)

    monkeypatch.setattr(mm, "load_models_gpu", watched)
    with small.previews() as shown:
        small.host.results(
            "VFTTextToTokens", prior=small.prior, prompt="a red ball", budget=4, frames=17
        )
    assert len(shown) == 3  # at 1, 2 and 4 tokens per latent frame
    assert len(asked) == 4
    assert all(any(m is small.prior.patcher for m in models) for models in asked)
