"""Modulation weights in the host's memory: the same numbers, and a device that never holds them."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vft_lib.measure.bench import published
from vft_lib.models.loading import load_tokenizer
from vft_lib.tokenizer.eight_bit import Storage, store_in_eight_bits
from vft_lib.tokenizer.sampling import Sampling
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.transformer import backends
from vft_lib.transformer.graphs import Graphs, rehearse
from vft_lib.transformer.offload import OffloadedLinear, device_bytes, offloaded


@pytest.fixture
def tok(tiny_checkpoint: Path) -> Tokenizer:
    return load_tokenizer(tiny_checkpoint, device="cpu")


def all_moved(tok: Tokenizer) -> Tokenizer:
    """The same tokenizer with nothing offloaded."""
    with torch.device("meta"):
        plain = Tokenizer(tok.config, tok.fingerprint)
    plain.load_state_dict(tok.state_dict(), assign=True)
    assert not offloaded(plain)
    return plain.eval().requires_grad_(False)


def latents(tok: Tokenizer, sampling: Sampling | None = None, clips: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(tok.config.vocab, (clips, 5, 3), generator=generator)
    noise = torch.randn(clips, *tok.config.latent_shape, generator=generator)
    return tok.sample_latents(ids, noise, sampling or Sampling(3, 3.0))


# ------------------------------------------------------------------ the same numbers


@pytest.mark.parametrize(
    "sampling", [Sampling(3, 1.0), Sampling(2, 3.0, method="midpoint"), Sampling(70, 1.0)]
)
def test_latents_are_the_same_to_the_bit(tok: Tokenizer, sampling: Sampling) -> None:
    expected = latents(all_moved(tok), sampling)
    assert torch.equal(latents(tok, sampling), expected)
    assert torch.equal(latents(tok, sampling), expected)  # remembered


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_reaches_them(tok: Tokenizer, dtype: torch.dtype) -> None:
    plain, tok = all_moved(tok).to(dtype), tok.to(dtype)
    assert {v.dtype for v in tok.state_dict().values()} == {dtype}
    assert torch.equal(latents(tok), latents(plain))


@pytest.mark.parametrize("storage", ["int8", "fp8"])
def test_eight_bits_reach_them(tok: Tokenizer, storage: Storage) -> None:
    plain = all_moved(tok)
    before = sum(layer.nbytes for layer in offloaded(tok.decoder.trunk).values())
    assert store_in_eight_bits(tok, storage) == store_in_eight_bits(plain, storage)
    after = sum(layer.nbytes for layer in offloaded(tok.decoder.trunk).values())
    assert after < 0.35 * before
    assert torch.equal(latents(tok), latents(plain))


def test_graphs_and_compiled_steps_take_them(tok: Tokenizer) -> None:
    plain = all_moved(tok)
    expected = latents(plain, Sampling(6, 3.0))
    tok.graphs = Graphs(rehearse, "on")
    assert torch.equal(latents(tok, Sampling(6, 3.0)), expected)
    assert tok.graphs.captured == 1
    assert tok.graphs.replayed > 1
    tok.graphs.use = "off"
    calls: list[int] = []

    def backend(module: Any, inputs: list[Any]) -> Callable[..., Any]:
        calls.append(len(inputs))
        return module.forward

    tok.compile_decoder(backend)
    assert torch.allclose(latents(tok, Sampling(6, 3.0)), expected, atol=1e-5)
    assert calls


# ------------------------------------------------------------------ computed once


def test_modulation_is_computed_once_for_all_chunks(tok: Tokenizer) -> None:
    for _ in range(3):
        latents(tok)
    assert tok.modulations.computed == 1
    latents(tok, clips=2)
    assert tok.modulations.computed == 1
    latents(tok, Sampling(4, 3.0))
    assert tok.modulations.computed == 2
    plain = all_moved(tok)
    for _ in range(3):
        latents(plain)
    assert plain.modulations.computed == 3  # weights that are trained may change


def test_other_weights_are_not_mixed_up(tok: Tokenizer) -> None:
    before = latents(tok)
    other = {k: v + 0.01 if "modulation" in k else v for k, v in tok.state_dict().items()}
    for assign in (False, True):
        changed = copy.deepcopy(tok)
        assert torch.equal(latents(changed), before)
        changed.load_state_dict(other, assign=assign)
        got = latents(changed)
        assert not torch.equal(got, before)
        assert torch.equal(got, latents(all_moved(changed)))
    assert torch.equal(latents(tok), before)


# ------------------------------------------------------------------ where they lie


def test_they_stay_when_the_model_moves(tok: Tokenizer) -> None:
    """`meta` stands in for a card."""
    keys = list(all_moved(tok).state_dict())
    tok = tok.to("meta")
    assert list(tok.state_dict()) == keys
    left = {k for k, v in tok.state_dict().items() if v.device.type == "cpu"}
    assert left == {k for k in keys if "modulation." in k or "time.mlp" in k}
    assert {p.device.type for p in (*tok.parameters(), *tok.buffers())} == {"meta"}
    assert latents(tok).device.type == "meta"
    assert all(
        p.device.type == "cpu" for m in offloaded(tok).values() for p in m.layer.parameters()
    )


def test_weights_that_lay_elsewhere_come_home() -> None:
    class Lazy(torch.nn.Linear):
        """As another program's layers: it computes from weights that it fetches itself."""

        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError

    layer = Lazy(4, 8)
    kept = OffloadedLinear(layer)
    x = torch.randn(3, 4)
    assert torch.equal(kept(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
    assert not list(kept.parameters())
    assert list(kept.state_dict()) == ["weight", "bias"]
    assert kept.nbytes == 4 * (32 + 8)
    kept(x.requires_grad_()).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None


class Held(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive on `meta`, made since it was entered."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        self._count((args, kwargs), made=False)  # what was there before may come out again
        out = func(*args, **(kwargs or {}))
        self._count(out, made=True)
        return out

    def _count(self, tensors: Any, made: bool) -> None:
        for t in tree_leaves(tensors):
            if isinstance(t, Tensor) and t.is_meta and id(t.untyped_storage()) not in self.seen:
                storage = t.untyped_storage()
                size = storage.nbytes() if made else 0
                self.seen.add(id(storage))
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, id(storage), size)

    def _gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


@pytest.mark.parametrize(
    ("offload", "storage", "weights", "peak"),
    [(False, None, 5.24, 6.47), (True, None, 3.06, 4.3), (True, "int8", 1.99, 3.2)],
)
def test_bytes_of_the_published_decoder(
    offload: bool, storage: Storage | None, weights: float, peak: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """d28 at 256 px in bfloat16, k = 32, guided, on `meta`: the weights that lie there, and the
    most that is alive there while it samples and decodes a chunk. An H200 measured 6.47 GB with
    nothing offloaded: its allocator and matrix library take what is between. Attention is counted
    without its scores, as a GPU's kernels do without."""
    monkeypatch.setattr(
        backends.F, "scaled_dot_product_attention", lambda q, *_, **__: torch.empty_like(q)
    )
    with torch.device("meta"):
        tok = Tokenizer(published("d28"), "made-up")
    tok = tok.to(torch.bfloat16).eval().requires_grad_(False)
    if storage is not None:
        store_in_eight_bits(tok, storage)
    if offload:
        tok.decoder.offload_modulation()
    if offload and storage is None:
        for layer in offloaded(tok).values():
            layer.layer.to_empty(device="cpu")  # never touched: takes no memory
    tok.limit_memory(int(0.5e9))
    found = device_bytes(tok) / 1e9
    assert found == pytest.approx(weights, abs=0.02)
    with torch.inference_mode(), Held() as held:
        ids = torch.zeros(1, 5, 32, dtype=torch.int64)
        z = tok.sample_latents(ids, torch.zeros(1, *tok.config.latent_shape), Sampling(1, 3.0))
        sampler = held.peak / 1e9
        tok.vae.decode(z.to(tok.dtype), tok.frames_at_once)
    assert sampler < 0.35
    most = found + held.peak / 1e9
    print(f"{found:.2f} GB of weights, sampler {sampler:.2f}, in all {most:.2f}")
    assert 0.95 * peak < most < peak
