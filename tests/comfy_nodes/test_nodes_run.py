"""Every node, for real, on the tokenizer and prior that come with the pack."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_world import Made, VideoFromFile
from conftest import add_sound, moving_picture, save_tiny
from preview import with_preview

from vft_lib.video.video_out import write_video


def test_the_loaders_say_what_they_loaded(made: Made) -> None:
    tokenizer, about = made.host.results("VFTLoadTokenizer")
    assert tokenizer.model.config.name == "vft-small"
    for word in ("vft-small", "128 px", "Apache-2.0", "cpu", "float32", "PyTorch SDPA"):
        assert word in about
    prior, about = made.host.results("VFTLoadPrior", tokenizer=tokenizer)
    assert prior.model.config.tokenizer_fingerprint == tokenizer.model.fingerprint
    for word in ("captions and classes", "for tokenizer vft-small", "Apache-2.0", "cpu"):
        assert word in about


def test_dtype_and_device_are_obeyed(made: Made) -> None:
    tokenizer, about = made.host.results("VFTLoadTokenizer", dtype="bfloat16", device="cpu")
    assert {p.dtype for p in tokenizer.model.parameters()} == {torch.bfloat16}
    assert "bfloat16" in about


def test_encode_takes_images_and_video_alike(small: Made) -> None:
    images, video, _ = small.clip
    other = small.host.results("VFTEncode", tokenizer=small.tokenizer, video=video)
    assert torch.equal(other.ids, small.tokens.ids)
    assert (small.tokens.frames, small.tokens.fps, small.tokens.budget) == (17, 8, 8)


def test_encode_reads_a_file_at_the_rate_asked_for(small: Made, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving_picture(48, 64, 96), 24)
    video = VideoFromFile(str(tmp_path / "a.mp4"))
    tokens = small.host.results("VFTEncode", tokenizer=small.tokenizer, video=video)
    assert (tokens.frames, tokens.fps, tokens.source_size) == (16, 8, (64, 96))
    assert tokens.source == "a.mp4"
    images = video.get_components().images
    tokens = small.host.results("VFTEncode", tokenizer=small.tokenizer, images=images, fps=24.0)
    assert (tokens.frames, tokens.fps) == (48, 24)


def test_encode_takes_a_video_in_memory(small: Made, tmp_path: Path) -> None:
    import io

    path = tmp_path / "a.mp4"
    write_video(path, moving_picture(24, 64, 64), 8)
    whole = small.host.results(
        "VFTEncode", tokenizer=small.tokenizer, video=VideoFromFile(str(path))
    )
    memory = VideoFromFile(io.BytesIO(path.read_bytes()))
    tokens = small.host.results("VFTEncode", tokenizer=small.tokenizer, video=memory)
    assert torch.equal(tokens.ids, whole.ids)


class Trimmed(VideoFromFile):
    """The first second of its file."""

    def get_duration(self) -> float:
        return 1.0

    def change(self, images: torch.Tensor) -> torch.Tensor:
        return images[:8]

    def get_components(self) -> Any:
        parts = super().get_components()
        return dataclasses.replace(parts, images=self.change(parts.images))


class Cropped(Trimmed):
    """The left half of its file's pictures, as long as the file."""

    get_duration = VideoFromFile.get_duration

    def get_dimensions(self) -> tuple[int, int]:
        width, height = super().get_dimensions()
        return width // 2, height

    def change(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :, : images.shape[2] // 2]


class Negative(Trimmed):
    """Other pictures than its file's, as many and as large."""

    get_duration = VideoFromFile.get_duration

    def change(self, images: torch.Tensor) -> torch.Tensor:
        return 1 - images


@pytest.mark.parametrize("kind", [Trimmed, Cropped, Negative])
def test_a_video_that_is_not_all_of_its_file(
    small: Made, tmp_path: Path, kind: type[Trimmed]
) -> None:
    """What the VIDEO shows is encoded, not what its file holds."""
    path = tmp_path / "a.mp4"
    write_video(path, moving_picture(24, 64, 128), 8)
    shown = kind(str(path))
    images = shown.get_components().images
    expected = small.host.results("VFTEncode", tokenizer=small.tokenizer, images=images)
    tokens = small.host.results("VFTEncode", tokenizer=small.tokenizer, video=shown)
    assert torch.equal(tokens.ids, expected.ids)


def test_a_cropped_video_of_comfyuis_own_class(made: Made, tmp_path: Path) -> None:
    """One whose pictures are of the file's own class, and only its words tell."""
    path = tmp_path / "a.mp4"
    write_video(path, moving_picture(24, 64, 128), 8)
    pictures = made.host.module("vft_nodes.pictures")

    class Half(VideoFromFile):
        def get_dimensions(self) -> tuple[int, int]:
            return 64, 64

    assert pictures.video_file(VideoFromFile(str(path))) == path
    assert pictures.video_file(Half(str(path))) is None


def test_a_file_whose_sound_is_longer_is_still_read_a_few_frames_at_a_time(
    small: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken for a trimmed clip, and read into memory as a whole."""
    write_video(tmp_path / "mute.mp4", moving_picture(24, 64, 64), 8)
    path = add_sound(tmp_path / "mute.mp4", tmp_path / "a.mp4", longer=0.4)
    video = VideoFromFile(str(path))
    assert video.get_duration() > 3.3
    monkeypatch.setattr(video, "get_components", lambda: pytest.fail("read as a whole"))
    tokens = small.host.results("VFTEncode", tokenizer=small.tokenizer, video=video)
    assert tokens.frames == 24


def test_truncate_counts_in_four_ways(made: Made) -> None:
    def kept(**words: Any) -> Any:
        return made.host.results("VFTTruncate", tokens=made.tokens, **words)

    tokens, budget = kept(by="tokens per frame", budget=3)
    assert budget == 3
    assert torch.equal(tokens.ids, made.tokens.ids[:, :, :3])
    assert kept(by="tokens in all", budget=27)[0].count == 25  # 5 latent frames
    assert kept(by="bytes", budget=27)[0].id_bytes == 20
    budgets = [
        kept(by="information", keep_bits=share, prior=made.prior)[1] for share in (0.1, 0.5, 1.0)
    ]
    assert budgets == sorted(budgets)
    assert 1 <= budgets[0] < budgets[2] <= 128


def test_truncate_gives_more_where_more_happens(made: Made) -> None:
    busy, still = made.clip[0], made.clip[0][-1:].expand(48, -1, -1, -1)
    tokens = made.host.results(
        "VFTEncode", tokenizer=made.tokenizer, images=torch.cat([busy, still]), fps=8.0
    )
    assert len(tokens.rows) == 17

    def kept(**words: Any) -> Any:
        words |= {"tokens": tokens, "prior": made.prior, "adaptive": True}
        return made.host.run("VFTTruncate", **words)

    out = kept(by="tokens per frame", budget=4)
    part, most = out.result
    assert (part.count, most) == (68, part.budget)
    assert sum(part.rows[5:]) / 12 < 0.8 * sum(part.rows[:5]) / 5
    grid = out.ui["vft_grid"][0]
    assert grid["bars"] == list(part.rows)
    assert sum(grid["holding"]) == 68 and grid["holding"][0] == 17
    assert out.ui["text"][0].startswith(f"{min(part.rows)} to {most} per latent frame · 68 tokens")
    assert kept(by="tokens in all", budget=71).result[0].count == 71
    assert kept(by="bytes", budget=151).result[0].id_bytes == 150
    shares = [kept(by="information", keep_bits=s).result[0].count for s in (0.3, 0.9)]
    assert 17 <= shares[0] < shares[1] < 17 * 128
    info = made.host.results("VFTTokensInfo", tokens=part)
    assert f"grid: 17 latent frames × {min(part.rows)} to {most} tokens" in info[0]
    assert info[1:4] == (most, 68, 136)
    first = made.host.results("VFTSliceTokens", tokenizer=made.tokenizer, tokens=part, chunks=1)
    rest = made.host.results("VFTSliceTokens", tokenizer=made.tokenizer, tokens=part, first_chunk=1)
    both = made.host.results("VFTJoinTokens", tokenizer=made.tokenizer, first=first, second=rest)
    assert torch.equal(both.ids, part.ids) and both.budgets == part.budgets


def test_tokens_that_differ_by_frame_are_decoded_and_swept(small: Made) -> None:
    tokens = small.tokens.truncate([8, 2, 3, 1, 5])
    run: dict[str, Any] = {"tokenizer": small.tokenizer, "tokens": tokens, "steps": 1}
    images, _ = small.host.results("VFTDecode", **run)
    assert len(images) == tokens.frames
    swept = small.host.results("VFTBudgetSweep", **run, budgets="1 8")
    assert [r["tokens"] for r in json.loads(swept[3])["rows"]] == [5, 19]


def test_the_chart_of_a_long_clip_has_96_bars(made: Made) -> None:
    rows = [1 + i // 500 * 6 for i in range(1000)]
    ids = torch.ones(1, 1000, 7, dtype=torch.int64)
    tokens = dataclasses.replace(made.tokens, ids=ids, frames=3997).truncate(rows)
    grid = made.host.run("VFTTokensInfo", tokens=tokens).ui["vft_grid"][0]
    assert grid["bars"] == [1] * 46 + [7] * 50, "the first 40 stand for 11, the others for 10"
    assert grid["holding"] == [1000] + [500] * 6


def test_decode_gives_images_and_a_video_of_them(made: Made) -> None:
    audio = {"waveform": torch.zeros(1, 1, 8000), "sample_rate": 8000}
    images, video = made.host.results(
        "VFTDecode", tokenizer=made.tokenizer, tokens=made.tokens, steps=1, audio=audio
    )
    assert images.shape == (17, 128, 128, 3)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1
    parts = video.get_components()
    assert parts.images is images
    assert parts.frame_rate == 8
    assert parts.audio is audio


def test_decode_is_the_same_for_the_same_seed_only(small: Made) -> None:
    coarse = small.tokens.truncate(2)

    def images(seed: int, preview: bool = True) -> Any:
        return small.host.results(
            "VFTDecode", tokenizer=small.tokenizer, tokens=coarse, steps=2, seed=seed,
            preview=preview,
        )[0]  # fmt: skip

    assert torch.equal(images(1), images(1, preview=False))
    assert not torch.equal(images(1), images(2))


def test_decode_begins_with_the_first_frame_given(made: Made) -> None:
    clip, edited = made.clip[0][0], made.clip[0][0].flip(1)
    words = {"tokenizer": made.tokenizer, "tokens": made.tokens.truncate(2), "steps": 1}
    first = made.host.results("VFTDecode", **words, first_frame=edited[None], preview=False)[0][0]

    def away(picture: torch.Tensor) -> float:
        return float((first - picture[1::2, 1::2]).abs().mean())

    assert away(edited) < 0.5 * away(clip)


def test_a_stretch_is_made_anew(small: Made) -> None:
    """Frames outside are the very numbers that came in, even where those are no 8-bit ones."""
    clip = small.host.results("VFTExampleClip", seed=3, frames=49, size=64)[0]
    tokens = small.host.results("VFTEncode", tokenizer=small.tokenizer, images=clip)
    words: dict[str, Any] = {"tokenizer": small.tokenizer, "steps": 2}
    earlier = small.host.results("VFTDecode", tokens=tokens.truncate(4), **words)[0]
    earlier = (earlier + 1e-4).clamp(max=1)
    words |= {"tokens": tokens, "earlier": earlier, "redo_from": 2.5, "redo_to": 3.0, "seed": 5}
    output = small.host.run("VFTDecode", **words)
    images = output.result[0]
    assert torch.equal(images[:17], earlier[:17])
    assert torch.equal(images[32:], earlier[32:])
    assert all((a != b).any() for a, b in zip(images[17:32], earlier[17:32]))
    said = output.ui["text"][0]
    assert "frames 17 to 31 made anew, jumps where it joins: " in said
    del words["redo_to"]
    to_the_end = small.host.results("VFTDecode", **words)[0]
    assert torch.equal(to_the_end[:17], earlier[:17])
    assert (to_the_end[-1] != earlier[-1]).any()
    with pytest.raises(ValueError, match="of a clip of"):
        small.host.results("VFTDecode", **(words | {"redo_from": 7.0}))
    with pytest.raises(ValueError, match="need the earlier frames"):
        small.host.results("VFTDecode", **(words | {"earlier": None}))
    with pytest.raises(ValueError, match="has 48 frames"):
        small.host.results("VFTDecode", **(words | {"earlier": earlier[1:]}))


def test_a_padded_clip_comes_back_in_its_shape(small: Made) -> None:
    images = torch.rand(5, 36, 64, 3)
    tokens = small.host.results("VFTEncode", tokenizer=small.tokenizer, images=images, fit="pad")
    sizes = [
        small.host.results(
            "VFTDecode", tokenizer=small.tokenizer, tokens=tokens, steps=1, keep_bars=bars
        )[0].shape[1:3]
        for bars in (False, True)
    ]  # fmt: skip
    assert sizes == [(18, 32), (32, 32)]


@pytest.fixture(scope="module")
def quiet(made: Made) -> Any:
    """The default prior without the tokenizer that shows previews of what it writes."""
    return dataclasses.replace(made.prior, tokenizer=None)


def test_words_and_classes_become_tokens(made: Made, quiet: Any) -> None:
    tokens = made.host.results("VFTTextToTokens", prior=quiet, prompt="a red ball", budget=1)
    assert tokens.ids.shape == (1, 21, 1)
    assert tokens.fingerprint == made.tokenizer.model.fingerprint
    anything = made.host.results("VFTTextToTokens", prior=quiet, prompt=" ", budget=1, frames=17)
    assert anything.ids.shape == (1, 5, 1)
    run = {"prior": quiet, "budget": 1, "class_name": "still"}
    by_name = made.host.results("VFTClassToTokens", **run, other_class="spin")
    number = made.prior.model.config.classes.index("spin")
    by_number = made.host.results("VFTClassToTokens", **run, other_class=str(number))
    assert torch.equal(by_name.ids, by_number.ids)


def test_a_temperature_below_zero_is_the_priors_own(made: Made, quiet: Any) -> None:
    """What a new node begins with."""
    ids = {}
    for node, words in (
        ("VFTTextToTokens", {"prompt": "a red ball", "frames": 17}),
        ("VFTClassToTokens", {"class_name": "bounce_vertical"}),
        ("VFTRefine", {"tokens": made.tokens.truncate(1), "prompt": "a red ball", "budget": 16}),
    ):
        own = made.prior.model.config.temperature
        for name, chosen in (
            ("auto", {}),
            ("own", {"temperature": own}),
            ("1", {"temperature": 1.0}),
        ):
            inputs = {"prior": quiet, "budget": 1} | words | chosen
            ids[name] = made.host.results(node, **inputs).ids
        assert own != 1
        assert torch.equal(ids["auto"], ids["own"])
        assert not torch.equal(ids["auto"], ids["1"])


def test_a_class_of_any_length_and_to_refine_by(made: Made, quiet: Any) -> None:
    run = {"prior": quiet, "class_name": "spin", "budget": 1, "temperature": 0.0}
    short = made.host.results("VFTClassToTokens", **run, frames=17)
    assert short.frames == 17
    more = {"prior": quiet, "tokens": short, "budget": 2, "temperature": 0.0}
    plain = made.host.results("VFTRefine", **more)
    number = made.prior.model.config.classes.index("spin")
    by_class = [made.host.results("VFTRefine", **more, class_name=c) for c in ("spin", str(number))]
    assert torch.equal(by_class[0].ids, by_class[1].ids)
    assert not torch.equal(by_class[0].ids, plain.ids)


def test_every_class_of_the_list_is_one_of_the_default_prior(made: Made) -> None:
    schema = made.host.nodes["VFTClassToTokens"].GET_SCHEMA()
    options = next(i.options for i in schema.inputs if i.id == "class_name")
    assert set(options) == set(made.prior.model.config.classes)


def test_refine_keeps_what_is_there(made: Made, quiet: Any) -> None:
    coarse = made.tokens.truncate(1)
    tokens = made.host.results("VFTRefine", prior=quiet, tokens=coarse, budget=3)
    assert tokens.budget == 3
    assert torch.equal(tokens.ids[:, :, :1], coarse.ids)


def test_a_prior_shows_previews_when_it_has_a_tokenizer(small: Made) -> None:
    words = {"prompt": "a red ball", "budget": 2, "frames": 17}
    with small.previews() as shown:
        small.host.results("VFTTextToTokens", prior=small.prior, **words)
    assert len(shown) == 2  # at one token and at two
    assert all(max(picture.size) >= 256 for picture in shown)
    alone = dataclasses.replace(small.prior, tokenizer=None)
    for unseen in ({"prior": alone}, {"prior": small.prior, "preview": False}):
        with small.previews() as shown:
            small.host.results("VFTTextToTokens", **unseen, **words)
        assert not shown


def test_decode_shows_where_it_is_heading(small: Made) -> None:
    run = {"tokenizer": small.tokenizer, "tokens": small.tokens, "steps": 5}
    with small.previews() as shown:
        small.host.results("VFTDecode", **run)
    assert len(shown) == 5
    with small.previews() as shown:
        small.host.results("VFTDecode", **run, preview=False)
    assert not shown


@pytest.fixture
def previewed(small: Made) -> Made:
    """The tiny tokenizer with a preview decoder: its tokens are the same."""
    models = small.host.models
    plain = save_tiny(models / "plain.safetensors", name="small")
    file = with_preview(plain, models / "previewed.safetensors")
    try:
        tokenizer = small.host.results("VFTLoadTokenizer", tokenizer=file.name)[0]
    finally:
        plain.unlink()
        file.unlink()
    return dataclasses.replace(small, tokenizer=tokenizer)


def test_a_draft_goes_through_the_preview_decoder(small: Made, previewed: Made) -> None:
    run = {"tokens": small.tokens, "steps": 1, "preview": False}

    def text(made: Made, node: str = "VFTDecode", **words: Any) -> str:
        return made.host.run(node, tokenizer=made.tokenizer, **words).ui["text"][0]

    assert "1 pass, preview decoder" in text(previewed, quality="draft", **run)
    assert "preview decoder" not in text(previewed, **run)
    assert "preview decoder" not in text(small, quality="draft", **run)
    images = [
        made.host.results("VFTDecode", tokenizer=made.tokenizer, quality="draft", **run)[0]
        for made in (small, previewed)
    ]
    assert images[0].shape == images[1].shape
    assert not torch.equal(*images)
    sweep = {"tokens": small.tokens, "steps": 1, "budgets": "1 2"}
    assert text(previewed, "VFTBudgetSweep", quality="draft", **sweep).endswith("\npreview decoder")
    assert "preview decoder" not in text(previewed, "VFTBudgetSweep", **sweep)


def test_live_previews_come_from_the_preview_decoder(previewed: Made) -> None:
    """The clip itself does not: it is no draft."""
    drawn: list[tuple[int, ...]] = []
    decoder = previewed.tokenizer.model.preview
    decoder.register_forward_hook(lambda _, inputs, y: drawn.append(tuple(y.shape)))
    run = {"tokenizer": previewed.tokenizer, "tokens": previewed.tokens, "steps": 5}
    with previewed.previews() as shown:
        out = previewed.host.run("VFTDecode", **run)
    assert len(shown) == 5
    assert drawn == [(1, 3, 1, 32, 32)] * 5
    assert "preview decoder" not in out.ui["text"][0]


def test_tokens_are_saved_with_the_workflow_and_loaded(made: Made, monkeypatch: Any) -> None:
    from comfy.cli_args import args
    from comfy_api.latest import io
    from safetensors import safe_open

    hidden = {io.Hidden.prompt: {"1": {}}, io.Hidden.extra_pnginfo: {"workflow": {"nodes": [7]}}}

    def saved() -> tuple[str, dict[str, str]]:
        out = made.host.run(
            "VFTSaveTokens", tokens=made.tokens, filename_prefix="a/b", hidden=hidden
        )
        assert out.result[0] is made.tokens
        name = f"{out.ui['vft'][0]['subfolder']}/{out.ui['vft'][0]['filename']}"
        with safe_open(made.host.base / "output" / name, "np") as f:
            return name, f.metadata()

    name, notes = saved()
    assert json.loads(notes["workflow"]) == {"nodes": [7]}
    assert json.loads(notes["prompt"]) == {"1": {}}
    monkeypatch.setattr(args, "disable_metadata", True)
    second, notes = saved()
    assert second != name
    assert notes.keys() == {"vft"}
    loaded = made.host.results("VFTLoadTokens", file=f"{name} [output]")
    assert torch.equal(loaded.ids, made.tokens.ids)
    assert f"{name} [output]" in made.host.module("vft_nodes.files").file_names()


def test_the_example_is_of_the_default_tokenizer(made: Made) -> None:
    tokens = made.host.results("VFTLoadTokens", file="example.vft [pack]")
    assert tokens.fingerprint == made.tokenizer.model.fingerprint
    assert tokens.frames == 33


def test_join_and_slice(made: Made) -> None:
    example = made.host.results("VFTLoadTokens", file="example.vft [pack]")
    run: dict[str, Any] = {"tokenizer": made.tokenizer}
    joined = made.host.results("VFTJoinTokens", **run, first=example, second=made.tokens)
    assert joined.frames > example.frames
    part = made.host.results("VFTSliceTokens", **run, tokens=joined, first_chunk=0, chunks=2)
    assert part.frames == example.frames
    assert torch.equal(part.ids, example.ids)
    rest = made.host.results("VFTSliceTokens", **run, tokens=joined, first_chunk=2)
    assert rest.frames == joined.frames - 32  # chunks share a frame


def test_the_sweep_compares_budgets(small: Made) -> None:
    grid, video, plot, table = small.host.results(
        "VFTBudgetSweep", tokenizer=small.tokenizer, tokens=small.tokens, budgets="8, 1",
        original=small.clip[0], steps=1,
    )  # fmt: skip
    rows = json.loads(table)["rows"]
    assert [(r["budget"], r["bytes"]) for r in rows] == [(1, 10), (8, 80)]
    assert rows[0]["psnr"] != rows[1]["psnr"]
    assert len(grid) == 17
    assert plot.ndim == 4
    assert video.get_components().images is grid
    table = small.host.results(
        "VFTBudgetSweep", tokenizer=small.tokenizer, tokens=small.tokens, budgets="1 2", steps=1
    )[3]
    assert json.loads(table)["against"] == "k=2"


def test_tokens_info_tells_numbers(made: Made) -> None:
    text, *numbers = made.host.results("VFTTokensInfo", tokens=made.tokens)
    assert numbers == [128, 640, 1280, 17, 8, 0]
    assert "vft-small" in text


def test_tokens_info_measures_seams(small: Made) -> None:
    """A clip that moves evenly, but jumps by ten steps where its second chunk begins."""
    levels = torch.arange(33.0).where(torch.arange(33) < 17, torch.arange(33.0) + 9) / 255
    images = levels[:, None, None, None].expand(-1, 64, 64, 3)
    tokens = small.host.results("VFTEncode", tokenizer=small.tokenizer, images=images)
    words = {"tokens": tokens, "tokenizer": small.tokenizer, "images": images}
    text, *_, seam = small.host.results("VFTTokensInfo", **words)
    assert seam == pytest.approx(10)
    assert "seams: 10.00 on average, 10.00 at worst (frame 17)" in text
    for missing, why in (("images", "seams need both"), ("tokenizer", "seams need both")):
        with pytest.raises(ValueError, match=why):
            small.host.results("VFTTokensInfo", **(words | {missing: None}))
    with pytest.raises(ValueError, match="got 32 images, the tokens are of 33"):
        small.host.results("VFTTokensInfo", **(words | {"images": images[1:]}))


def test_the_example_clip_is_the_seeds(made: Made) -> None:
    images, video, caption = made.host.results("VFTExampleClip", seed=5, frames=3, size=32)
    assert images.shape == (3, 32, 32, 3)
    assert video.get_components().frame_rate == 8
    other, _, words = made.host.results("VFTExampleClip", seed=6, frames=3, size=32)
    assert not torch.equal(images, other)
    assert caption != words


def test_the_real_clip_turns_round_at_its_end(made: Made) -> None:
    images, video, caption = made.host.results(
        "VFTExampleClip", seed=5, frames=70, size=32, clip="real"
    )
    assert images.shape == (70, 32, 32, 3)
    assert torch.equal(images[33:65], images[:32].flip(0))
    assert torch.equal(images[64:70], images[:6])
    assert len({float(image.mean()) for image in images[:33]}) == 33
    assert "leaning tower" in caption
    one = made.host.results("VFTExampleClip", seed=5, frames=1, size=32, clip="real")[0]
    assert torch.equal(one, images[:1])


def test_download_only_tells_until_the_licence_is_accepted(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = made.host.module("vft_lib.models.hub")
    monkeypatch.setattr(hub, "download", lambda *_, **__: pytest.fail("opened a connection"))
    out = made.host.run("VFTDownloadModel", model="k600-semantok")
    assert out.result == ("k600-semantok.safetensors",)
    words = ("1.7 GB", "Stability AI Community License", "accept_licence", str(made.host.models))
    for word in words:
        assert word in out.ui["text"][0]
