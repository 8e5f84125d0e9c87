"""Every attention backend against plain attention, on every mask; and which one "auto" takes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from transformer.test_attention import ALL_MODES, name, normal
from vft_lib.config.tokenizer import MaskConfig
from vft_lib.errors import VftError
from vft_lib.models.loading import load_tokenizer
from vft_lib.tokenizer.sampling import Sampling
from vft_lib.transformer import attention
from vft_lib.transformer.attention import BACKENDS, Layout, attend, merges_registers
from vft_lib.transformer.backends import Foreign, sdpa, xformers_bias
from vft_lib.transformer.layout import key_bias
from vft_lib.transformer.masks import attention_mask, frame_mask

CPU = torch.device("cpu")
EVERY = [pytest.param(m, id=name(m)) for m in ALL_MODES]


def plain(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> Tensor:
    """The formula, with the whole mask, in double precision."""
    t = layout.frames * layout.each
    seen = attention_mask(layout.mask, layout.frames, layout.patches, layout.registers, q.device)
    seen = torch.ones(t, t, dtype=torch.bool, device=q.device) if seen is None else seen
    scores = q.double() @ k.double().transpose(2, 3) * scale + key_bias(layout, q.device).double()
    return scores.masked_fill(~seen, -math.inf).softmax(-1) @ v.double()


def close(backend: str, mask: MaskConfig, device: torch.device, dtype: torch.dtype) -> None:
    for frames, patches, registers in ((3, 4, 5), (5, 20, 9)):
        for weight in (1, 248) if merges_registers(mask) else (1,):
            layout = Layout(mask, frames, patches, registers, weight, backend)
            shape = (2, 2, frames * layout.each, 64)
            q, k, v = (normal(i, *shape).to(device, dtype) for i in range(3))
            with torch.inference_mode():
                error = (attend(q, k, v, layout, 0.125) - plain(q, k, v, layout, 0.125)).abs().max()
            assert error < (1e-5 if dtype == torch.float32 else 0.03), (frames, weight)


@pytest.mark.parametrize("mask", EVERY)
def test_sdpa_gives_plain_attention(mask: MaskConfig) -> None:
    close("sdpa", mask, CPU, torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", list(BACKENDS))
def test_a_backend_gives_plain_attention_on_a_gpu(backend: str, dtype: torch.dtype) -> None:
    device = torch.device("cuda")
    refused = {name(m): attention.refusal(backend, m, device, 64, dtype) for m in ALL_MODES}
    if all(refused.values()):
        pytest.skip(f"{backend}: {refused['full']}")
    for mask in ALL_MODES:
        if not refused[name(mask)]:
            close(backend, mask, device, dtype)


@pytest.mark.parametrize("batch", [1, 3])
def test_what_xformers_is_told_is_the_mask(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels need a GPU, what its bias means can be read here."""
    attn_bias = pytest.importorskip("xformers.ops.fmha.attn_bias", reason="xformers is missing")

    def unpinned(rows: Any, dtype: torch.dtype, device: Any) -> Tensor:
        return torch.tensor(rows, dtype=dtype)  # its own wants pinned memory, so a GPU

    monkeypatch.setattr(attn_bias, "_to_device_tensor", unpinned)
    mask, frames, each = MaskConfig("time_block_causal"), 3, 9
    bias = xformers_bias(Layout(mask, frames, 4, 5), batch, CPU)
    read = torch.zeros(batch * frames * each, batch * frames * each)
    for (a, b), (c, d) in zip(bias.q_seqinfo.intervals(), bias.k_seqinfo.intervals()):
        read[a:b, c:d] += 1
    seen = attention_mask(mask, frames, 4, 5, CPU)
    assert seen is not None
    assert torch.equal(read, torch.block_diag(*[seen.float()] * batch))
    assert xformers_bias(Layout(MaskConfig("full"), 3, 4, 5), batch, CPU) is None
    causal = xformers_bias(Layout(MaskConfig("causal"), 3, 4, 5), batch, CPU)
    assert (causal.materialize((27, 27)) == 0).equal(torch.ones(27, 27).tril().bool())


@pytest.mark.parametrize("mask", EVERY)
def test_the_rows_of_a_frame_are_those_of_the_whole_mask(mask: MaskConfig) -> None:
    whole = attention_mask(mask, 3, 4, 5, CPU)
    whole = torch.ones(27, 27, dtype=torch.bool) if whole is None else whole
    for frame in range(3):
        rows, end = frame_mask(mask, frame, 4, 5, CPU), 9 * (frame + 1)
        rows = torch.ones(9, end, dtype=torch.bool) if rows is None else rows
        if mask.mode != "full":
            assert torch.equal(rows, whole[end - 9 : end, :end])
            assert not whole[end - 9 : end, end:].any()  # nothing later is left out


def test_auto_is_what_runs_here() -> None:
    for mask in ALL_MODES:
        assert attention.choose("auto", mask, CPU, 16, torch.float32) == "sdpa"


def test_a_backend_that_cannot_run_here_says_why() -> None:
    full = MaskConfig("full")
    for backend, why in (("xformers", "a CUDA device"), ("flex", "wrong numbers")):
        with pytest.raises(VftError, match=f"'{backend}' cannot run here: .*{why}.* or sdpa"):
            attention.choose(backend, full, CPU, 64, torch.float32)
    with pytest.raises(VftError, match="no attention backend 'triton'; choose auto, sdpa"):
        attention.choose("triton", full, CPU, 64, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [16, 32, 64])
def test_a_backend_is_tried_as_the_model_would_use_it(
    width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain attention in the working dtype passes; one that is wrong at one length does not."""
    mask = MaskConfig("time_block_causal")
    lengths = set()

    def fragile(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> Tensor:
        lengths.add(q.shape[2])
        y = sdpa(q, k, v, layout, scale)
        if q.shape[2] == 40 and layout.weight > 1:
            y[..., -1] = math.nan if width == 16 else y[..., -1] * 1.2
        return y

    assert attention.trial("sdpa", mask, CPU, width, dtype) == ""
    monkeypatch.setitem(BACKENDS, "xformers", fragile)
    why = attention.trial("xformers", mask, CPU, width, dtype)
    assert why.startswith("its result for 40 tokens is off by ")
    assert lengths == {25, 27, 40}
    monkeypatch.setitem(BACKENDS, "xformers", lambda *a: 1 / 0)
    assert "ZeroDivisionError" in attention.trial("xformers", mask, CPU, width, dtype)


def test_a_tokenizer_says_which_backend_cannot_run(tiny_checkpoint: Path) -> None:
    tok = load_tokenizer(tiny_checkpoint, device="cpu")
    assert tok.use_attention("sdpa") == tok.use_attention("auto") == "sdpa"
    for backend in ("xformers", "flex"):
        with pytest.raises(VftError, match="cannot run here"):
            tok.use_attention(backend)
    assert tok.decoder.trunk.backend == tok.encoder.trunk.backend == "auto"


# ---------------------------------------------------------------------- a program's own


def formula(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """What a program's attention computes: scale 1/sqrt(d), an additive mask in the dtype of q,
    sums in float32."""
    assert mask is None or (mask.dtype == q.dtype and mask.shape == (1, 1, q.shape[2], k.shape[2]))
    scores = q.float() @ k.float().transpose(2, 3) / math.sqrt(q.shape[3])
    return ((scores if mask is None else scores + mask).softmax(-1) @ v.float()).to(q)


@pytest.fixture
def adopted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Adopts `formula`, or one that is rough, as "own" for one test; counts its calls."""
    monkeypatch.setattr(attention, "BACKENDS", dict(BACKENDS))
    calls: list[tuple[int, ...]] = []

    def adopt(rough: float = 0.0, **facts: bool) -> list[tuple[int, ...]]:
        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            calls.append(tuple(q.shape))
            return formula(q, k, v, mask) * (1 + rough)

        attention.adopt("own", Foreign("ours", attend, **facts))
        return calls

    yield adopt
    attention.refusal.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", EVERY)
def test_a_programs_own_attention_computes_every_mask(
    mask: MaskConfig, dtype: torch.dtype, adopted: Any
) -> None:
    calls = adopted()
    close("own", mask, CPU, dtype)
    assert calls
    for width in (16, 64):
        assert attention.choose("own", mask, CPU, width, dtype) == "own"


def test_what_it_cannot_compute_plain_attention_does(adopted: Any) -> None:
    calls, blocks = adopted(rough=0.05, masks=False, exact=False), MaskConfig("time_block_causal")
    assert attention.choose("own", blocks, CPU, 64, torch.bfloat16) == "own"  # roughly right
    q, k, v = (normal(i, 1, 2, 27, 64).bfloat16() for i in range(3))
    calls.clear()
    attend(q, k, v, Layout(blocks, 3, 4, 5, 248, "own"), 0.125)
    assert not calls  # a weight of 248 would drown in eight bits
    attend(q, k, v, Layout(blocks, 3, 4, 5, 1, "own"), 0.125)
    assert calls == [(1, 2, 9, 64)] * 3
    with pytest.raises(VftError, match="ours takes no masks, as the mode 'causal' needs them"):
        attention.choose("own", MaskConfig("causal"), CPU, 64, torch.bfloat16)
    with pytest.raises(VftError, match="ours computes with 16-bit numbers only"):
        attention.choose("own", blocks, CPU, 64, torch.float32)


def test_one_that_is_wrong_is_refused(adopted: Any) -> None:
    adopted(rough=0.05)
    with pytest.raises(VftError, match=r"'own' cannot run here: its result .* is off by 0.05"):
        attention.choose("own", MaskConfig("full"), CPU, 64, torch.float32)
    adopted()  # another one under the same name is tried anew
    assert attention.choose("own", MaskConfig("full"), CPU, 64, torch.float32) == "own"


@pytest.mark.parametrize(("name", "package"), [("xformers", "xformers"), ("flex", "triton")])
def test_what_is_not_installed_is_named(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(attention, "find_spec", lambda wanted: None)
    assert attention.absence(name, cuda) == f"the package {package} is not installed"
    monkeypatch.setattr(attention, "find_spec", lambda wanted: wanted == package or None)
    assert attention.absence(name, cuda) == ""
    assert attention.absence("sdpa", cuda) == attention.absence("sdpa", CPU) == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_tokenizer_takes_flex_on_a_gpu(tiny_checkpoint: Path) -> None:
    tok = load_tokenizer(tiny_checkpoint, device="cuda", dtype=torch.float32)
    ids = torch.randint(64_000, (1, 5, 3), generator=torch.Generator().manual_seed(0))
    noise = normal(3, 1, *tok.config.latent_shape)
    out = []
    for backend in ("sdpa", "flex"):
        assert tok.use_attention(backend) == backend
        with torch.inference_mode():
            out.append(tok.sample_latents(ids, noise, Sampling(2, 2.0)))
    assert torch.allclose(out[0], out[1], atol=1e-3)
