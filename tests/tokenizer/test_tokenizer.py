"""Pixels to tokens to pixels: chunks, budgets, batches, seeds and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from torch import Tensor

from vft_lib.config.tokenizer import DecoderStep, PosembConfig
from vft_lib.errors import ConfigError, VftError
from vft_lib.models.loading import load_tokenizer
from vft_lib.tokenizer import flow
from vft_lib.tokenizer.sampling import Sampling
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.tokens import Tokens

LENGTHS = [1, 2, 16, 17, 18, 33, 34, 50]


def clips(batch: int, frames: int, seed: int = 0) -> Tensor:
    """Moving blobs with some noise: every frame and every clip differs."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 3, 8, 4, 4, generator=g)
    video = torch.nn.functional.interpolate(coarse, (frames, 32, 32), mode="trilinear")
    return (video + 0.1 * torch.randn(video.shape, generator=g)).clamp(-1, 1)


def with_overlap(tok: Tokenizer, overlap: int) -> Tokenizer:
    """The same weights, cut into chunks another way."""
    if overlap == tok.config.overlap:
        return tok
    other = Tokenizer(dataclasses.replace(tok.config, overlap=overlap), tok.fingerprint)
    other.load_state_dict(tok.state_dict())
    return other.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=[1, 0], ids=["overlap1", "overlap0"])
def tok(request: pytest.FixtureRequest, tiny_tokenizer: Tokenizer) -> Tokenizer:
    return with_overlap(tiny_tokenizer, request.param)


def padded(tok: Tokenizer, video: Tensor) -> Tensor:
    """To whole chunks, by repeating the last frame (spec §9)."""
    c, frames = tok.config, video.shape[2]
    whole = c.chunk_frames
    while whole < frames:
        whole += c.stride
    return torch.cat([video, video[:, :, -1:].expand(-1, -1, whole - frames, -1, -1)], dim=2)


# ---------------------------------------------------------------------- pixels -> tokens


@pytest.mark.parametrize("frames", LENGTHS)
def test_streaming_equals_whole_clip_encoding(tok: Tokenizer, frames: int) -> None:
    """The whole-clip path, written out from spec §9, against both calls of the library."""
    c, video = tok.config, clips(2, frames)
    whole = padded(tok, video)
    rows = []
    with torch.inference_mode():
        for start in range(0, whole.shape[2] - c.chunk_frames + 1, c.stride):
            latents = tok.vae.encode(whole[:, :, start : start + c.chunk_frames])
            ids = tok.fsq.ids(tok.encoder(latents))
            rows.append(ids[:, c.overlap :] if start else ids)
    expected = torch.cat(rows, dim=1)

    tokens = tok.encode(video)
    assert torch.equal(tokens.ids, expected)
    streamed = list(tok.encode_chunks(frame for frame in video.unbind(2)))
    assert torch.equal(torch.cat(streamed, dim=1), expected)
    assert len(streamed) == tok.chunk_count(frames)
    assert expected.shape == (2, tok.latent_frames(frames), 8)
    assert tokens.frames == frames


def test_chunk_counts(tiny_tokenizer: Tokenizer) -> None:
    free = with_overlap(tiny_tokenizer, 0)
    assert [tiny_tokenizer.chunk_count(n) for n in LENGTHS] == [1, 1, 1, 1, 2, 2, 3, 4]
    assert [free.chunk_count(n) for n in LENGTHS] == [1, 1, 1, 1, 2, 2, 2, 3]
    assert tiny_tokenizer.latent_frames(81) == 21
    assert free.latent_frames(34) == 10


def test_frames_are_read_a_chunk_at_a_time(tok: Tokenizer) -> None:
    read = 0

    def frames() -> Iterator[Tensor]:
        nonlocal read
        for frame in clips(1, 120).unbind(2):
            read += 1
            yield frame

    for i, _ in enumerate(tok.encode_chunks(frames())):
        assert read <= tok.config.chunk_frames + i * tok.config.stride + 1


def test_ids_of_a_chunk_do_not_depend_on_later_chunks(tok: Tokenizer) -> None:
    video, other = clips(1, 50), clips(1, 50)
    first = tok.config.chunk_frames
    other[:, :, first:] = clips(1, 50 - first, seed=9)
    a, b = tok.encode(video).ids, tok.encode(other).ids
    assert torch.equal(a[:, :5], b[:, :5])
    assert not torch.equal(a[:, 5:], b[:, 5:])
    assert torch.equal(a[:, :5], tok.encode(video[:, :, :first]).ids)


def test_a_batch_is_encoded_as_each_clip_alone(tok: Tokenizer) -> None:
    video = clips(3, 20)
    ids = tok.encode(video).ids
    assert len(ids.unique(dim=0)) == 3
    for i in range(3):
        assert torch.equal(tok.encode(video[i]).ids, ids[i : i + 1])


def test_encoding_at_a_budget_is_truncation(tok: Tokenizer) -> None:
    video = clips(1, 20)
    full = tok.encode(video)
    for k in (1, 3, 8):
        assert torch.equal(tok.encode(video, budget=k).ids, full.truncate(k).ids)


def test_encode_notes_down_what_it_was_given(tiny_tokenizer: Tokenizer) -> None:
    tokens = tiny_tokenizer.encode(clips(1, 3), fps=29.97)
    assert (tokens.fps, tokens.frames, tokens.size) == (29.97, 3, (32, 32))
    assert (tokens.tokenizer, tokens.fingerprint) == ("tiny", tiny_tokenizer.fingerprint)
    assert tiny_tokenizer.encode(clips(1, 3)).fps == tiny_tokenizer.config.fps


def test_encode_counts_chunks(tok: Tokenizer) -> None:
    calls: list[tuple[int, int]] = []
    tok.encode(clips(1, 50), progress=lambda *a: calls.append(a))
    total = tok.chunk_count(50)
    assert calls == [(i + 1, total) for i in range(total)]


def test_ids_can_be_trained_on(tiny_tokenizer: Tokenizer) -> None:
    """Inference tensors cannot be saved for a backward pass; a prior trains on ids."""
    table = torch.nn.Embedding(64_000, 2)
    table(tiny_tokenizer.encode(clips(1, 17)).ids).sum().backward()


# ---------------------------------------------------------------------- tokens -> pixels


@pytest.mark.parametrize("frames", LENGTHS)
def test_as_many_frames_out_as_in(tok: Tokenizer, frames: int) -> None:
    tokens = tok.encode(clips(2, frames))
    video = tok.decode(tokens, steps=1)
    assert video.shape == (2, 3, frames, 32, 32)
    assert video.dtype == torch.float32
    assert video.abs().max() <= 1
    parts = [part.shape[2] for part in tok.decode_chunks(tokens, Sampling(steps=1))]
    assert sum(parts) == frames
    assert len(parts) == tok.chunk_count(frames)
    assert 0 not in parts


def test_streaming_equals_whole_clip_decoding(tok: Tokenizer) -> None:
    """Spec §9 written out: the last decoded frame, not clamped, leads the next chunk."""
    c = tok.config
    tokens = tok.encode(clips(1, 50)).truncate(5)
    generator = torch.Generator().manual_seed(7)
    codes = torch.nn.functional.pad(tok.fsq.codes(tokens.ids), (0, 0, 0, 8 - 5))
    no, yes = torch.tensor([False]), torch.tensor([True])
    pieces: list[Tensor] = []
    used = 0
    with torch.inference_mode():
        while used < codes.shape[1]:
            noise = torch.randn((1, *c.latent_shape), generator=generator)
            pinned, mine = None, codes[:, used : used + 5]
            if pieces and c.overlap:
                pinned = tok.vae.encode(pieces[-1][:, :, -1:])
                again = tok.fsq.codes(tok.fsq.ids(tok.encoder(pinned)))
                again[:, :, 5:] = 0
                mine = torch.cat([again, codes[:, used : used + 4]], dim=1)
            used += mine.shape[1] - (pinned is not None)
            keep, prefix = torch.tensor([5]), torch.tensor([0 if pinned is None else 1])
            registers = [tok.decoder.prepare(mine, keep, prefix, drop) for drop in (no, yes)]
            x, guidance = noise, flow.Guidance(3.0)
            for i in (3, 2, 1):
                if pinned is not None:
                    x = torch.cat([pinned, x[:, :, 1:]], dim=2)
                m = tok.decoder.modulate(torch.tensor([i / 3]), torch.float32)
                cond, uncond = (tok.decoder(x, m, r) for r in registers)
                x = x - guidance(cond, uncond) / 3
            if pinned is not None:
                x = torch.cat([pinned, x[:, :, 1:]], dim=2)
            pieces.append(tok.vae.decode(x))
    fresh = [p if i == 0 else p[:, :, c.overlap :] for i, p in enumerate(pieces)]
    expected = torch.cat(fresh, dim=2)[:, :, :50].clamp(-1, 1)
    streamed = list(tok.decode_chunks(tokens, Sampling(steps=3, guidance=3.0, apg=True, seed=7)))
    whole = tok.decode(tokens, steps=3, guidance=3.0, apg=True, seed=7)
    assert torch.equal(torch.cat(streamed, dim=2), whole)
    assert torch.allclose(whole, expected, atol=1e-3)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_truncating_then_decoding_equals_decoding_with_that_budget(tok: Tokenizer, k: int) -> None:
    full = tok.encode(clips(2, 17))
    noise = torch.stack(
        [torch.randn(tok.config.latent_shape, generator=torch.Generator().manual_seed(0))] * 2
    )
    with torch.inference_mode():
        latents = tok.sample_latents(full.ids, noise, Sampling(2, 1.0), keep=torch.tensor([k, k]))
        expected = tok.vae.decode(latents).clamp(-1, 1)
    assert torch.allclose(tok.decode(full.truncate(k), steps=2, guidance=1.0), expected, atol=1e-5)


def test_every_budget_gives_another_picture(tiny_tokenizer: Tokenizer) -> None:
    """Else the tests of budgets would prove nothing."""
    full = tiny_tokenizer.encode(clips(1, 17))
    videos = [tiny_tokenizer.decode(full.truncate(k), steps=2) for k in range(1, 9)]
    for a, b in itertools.pairwise(videos):
        assert (a - b).abs().max() > 1e-4


def test_budgets_of_one_batch_do_not_mix(tiny_tokenizer: Tokenizer) -> None:
    full = tiny_tokenizer.encode(clips(2, 17))
    noise = torch.randn((2, 4, 5, 4, 4), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        both = tiny_tokenizer.sample_latents(
            full.ids, noise, Sampling(2, 4.0), keep=torch.tensor([2, 8])
        )
        for i, k in enumerate((2, 8)):
            one = tiny_tokenizer.sample_latents(
                full.ids[i : i + 1, :, :k],
                noise[i : i + 1],
                Sampling(2, 4.0),
            )
            assert torch.allclose(both[i : i + 1], one, atol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_batch_is_decoded_as_each_clip_alone(tok: Tokenizer, guidance: float) -> None:
    tokens = tok.encode(clips(3, 20))
    video = tok.decode(tokens, steps=2, guidance=guidance, seed=5)
    for i in range(3):
        alone = tok.decode(tokens[i], steps=2, guidance=guidance, seed=5)
        assert torch.equal(alone, video[i : i + 1]), "on a CPU, to the bit"
    seeds = tok.decode(tokens, steps=2, guidance=guidance, seed=[4, 5, 6])
    assert torch.equal(seeds[1:2], video[1:2])
    assert not torch.allclose(seeds[:1], video[:1], atol=1e-3)


def test_same_seed_same_bytes(tok: Tokenizer) -> None:
    tokens = tok.encode(clips(1, 20))
    torch.manual_seed(1)
    first = tok.decode(tokens, steps=2, seed=3)
    torch.manual_seed(2)  # the global generator plays no part
    assert torch.equal(tok.decode(tokens, steps=2, seed=3), first)
    assert not torch.equal(tok.decode(tokens, steps=2, seed=4), first)
    tok.decode(tokens, steps=2, seed=2**64 - 1)  # the largest seed of a ComfyUI widget


def test_decoding_leaves_tokens_as_they_are(tiny_tokenizer: Tokenizer) -> None:
    tokens = tiny_tokenizer.encode(clips(1, 20))
    before = tokens.ids.clone()
    tiny_tokenizer.decode(tokens, steps=1, first_frame=clips(1, 1)[:, :, 0])
    assert torch.equal(tokens.ids, before)


def recorded(tok: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Arguments and result of every call of `sample_latents` from now on."""
    calls: list[dict[str, Any]] = []
    real = tok.sample_latents

    def spy(ids: Tensor, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        latents = real(ids, noise, *args, **kwargs)
        calls.append({"ids": ids, "noise": noise, "pinned": kwargs["pinned"], "latents": latents})
        return latents

    monkeypatch.setattr(tok, "sample_latents", spy)
    return calls


def by_chunk(calls: list[dict[str, Any]], clips: int) -> list[dict[str, Any]]:
    """Calls for one clip each, those of a chunk together."""
    chunks = [calls[i : i + clips] for i in range(0, len(calls), clips)]
    return [
        {k: None if v is None else torch.cat([c[k] for c in chunk]) for k, v in chunk[0].items()}
        for chunk in chunks
    ]


def test_a_generator_draws_in_the_published_order(
    tok: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks outermost, clips inside, all latent frames of a chunk, never seeded again."""
    calls = recorded(tok, monkeypatch)
    tokens = tok.encode(clips(2, 50))
    generator = torch.Generator().manual_seed(11)
    tok.decode(tokens, steps=1, generator=generator, first_frame=clips(2, 1)[:, :, 0])
    published = torch.Generator().manual_seed(11)
    assert len(by_chunk(calls, 2)) == tok.chunk_count(50) >= 3
    for call in by_chunk(calls, 2):
        assert call["noise"].dtype == torch.float32
        for clip in range(2):
            draw = torch.randn((1, *tok.config.latent_shape), generator=published)
            assert torch.equal(call["noise"][clip : clip + 1], draw)
    assert torch.equal(generator.get_state(), published.get_state())


def test_a_seed_runs_on_through_the_chunks(tok: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(tok, monkeypatch)
    tok.decode(tok.encode(clips(2, 50)), steps=1, seed=[3, 8])
    for clip, seed in enumerate((3, 8)):
        own = torch.Generator().manual_seed(seed)
        for call in by_chunk(calls, 2):
            assert torch.equal(
                call["noise"][clip], torch.randn(tok.config.latent_shape, generator=own)
            )


@pytest.mark.parametrize("given", [1, 5])
def test_first_frames_are_pinned(
    tok: Tokenizer, monkeypatch: pytest.MonkeyPatch, given: int
) -> None:
    calls = recorded(tok, monkeypatch)
    steps: tuple[DecoderStep, ...] = (
        "posemb",
        "nested_dropout",
        "null_condition",
    )  # no prefix masking: ids count
    monkeypatch.setattr(tok.decoder, "steps", steps)
    decoder = dataclasses.replace(tok.config.decoder, steps=steps)
    monkeypatch.setattr(tok, "config", dataclasses.replace(tok.config, decoder=decoder))
    tokens = tok.encode(clips(2, 40)).truncate(3)
    first = clips(2, given, seed=5)
    video = tok.decode(tokens, steps=2, first_frame=first if given > 1 else first[:, :, 0])
    with torch.inference_mode():
        latents = torch.cat([tok.vae.encode(clip) for clip in first.split(1)])
        ids = tok.fsq.ids(tok.encoder(latents))[:, :, :3]
    t, calls = latents.shape[2], by_chunk(calls, 2)
    assert t == (given + 3) // 4
    assert torch.equal(calls[0]["latents"][:, :, :t], latents)
    assert torch.equal(calls[0]["ids"][:, :t], ids), "the given frames' own ids, at the budget"
    assert torch.equal(calls[0]["ids"][:, t:], tokens.ids[:, t:5])
    assert (calls[1]["pinned"] is None) == (tok.config.overlap == 0)
    assert not torch.equal(video, tok.decode(tokens, steps=2))


def test_prefix_masking_looks_at_no_ids_of_given_frames(tiny_tokenizer: Tokenizer) -> None:
    """So they are not made anew either: an encoder that cannot run is not run."""
    assert "prefix_masking" in tiny_tokenizer.config.decoder.steps
    tokens, first = tiny_tokenizer.encode(clips(2, 33)), clips(2, 1)[:, :, 0]
    expected = tiny_tokenizer.decode(tokens, steps=2, first_frame=first)
    other = dataclasses.replace(tokens, ids=tokens.ids.clone())
    other.ids[:, 0] = 0
    assert torch.equal(tiny_tokenizer.decode(other, steps=2, first_frame=first), expected)
    assert not torch.equal(tiny_tokenizer.decode(other, steps=2), expected)


def test_each_clip_at_its_own_budget(tiny_tokenizer: Tokenizer) -> None:
    tokens = tiny_tokenizer.encode(clips(3, 20))
    video = tiny_tokenizer.decode(tokens, steps=2, budgets=[1, 8, 3], seed=4)
    for i, k in enumerate((1, 8, 3)):
        alone = dataclasses.replace(tokens, ids=tokens.ids[i : i + 1]).truncate(k)
        assert torch.equal(video[i : i + 1], tiny_tokenizer.decode(alone, steps=2, seed=4))
    for bad in ([1, 2], [0, 1, 1], [1, 9, 1]):
        with pytest.raises(VftError, match="budgets"):
            tiny_tokenizer.decode(tokens, budgets=bad)


def test_each_latent_frame_at_its_own_budget(tok: Tokenizer) -> None:
    """What a chunk becomes depends on its own budgets alone: those of version 2's files."""
    full = tok.encode(clips(2, 30))
    t, rows = tok.config.token_frames, len(full.rows)
    ways: dict[str, Any] = {"steps": 2, "guidance": 2.0, "seed": 4}
    mixed = full.truncate([8] * t + [3] * (rows - t))
    video, whole = tok.decode(mixed, **ways), tok.decode(full, **ways)
    assert torch.equal(video[:, :, :17], whole[:, :, :17])
    coarse = tok.decode(full.truncate(3), **ways)
    assert torch.equal(video[:, :, 17:], coarse[:, :, 17:]) == (tok.config.overlap == 0)
    assert (video[:, :, 17:] - whole[:, :, 17:]).abs().max() > 1e-3
    uneven = mixed.truncate([8, 1, 3, 2, 5] + [3] * (rows - t))
    other = tok.decode(uneven, **ways)
    for k in (1, 3, 8):
        assert (other - tok.decode(full.truncate(k), **ways)).abs().max() > 1e-3
    for i in range(2):
        assert torch.equal(tok.decode(uneven[i], **ways), other[i : i + 1])
    capped = tok.decode(uneven, budgets=[3, 8], **ways)
    assert torch.equal(capped[:1], tok.decode(uneven[0].truncate(3), **ways))
    assert torch.equal(capped[1:], other[1:])


def test_registers_beyond_a_latent_frames_budget_are_the_stand_in(tok: Tokenizer) -> None:
    codes = tok.fsq.codes(tok.encode(clips(2, 17)).ids)
    zeros, no = torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.bool)
    keep = torch.tensor([[8, 1, 3, 2, 5], [1, 1, 8, 4, 4]])
    found = tok.decoder.prepare(codes, keep, zeros, no)
    for i, j in itertools.product(range(2), range(5)):
        alone = tok.decoder.prepare(codes, keep[:, j], zeros, no)[i, j]
        assert torch.equal(found[i, j], alone)
        assert (found[i, j, keep[i, j] :] == tok.decoder.nested_mask).all()


def test_an_uneven_chunk_takes_no_more_registers_than_it_holds(
    tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tok, seen = with_overlap(tiny_tokenizer, 0), list[int]()
    merge = tok.decoder.merge

    def noted(registers: Tensor, keep: int) -> tuple[Tensor, int]:
        seen.append(keep)
        return merge(registers, keep)

    monkeypatch.setattr(tok.decoder, "merge", noted)
    full = tok.encode(clips(1, 34))
    tok.decode(full.truncate([1, 2, 1, 1, 1] + [7] * 5), steps=1, guidance=1.0)
    assert seen == [2, 7]


def test_ids_that_are_not_there_are_no_ids(tiny_tokenizer: Tokenizer) -> None:
    tokens = tiny_tokenizer.encode(clips(1, 17))
    missing = dataclasses.replace(tokens, ids=tokens.ids.clone())
    missing.ids[:, 2, 3] = -1
    with pytest.raises(VftError, match="ids go up to"):
        tiny_tokenizer.decode(missing, steps=1)
    missing = dataclasses.replace(missing.truncate((8, 8, 4, 8, 8)))
    with pytest.raises(VftError, match="ids go up to"):
        tiny_tokenizer.decode(missing, steps=1)


def test_unclamped_values_are_there_to_have(tiny_tokenizer: Tokenizer) -> None:
    tokens = tiny_tokenizer.encode(clips(1, 17))
    tiny_tokenizer = copy.deepcopy(tiny_tokenizer)
    tiny_tokenizer.vae.decoder.conv_out.conv.weight.mul_(100)
    raw = tiny_tokenizer.decode(tokens, steps=1, clamp=False)
    assert raw.abs().max() > 1
    assert torch.equal(raw.clamp(-1, 1), tiny_tokenizer.decode(tokens, steps=1))


@pytest.mark.parametrize("frames", [13, 26])
def test_patches_may_span_latent_frames(frames: int) -> None:
    """Two latent frames a patch: half as many rows of ids, and no overlap."""
    side: dict[str, Any] = {"patch_size": (2, 2, 1), "patch_posemb": PosembConfig((2, 2, 4))}
    config = dataclasses.replace(
        TINY, chunk_frames=13, overlap=0,
        encoder=dataclasses.replace(TINY.encoder, **side),
        decoder=dataclasses.replace(TINY.decoder, **side),
    )  # fmt: skip
    assert (config.latent_frames, config.token_frames) == (4, 2)
    tok = Tokenizer(config).eval().requires_grad_(False)
    tokens = tok.encode(clips(1, frames))
    assert tokens.ids.shape == (1, frames // 13 * 2, 8)
    assert tok.decode(tokens, steps=1).shape == (1, 3, frames, 32, 32)
    with pytest.raises(VftError, match="spans 2 latent frames"):
        tok.decode(tokens, first_frame=clips(1, 1)[:, :, 0])
    assert tok.decode(tokens, steps=1, first_frame=clips(1, 5)).shape[2] == frames
    with pytest.raises(ConfigError, match="overlap"):
        dataclasses.replace(config, overlap=1)


def test_one_first_frame_serves_a_batch(tiny_tokenizer: Tokenizer) -> None:
    tokens, first = tiny_tokenizer.encode(clips(2, 17)), clips(1, 1)[:, :, 0]
    one = tiny_tokenizer.decode(tokens, steps=1, first_frame=first)
    each = tiny_tokenizer.decode(tokens, steps=1, first_frame=first.expand(2, -1, -1, -1))
    assert torch.equal(one, each)


def test_later_chunks_begin_with_the_last_decoded_frame(
    tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded(tiny_tokenizer, monkeypatch)
    tokens, real = tiny_tokenizer.encode(clips(1, 33)), tiny_tokenizer.vae.decode
    monkeypatch.setattr(tiny_tokenizer.vae, "decode", lambda latents, *_: 9 * real(latents))
    tiny_tokenizer.decode(tokens, steps=2)
    with torch.inference_mode():
        last = tiny_tokenizer.vae.decode(calls[0]["latents"])[:, :, -1:]
        assert last.abs().max() > 1, "it must not be clamped, so there must be something to clamp"
        pinned = tiny_tokenizer.vae.encode(last)
    assert calls[0]["pinned"] is None
    assert torch.equal(calls[1]["pinned"], pinned)
    assert torch.equal(calls[1]["latents"][:, :, :1], pinned)


def test_decode_counts_steps_over_all_chunks(tok: Tokenizer) -> None:
    calls: list[tuple[int, int]] = []
    tok.decode(tok.encode(clips(1, 50)), steps=3, progress=lambda *a: calls.append(a))
    total = 3 * tok.chunk_count(50)
    assert calls == [(i + 1, total) for i in range(total)]


def test_raising_in_progress_cancels_decoding(tiny_tokenizer: Tokenizer) -> None:
    def cancel(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_tokenizer.decode(tiny_tokenizer.encode(clips(1, 17)), steps=5, progress=cancel)


def test_defaults_come_from_the_config(tiny_tokenizer: Tokenizer) -> None:
    tokens, sampling = tiny_tokenizer.encode(clips(1, 17)), tiny_tokenizer.config.sampling
    explicit = tiny_tokenizer.decode(
        tokens, steps=sampling.steps, guidance=sampling.guidance, apg=sampling.apg, seed=0
    )
    assert torch.equal(tiny_tokenizer.decode(tokens), explicit)


# ---------------------------------------------------------------------- what is refused


def test_tokens_of_another_tokenizer_are_refused_naming_both(tiny_tokenizer: Tokenizer) -> None:
    tokens = tiny_tokenizer.encode(clips(1, 17))
    other = dataclasses.replace(tokens, tokenizer="grand", fingerprint="feedfacefeedface")
    with pytest.raises(VftError) as e:
        tiny_tokenizer.decode(other, steps=1)
    for name in ("grand", "feedfacefeedface", "'tiny'", tiny_tokenizer.fingerprint):
        assert name in str(e.value)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((17, 32, 32), r"\[17, 32, 32\].*\[B,3,T,H,W\]"),
        ((1, 1, 17, 32, 32), r"\[1, 1, 17, 32, 32\].*\[B,3,T,H,W\]"),
        ((1, 17, 3, 32, 32), r"\[B,3,T,H,W\]"),
        ((1, 3, 0, 32, 32), r"\[B,3,T,H,W\]"),
        ((0, 3, 17, 32, 32), r"\[B,3,T,H,W\]"),
        ((1, 3, 17, 64, 48), r"48x64 px.*'tiny' takes 32x32.*size=32"),
    ],
)
def test_videos_of_another_shape(
    tiny_tokenizer: Tokenizer, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(VftError, match=message):
        tiny_tokenizer.encode(torch.zeros(shape))


def test_bytes_are_not_taken_for_pixels(tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(VftError, match=r"torch.uint8.*\[-1,1\]"):
        tiny_tokenizer.encode(torch.zeros(1, 3, 17, 32, 32, dtype=torch.uint8))


def test_no_frames(tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(VftError, match="no frames"):
        list(tiny_tokenizer.encode_chunks(iter(())))


@pytest.mark.parametrize("budget", [0, -1, 9])
def test_budgets_out_of_range(tiny_tokenizer: Tokenizer, budget: int) -> None:
    with pytest.raises(VftError, match=rf"budget {budget} .*'tiny' has 8 .*choose 1 to 8"):
        tiny_tokenizer.encode(clips(1, 1), budget=budget)


@pytest.mark.parametrize("fps", [0, -8.0, float("nan"), float("inf")])
def test_frame_rates_out_of_range(tiny_tokenizer: Tokenizer, fps: float) -> None:
    """A rate of 0 once became the model's own without a word."""
    with pytest.raises(VftError, match="fps is"):
        tiny_tokenizer.encode(clips(1, 1), fps=fps)


def short(tok: Tokenizer, **changes: Any) -> Tokens:
    return dataclasses.replace(tok.encode(clips(1, 17)), **changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps is 0; choose 1 or more"),
        ({"steps": -3}, "steps is -3; choose 1 or more"),
        ({"seed": [1, 2]}, "2 seeds for 1 clips"),
        ({"seed": []}, "0 seeds for 1 clips"),
        ({"seed": 1 << 64}, "seed 18446744073709551616 is out of range"),
        ({"first_frame": torch.zeros(1, 3, 16, 16)}, "16x16 px.*32x32"),
        ({"first_frame": torch.zeros(3, 32, 32)}, r"\[3, 32, 32\]"),
        ({"first_frame": torch.zeros(2, 3, 32, 32)}, "first frames for 2 clips, tokens of 1"),
        ({"first_frame": torch.zeros(1, 3, 4, 32, 32)}, r"4 given frames; expected 1 \+ 4n"),
        ({"first_frame": torch.zeros(1, 3, 21, 32, 32)}, "21 given frames.*at most 17"),
    ],
)
def test_decoding_arguments_out_of_range(
    tiny_tokenizer: Tokenizer, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(VftError, match=message):
        tiny_tokenizer.decode(short(tiny_tokenizer), **({"steps": 1} | arguments))


def test_tokens_that_do_not_fit_their_frame_count(tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(VftError, match="40 frames need 13 latent frames, these tokens have 5"):
        tiny_tokenizer.decode(short(tiny_tokenizer, frames=40), steps=1)


def test_tokens_with_more_than_there_are_registers(tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(VftError, match="budget 9"):
        ids = torch.zeros(1, 5, 9, dtype=torch.int64)
        tiny_tokenizer.decode(short(tiny_tokenizer, ids=ids), steps=1)


@pytest.mark.parametrize("wrong", [64_000, -1])
def test_ids_that_are_no_codes(tiny_tokenizer: Tokenizer, wrong: int) -> None:
    ids = torch.zeros(1, 5, 8, dtype=torch.int64)
    ids[0, 4, 7] = wrong
    with pytest.raises(VftError, match=r"ids .*expected .*64000"):
        tiny_tokenizer.decode(short(tiny_tokenizer, ids=ids), steps=1)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (float("nan"), "frame 3 holds NaN or infinity"),
        (float("-inf"), "frame 3 holds NaN or infinity"),
        (255.0, r"frame 3 has values from -?\d.* to 255; expected \[-1,1\]: pixels / 127.5 - 1"),
        (-300.0, "frame 3 has values from -300 to"),
    ],
)
def test_pixels_of_another_range_are_named(
    tiny_tokenizer: Tokenizer, value: float, told: str
) -> None:
    video = torch.rand(1, 3, 5, 32, 32)
    video[0, 1, 3, 7, 7] = value
    with pytest.raises(VftError, match=told):
        tiny_tokenizer.encode(video)
    tokens = tiny_tokenizer.encode(video[:, :, :3])
    with pytest.raises(VftError, match=told.replace("frame 3", "frame 0")):
        tiny_tokenizer.decode(tokens, steps=1, first_frame=video[:, :, 3])
    tiny_tokenizer.encode(video[:, :, :3] * 1.2)  # an overshoot is none


@pytest.mark.parametrize(
    ("shape", "dtype", "told"),
    [
        ((1, 1, 5, 32, 32), torch.float32, r"shape \[1, 1, 5, 32, 32\]"),
        ((1, 4, 5, 32, 32), torch.float32, r"shape \[1, 4, 5, 32, 32\]"),
        ((0, 3, 5, 32, 32), torch.float32, r"shape \[0, 3, 5, 32, 32\]"),
        ((1, 3, 0, 32, 32), torch.float32, r"shape \[1, 3, 0, 32, 32\]"),
        ((3, 32, 32), torch.float32, r"shape \[3, 32, 32\]"),
        ((1, 5, 32, 32, 3), torch.float32, r"shape \[1, 5, 32, 32, 3\]"),
        ((1, 3, 5, 32, 32), torch.uint8, "dtype torch.uint8"),
        ((1, 3, 5, 64, 64), torch.float32, "64x64 px"),
    ],
)
def test_videos_of_no_video_shape_are_named(
    tiny_tokenizer: Tokenizer, shape: tuple[int, ...], dtype: torch.dtype, told: str
) -> None:
    with pytest.raises(VftError, match=told):
        tiny_tokenizer.encode(torch.zeros(shape, dtype=dtype))


# ------------------------------------------------------------------ speed and memory


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_compiled_step_gives_the_same_pictures(tiny_checkpoint: Path, guidance: float) -> None:
    tok = load_tokenizer(tiny_checkpoint, device="cpu")
    tokens, graphs = tok.encode(clips(1, 33), budget=3), []
    plain = tok.decode(tokens, steps=3, guidance=guidance)

    def traced(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    tok.compile_decoder(traced)
    assert torch.allclose(tok.decode(tokens, steps=3, guidance=guidance), plain, atol=1e-4)
    assert len(graphs) == (1 if guidance == 1 else 2)  # for each shape, whole, once
    tok.decode(tokens, steps=5, guidance=guidance, seed=7)
    assert len(graphs) == (1 if guidance == 1 else 2)
    assert "compiled" not in dict(tok.named_children())


def test_a_step_that_cannot_be_compiled_runs_as_written(tiny_checkpoint: Path) -> None:
    """No compiler on this machine, say: tried once, and said."""
    tok = load_tokenizer(tiny_checkpoint, device="cpu")
    tokens, tried = tok.encode(clips(1, 33), budget=3), []
    plain = tok.decode(tokens, steps=3)

    def broken(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        tried.append(graph)
        raise RuntimeError("no compiler here\nand more")

    tok.compile_decoder(broken)
    assert torch.equal(tok.decode(tokens, steps=3), plain)
    assert len(tried) == 1
    assert tok.compiled is not None
    assert tok.compiled.problem == (
        "RuntimeError: no compiler here; install one (g++ or clang), or do not compile"
    )


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
def test_inductor_gives_the_same_pictures(tiny_checkpoint: Path) -> None:
    tok = load_tokenizer(tiny_checkpoint, device="cpu")
    tokens = tok.encode(clips(1, 33), budget=3)
    plain = tok.decode(tokens, steps=3, guidance=3.0)
    tok.compile_decoder()
    assert torch.allclose(tok.decode(tokens, steps=3, guidance=3.0), plain, atol=1e-4)


def test_less_memory_for_the_same_result(tiny_checkpoint: Path) -> None:
    tok = load_tokenizer(tiny_checkpoint, device="cpu")
    video = clips(1, 33)
    tokens = tok.encode(video)
    plain = tok.decode(tokens, steps=2)
    assert tok.limit_memory(tok.chunk_memory()) == 5
    assert tok.limit_memory(tok.chunk_memory() // 2) == 2
    assert tok.limit_memory(1) == tok.frames_at_once == 1
    assert torch.equal(tok.encode(video).ids, tokens.ids)
    assert torch.allclose(tok.decode(tokens, steps=2), plain, atol=1e-4)
    low = list(tok.decode_chunks(tokens, Sampling(steps=2), low_memory=True))
    assert torch.allclose(torch.cat(low, 2), plain, atol=1e-4)
    assert tok.limit_memory(None) == 5
    assert tok.frames_at_once is None
