"""The prior: what it writes, that a clip's ids are its own, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_tiny
from safetensors.torch import load_file, save_file

import vft_lib
from vft_lib.checkpoints.checkpoint import save_prior
from vft_lib.config.prior import PriorConfig, TextEncoderConfig
from vft_lib.errors import CheckpointError, ConfigError, VftError
from vft_lib.models.loading import load_prior
from vft_lib.prior.network import Cache
from vft_lib.prior.order import time_first, to_grid
from vft_lib.prior.prior import Prior, bits_budget
from vft_lib.prior.sampling import guide
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.tokens import Tokens

WORDS = TextEncoderConfig(("a", "red", "ball", "moves"), dim=16, head_dim=8, buckets=64)
OURS = PriorConfig(
    name="tiny-prior", tokenizer="tiny", depth=2, width=32, head_dim=16, seq_len=40, cond="both",
    classes=("still", "spin"), ctx_dim=16, n_ctx_null=4, max_text_len=48, head_bias=True,
    embedding="factorized", text_encoder=WORDS, guidance=((1, 2.0), (8, 1.0)), size=32,
)  # fmt: skip
PUBLISHED = PriorConfig(
    name="uco3d-tiny-d1", tokenizer="tiny", depth=1, width=64, seq_len=40, cond="text",
    vocab=64_000, ctx_dim=24, guidance=((1, 3.0),),
)  # fmt: skip


def made(config: PriorConfig, seed: int = 0) -> Prior:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        prior = Prior(config, "test")
        for p in prior.parameters():
            if p.ndim >= 2:  # logits as far apart as a trained prior's
                torch.nn.init.normal_(p, std=p.shape[-1] ** -0.5)
    return prior.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def prior(tiny_tokenizer: Tokenizer) -> Prior:
    return made(OURS).bind(tiny_tokenizer)


@pytest.fixture(scope="module")
def text_prior(tiny_tokenizer: Tokenizer) -> Prior:
    return made(PUBLISHED).bind(tiny_tokenizer)


# ---------------------------------------------------------------------- order and network


def test_time_first_order() -> None:
    ids = torch.arange(2 * 5 * 8).view(2, 5, 8)
    flat = time_first(ids)
    assert all(int(flat[1, i]) == int(ids[1, i % 5, i // 5]) for i in range(40))
    assert torch.equal(to_grid(flat, 5), ids)
    assert torch.equal(to_grid(flat[:, :15], 5), ids[:, :, :3]), "a prefix is a smaller budget"


@pytest.mark.parametrize("config", [OURS, PUBLISHED])
def test_position_i_sees_ids_before_i_only(config: PriorConfig) -> None:
    network = made(config).network
    ids = torch.randint(64_000, (1, 20))
    other = ids.clone()
    other[:, 12] += 1
    a, b = (network(x, network.condition(1)) for x in (ids, other))
    same = (a == b).all(-1)[0]
    assert same[:13].all() and not same[13:].any()


@pytest.mark.parametrize("config", [OURS, PUBLISHED])
def test_the_cache_gives_what_the_whole_sequence_gives(config: PriorConfig) -> None:
    network = made(config).network
    ids = torch.randint(64_000, (2, 20))
    states = torch.randn(2, 6, config.ctx_dim)
    condition = network.condition(2, None, states)
    whole = network.trunk(network.inputs(ids, condition), condition)
    for static in (False, True):
        cache = Cache(config, 2, 21, network.positions)
        part = network.trunk(network.inputs(ids[:, :7], condition), condition, cache)
        assert torch.allclose(part, whole[:, :8], atol=1e-5)
        for i in range(8, 21):
            at: Any = torch.tensor([i]) if static else i
            x = network.next_input(ids[:, i - 1], condition, at)
            step = network.trunk(x, condition, cache, at)
            assert torch.allclose(step[:, 0], whole[:, i], atol=1e-5), (static, i)


def test_guidance_is_two_passes_in_one(text_prior: Prior) -> None:
    network, ids = text_prior.network, torch.randint(64_000, (2, 9))
    states = torch.randn(2, 6, 24)
    both = network(ids.repeat(2, 1), network.condition(2, None, states, guided=True))
    alone = network(ids, network.condition(2, None, states))
    null = network(ids, network.condition(2, None, torch.zeros_like(states)))
    expected = null + 3 * (alone - null)
    assert torch.allclose(torch.stack([guide(both[:, i], 3) for i in range(10)], 1), expected,
                          atol=1e-4)  # fmt: skip


def test_d16_text_sampling_does_no_work_on_the_text_after_the_start() -> None:
    """The published size d16 (random weights): one call of `context_in` and one of each block's
    keys and values, however many ids are written."""
    config = PriorConfig(
        name="d16", tokenizer="tiny", depth=16, width=1024, seq_len=1280, cond="text", ctx_dim=4096
    )
    with torch.device("meta"):
        prior = Prior(config)
    prior = prior.to_empty(device="cpu").eval().requires_grad_(False)
    for p in prior.parameters():
        p.fill_(1e-3)
    calls: list[str] = []
    for name, module in prior.named_modules():
        module.register_forward_hook(lambda m, i, o, name=name: calls.append(name))
    condition = prior.condition(1, states=torch.randn(1, 20, 4096), guided=True)
    work = [n for n in calls if n]
    assert work == ["network.context_in", *(f"network.blocks.{i}.cross.kv" for i in range(16))]
    calls.clear()
    prior.sample(condition, 6, guidance=3.0)
    assert not {n for n in calls if n.endswith((".kv", "context_in"))}
    assert calls.count("network.blocks.3.cross.q") == 6


# ---------------------------------------------------------------------- generate


def test_generate_writes_tokens_that_decode(prior: Prior, tiny_tokenizer: Tokenizer) -> None:
    tokens = prior.generate("a red ball", budget=3, seed=1)
    assert tokens.ids.shape == (1, 5, 3)
    assert tiny_tokenizer.decode(tokens, steps=2).shape == (1, 3, 17, 32, 32)
    short = prior.generate("a red ball", budget=3, seed=1, frames=6)
    assert torch.equal(short.ids, tokens.ids)
    assert tiny_tokenizer.decode(short, steps=2).shape == (1, 3, 6, 32, 32)


def test_ids_are_the_same_again_and_anywhere_in_a_batch(prior: Prior) -> None:
    texts = ["a red ball", "ball", "a ball moves and moves and moves in a xylophone"]
    seeds = [3, 4, 5]
    batch = prior.generate(texts, seed=seeds)
    assert torch.equal(batch.ids, prior.generate(texts, seed=seeds).ids)
    for i, text in enumerate(texts):
        assert torch.equal(prior.generate(text, seed=seeds[i]).ids, batch.ids[i : i + 1])
    turned = prior.generate(texts[::-1], seed=seeds[::-1])
    assert torch.equal(turned.ids.flip(0), batch.ids)
    assert torch.equal(prior.generate(texts, seed=3).ids, batch.ids), "seed, seed + 1, ..."
    assert not torch.equal(batch.ids[0], prior.generate(texts[0], seed=4).ids[0])


def test_states_of_one_clip_are_not_changed_by_longer_ones(text_prior: Prior) -> None:
    """The null text is as long as a clip's own text, so padding to a batch must not lengthen it."""
    states = torch.randn(2, 30, 24)
    states[0, 5:] = 0
    batch = text_prior.generate(states=states, seed=[1, 2], budget=4)
    for i in range(2):
        alone = text_prior.generate(states=states[i], seed=i + 1, budget=4)
        assert torch.equal(alone.ids[0], batch.ids[i])


def test_temperature_is_the_prior_s_own_unless_told_otherwise(
    prior: Prior, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ids(temperature: float | None = None) -> torch.Tensor:
        return prior.generate("a red ball", budget=4, seed=1, temperature=temperature).ids

    warm = ids()
    assert torch.equal(warm, ids(1.0))
    monkeypatch.setattr(prior, "config", dataclasses.replace(prior.config, temperature=0.0))
    assert torch.equal(ids(), ids(0.0))
    assert torch.equal(warm, ids(1.0))
    assert not torch.equal(warm, ids())


def test_conditions_make_a_difference(prior: Prior) -> None:
    def ids(**words: Any) -> torch.Tensor:
        return prior.generate(**words, budget=2, temperature=0, guidance=1).ids

    results = [ids(), ids(caption="a red ball"), ids(caption="moves"), ids(class_name="spin"),
               ids(caption="moves", class_name="spin"), ids(class_name="still")]  # fmt: skip
    for i, a in enumerate(results):
        assert not any(torch.equal(a, b) for b in results[:i])
    assert torch.equal(results[1], ids(caption=" A  red BALL!"))


def test_a_smaller_budget_is_a_prefix_and_refine_goes_on(prior: Prior) -> None:
    words: dict[str, Any] = {"caption": "a red ball", "guidance": 2.0, "temperature": 0.0}
    whole = prior.generate(**words, budget=8)
    coarse = prior.generate(**words, budget=3)
    assert torch.equal(coarse.ids, whole.ids[:, :, :3])
    assert torch.equal(prior.refine(coarse, 8, **words).ids, whole.ids)
    assert torch.equal(prior.refine(coarse, 3, **words).ids, coarse.ids), "nothing to add"
    sampled = prior.refine(coarse, 8, seed=3)
    assert torch.equal(sampled.ids[:, :, :3], coarse.ids)
    assert torch.equal(prior.refine(coarse, 8, seed=3).ids, sampled.ids)
    assert not torch.equal(prior.refine(coarse, 8, seed=4).ids, sampled.ids)


def test_defaults_of_guidance_follow_the_budget(prior: Prior) -> None:
    def ids(budget: int, guidance: float | None = None) -> torch.Tensor:
        return prior.generate("a red ball", budget=budget, guidance=guidance, seed=2).ids

    assert torch.equal(ids(2), ids(2, 2.0)) and not torch.equal(ids(2), ids(2, 1.0))
    assert torch.equal(ids(8), ids(8, 1.0))


def test_progress_counts_ids_and_partial_tokens_are_prefixes(prior: Prior) -> None:
    seen: list[tuple[int, int]] = []
    parts: list[Tokens] = []
    tokens = prior.generate(
        "a red ball", budget=3, progress=lambda d, n: seen.append((d, n)), partial=parts.append
    )
    assert seen == [(i, 15) for i in range(1, 16)]
    assert [p.budget for p in parts] == [1, 2, 3]
    for part in parts:
        assert torch.equal(part.ids, tokens.ids[:, :, : part.budget])


def test_raising_in_progress_cancels(prior: Prior) -> None:
    def stop(done: int, total: int) -> None:
        if done == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        prior.generate("a red ball", progress=stop)


# ---------------------------------------------------------------------- surprise


def test_surprise_is_minus_log2_of_the_probability(prior: Prior) -> None:
    tokens = prior.generate("a red ball", seed=1)
    bits = prior.surprise(tokens, caption="a red ball")
    assert bits.shape == (1, 5, 8)
    flat = time_first(tokens.ids)
    condition = prior.condition(1, ["a red ball"])
    logp = prior.network(flat, condition)[:, :-1].log_softmax(-1)
    expected = -logp.gather(-1, flat[..., None])[..., 0] / torch.tensor(2.0).log()
    assert torch.allclose(bits, to_grid(expected, 5), atol=1e-3)
    likely = prior.generate("a red ball", temperature=0, guidance=1)
    assert prior.surprise(likely, caption="a red ball").mean() < bits.mean()


def test_registers_beyond_the_prior_s_are_as_surprising_as_its_last(
    prior: Prior, tiny_tokenizer: Tokenizer
) -> None:
    short = made(dataclasses.replace(OURS, seq_len=15)).bind(tiny_tokenizer)
    tokens = prior.generate("a red ball", seed=1)
    bits = short.surprise(tokens)
    assert torch.equal(bits[:, :, :3], short.surprise(tokens.truncate(3)))
    assert torch.equal(bits[:, :, 3:], bits[:, :, 2:3].expand(-1, -1, 5))
    with pytest.raises(VftError, match="writes up to 3"):
        short.refine(tokens)


def test_the_automatic_budget_keeps_the_share_asked_for() -> None:
    bits = torch.tensor([[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
    assert [bits_budget(bits, s) for s in (0.01, 0.4, 0.41, 0.7, 0.9, 0.91, 1.0)] == [
        1, 1, 2, 2, 3, 4, 4,
    ]  # fmt: skip
    for share in (0.0, 1.5):
        with pytest.raises(VftError, match="share"):
            bits_budget(bits, share)


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"caption": "a ball", "frames": 18}, "18 frames.*1 to 17"),
        ({"caption": "a ball", "budget": 9}, "budget 9.*1 to 8"),
        ({"caption": "?!"}, "no word"),
        ({"class_name": "dance"}, "no class 'dance'.*still, spin"),
        ({"caption": ["a ball"] * 2, "seed": [1, 2, 3]}, "3 seeds for 2"),
        ({"caption": ["a ball"] * 2, "class_name": ["spin"] * 3}, "conditions"),
        ({"states": torch.randn(1, 5, 12)}, "width 12.*takes 16"),
        ({"caption": "a ball", "states": torch.randn(1, 5, 16)}, "one of them"),
        ({"caption": "a ball", "guidance": float("nan")}, "guidance"),
    ],
)
def test_arguments_that_make_no_sense(
    prior: Prior, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(VftError, match=message) as e:
        prior.generate(**arguments)
    assert "\n" not in str(e.value)


def test_a_prior_without_text_says_so(text_prior: Prior, tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(VftError, match="no text encoder inside"):
        text_prior.generate("a ball")
    classes = dataclasses.replace(OURS, cond="class", ctx_dim=0, text_encoder=None)
    with pytest.raises(VftError, match="takes a class"):
        made(classes).bind(tiny_tokenizer).generate("a ball")


def test_a_prior_and_a_tokenizer_refuse_each_other_by_name(
    prior: Prior, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    other = vft_lib.load_tokenizer(save_tiny(tmp_path / "o.safetensors", 1, "other"), device="cpu")
    with pytest.raises(VftError, match=r"tiny-prior.*'tiny'.*'other'"):
        made(OURS).bind(other)
    twin = vft_lib.load_tokenizer(save_tiny(tmp_path / "t.safetensors", 2), device="cpu")
    with pytest.raises(VftError, match=f"{tiny_tokenizer.fingerprint}.*{twin.fingerprint}"):
        made(prior.config).bind(twin)
    with pytest.raises(VftError, match="'tiny'"):
        twin.decode(prior.generate("a ball", budget=1))
    foreign = twin.encode(torch.zeros(1, 3, 17, 32, 32))
    for use in (prior.surprise, prior.refine):
        with pytest.raises(VftError, match="tiny-prior"):
            use(foreign)
    with pytest.raises(VftError, match=r"bind\(tokenizer\)"):
        made(OURS).generate("a ball")


def test_long_clips_are_read_chunk_by_chunk(prior: Prior, tiny_tokenizer: Tokenizer) -> None:
    """A later chunk is read as if the latent frame before it were its first."""
    video = torch.rand(2, 3, 33, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
    tokens = tiny_tokenizer.encode(video)
    assert tokens.ids.shape == (2, 9, 8)
    first = dataclasses.replace(tokens, ids=tokens.ids[:, :5], frames=17)
    later = dataclasses.replace(tokens, ids=tokens.ids[:, 4:], frames=17)
    bits = prior.surprise(tokens)
    assert bits.shape == (2, 9, 8)
    assert torch.equal(bits[:, :5], prior.surprise(first))
    assert torch.equal(bits[:, 5:], prior.surprise(later)[:, 1:])


def test_long_clips_are_refined_chunk_by_chunk(prior: Prior, tiny_tokenizer: Tokenizer) -> None:
    video = torch.rand(2, 3, 40, 32, 32, generator=torch.Generator().manual_seed(4)) * 2 - 1
    tokens = tiny_tokenizer.encode(video).truncate(3)
    calls: list[tuple[int, int]] = []
    fine = prior.refine(tokens, 6, seed=5, progress=lambda *done: calls.append(done))
    assert fine.ids.shape == (2, 13, 6)
    assert torch.equal(fine.ids[..., :3], tokens.ids)
    assert calls[-1] == (90, 90)
    assert sorted(calls) == calls
    first = dataclasses.replace(tokens, ids=tokens.ids[:, :5], frames=17)
    assert torch.equal(prior.refine(first, 6, seed=5).ids, fine.ids[:, :5])
    # At temperature 0 the second chunk is what the network writes after the first one's last frame.
    greedy = prior.refine(tokens, 6, temperature=0, guidance=1.0).ids
    window = torch.cat([greedy[:, 4:5], greedy[:, 5:9]], dim=1)
    with torch.inference_mode():
        logits = prior.network(time_first(window), prior.network.condition(2))
    likeliest = to_grid(logits[:, :-1].argmax(-1), 5)
    assert torch.equal(likeliest[:, 1:, 3:], window[:, 1:, 3:])


def test_tokens_of_other_chunks_are_refused(prior: Prior, tiny_tokenizer: Tokenizer) -> None:
    tokens = tiny_tokenizer.encode(torch.zeros(1, 3, 33, 32, 32))
    with pytest.raises(VftError, match="9 latent frames for 60 frames"):
        prior.surprise(dataclasses.replace(tokens, frames=60))
    tokens = tiny_tokenizer.encode(torch.zeros(1, 3, 17, 32, 32))
    with pytest.raises(VftError, match="choose a budget of 8 to 8"):
        prior.refine(tokens, 4)


def test_more_latent_frames_are_a_matter_of_the_config(tiny_tokenizer: Tokenizer) -> None:
    longer = dataclasses.replace(OURS, latent_frames=9, seq_len=72)
    tokens = made(longer).bind(tiny_tokenizer).generate("a ball", budget=2, frames=30)
    assert tokens.ids.shape == (1, 9, 2)
    assert tiny_tokenizer.decode(tokens, steps=1).shape[2] == 30


# ---------------------------------------------------------------------- files


def test_a_file_is_read_as_it_was_written(tmp_path: Path, prior: Prior) -> None:
    path = tmp_path / "p.safetensors"
    mark = save_prior(path, prior.config, prior.state_dict(), torch.float16)
    again = load_prior(path, device="cpu")
    assert again.fingerprint == mark
    assert again.config == prior.config
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    half = {k: v.half().float() for k, v in prior.state_dict().items()}
    assert all(torch.equal(v, half[k]) for k, v in again.state_dict().items())
    assert again.generate("a ball", budget=2).ids.shape == (1, 5, 2)


def test_configs_round_trip() -> None:
    for config in (OURS, PUBLISHED):
        assert PriorConfig.from_json(config.to_json()) == config
    for bad in ({"depth": 0}, {"classes": ()}, {"width": 40}, {"guidance": ((2, 1.0),)},
                {"fsq_levels": (8, 8)}, {"latent_frames": 0}, {"ctx_dim": 8}, {"chunk": 4},
                {"chunk": 6}):  # fmt: skip
        with pytest.raises(ConfigError, match="tiny-prior"):
            dataclasses.replace(OURS, **bad)


def test_files_that_are_no_priors(tmp_path: Path, prior: Prior, tiny_checkpoint: Path) -> None:
    path = tmp_path / "p.safetensors"
    save_prior(path, prior.config, prior.state_dict(), None)
    cases = {"a VFT tokenizer, but not": tiny_checkpoint, "no prior": tmp_path / "none"}
    weights = load_file(path)
    lame = dict(weights)
    del lame["network.start"]
    save_prior(tmp_path / "lame.safetensors", prior.config, lame, None)
    cases["misses tensor 'network.start'"] = tmp_path / "lame.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    (tmp_path / "bent.safetensors").write_bytes(bytes(data))
    cases["damaged"] = tmp_path / "bent.safetensors"
    save_file(weights, tmp_path / "bare.safetensors")
    cases["neither a file of ours nor a published"] = tmp_path / "bare.safetensors"
    (tmp_path / "empty").mkdir()
    cases["holds no .safetensors"] = tmp_path / "empty"
    for message, file in cases.items():
        with pytest.raises(CheckpointError, match=message) as e:
            load_prior(file, device="cpu")
        assert "\n" not in str(e.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.full)])
def test_the_compiled_step_writes_the_same_ids(prior: Prior, backend: str) -> None:
    """The path of constant shapes, at temperature 0, with and without guidance."""
    made = copy.deepcopy(prior)
    captions = ["a red ball", "a green star spins"]
    for guidance in (1.0, 3.0):
        plain = made.generate(captions, budget=4, temperature=0, guidance=guidance)
        compiled = copy.deepcopy(made).compile_step(backend)
        again = compiled.generate(captions, budget=4, temperature=0, guidance=guidance)
        assert compiled.compiled is not None
        assert compiled.compiled.done
        assert torch.equal(again.ids, plain.ids)


def test_a_step_that_cannot_be_compiled_writes_as_it_is(prior: Prior) -> None:
    """Without a C++ compiler `vft generate --compile` ended in a traceback."""

    def broken(*args: Any) -> Any:
        raise RuntimeError("Failed to find C compiler")  # Triton's words

    made = copy.deepcopy(prior)
    plain = made.generate(["a red ball"], budget=2, temperature=0)
    compiled = copy.deepcopy(made).compile_step(broken)
    assert torch.equal(compiled.generate(["a red ball"], budget=2, temperature=0).ids, plain.ids)
    assert compiled.compiled is not None
    assert compiled.compiled.problem == (
        "RuntimeError: Failed to find C compiler; install one (g++ or clang), or do not compile"
    )
