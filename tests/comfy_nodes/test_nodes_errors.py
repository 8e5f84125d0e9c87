"""What a creator gets wrong, and the one line that the node answers with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_host import Clip
from comfy_world import Made, VideoFromFile
from conftest import save_tiny
from prior.test_prior import PUBLISHED
from prior.test_prior import made as made_prior
from video.test_video_inputs import broken_in_the_middle

from vft_lib.checkpoints.checkpoint import save_prior
from vft_lib.models.loading import load_tokenizer


def refused(made: Made, node: str, /, **inputs: Any) -> str:
    """The one line that a node refuses its inputs with."""
    with pytest.raises(made.host.error) as e:
        made.host.run(node, **inputs)
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.fixture(scope="module")
def other(made: Made) -> Any:
    """Another tokenizer, and tokens of it."""
    save_tiny(made.host.models / "other.safetensors", name="other")
    loaded = made.host.results("VFTLoadTokenizer", tokenizer="other.safetensors")[0]
    return loaded, made.host.results("VFTEncode", tokenizer=loaded, images=made.clip[0])


@pytest.fixture(scope="module")
def umt5_prior(made: Made) -> Any:
    """A prior that takes text states from elsewhere, as the published ones do; width 24."""
    tokenizer = load_tokenizer(save_tiny(made.host.models / "tiny.safetensors"), device="cpu")
    prior = made_prior(PUBLISHED).bind(tokenizer)
    save_prior(made.host.models / "umt5.safetensors", prior.config, prior.state_dict(), None)
    return made.host.results("VFTLoadPrior", prior="umt5.safetensors")[0]


# ---------------------------------------------------------------------- encode


def test_encode_wants_one_of_images_and_video(made: Made) -> None:
    images, video, _ = made.clip
    assert "connect a video or images" in refused(made, "VFTEncode", tokenizer=made.tokenizer)
    both = {"images": images, "video": video}
    assert "one of them" in refused(made, "VFTEncode", tokenizer=made.tokenizer, **both)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_frames_that_are_not_finite_are_named(made: Made, value: float) -> None:
    images = torch.rand(5, 8, 8, 3)
    images[3, 2, 2, 1] = value
    told = refused(made, "VFTEncode", tokenizer=made.tokenizer, images=images)
    assert "frame 3 holds NaN or infinity" in told
    told = refused(
        made, "VFTDecode", tokenizer=made.tokenizer, tokens=made.tokens, first_frame=images[3:]
    )
    assert "frame 0 holds NaN or infinity" in told


@pytest.mark.parametrize("shape", [(8, 8, 3), (2, 3, 8, 8), (0, 8, 8, 3), (2, 8, 8, 3, 1)])
def test_images_of_no_image_shape(made: Made, shape: tuple[int, ...]) -> None:
    images = torch.zeros(shape)
    told = refused(made, "VFTEncode", tokenizer=made.tokenizer, images=images)
    assert str(list(shape)) in told


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (torch.full((2, 8, 8, 3), 200.0), "values from 200 to 200; IMAGE is 0 to 1: divide by 255"),
        (torch.rand(2, 8, 8, 3) * 255, "divide by 255"),
        (torch.linspace(-1, 1, 384).view(2, 8, 8, 3), "values from -1 to"),
        (torch.zeros(2, 8, 8, 2), "shape [2, 8, 8, 2]; IMAGE is [frames, height, width, 3]"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), "torch.uint8; IMAGE is float32, 0 to 1"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.complex64), "torch.complex64"),
        (torch.zeros(()), "shape []"),
        ([torch.zeros(8, 8, 3)], "got list; connect IMAGE"),
    ],
)
def test_images_that_are_none_are_named(small: Made, images: Any, told: str) -> None:
    """What came and what was expected, wherever an IMAGE goes in."""
    assert told in refused(small, "VFTEncode", tokenizer=small.tokenizer, images=images)
    both = {"tokenizer": small.tokenizer, "tokens": small.tokens}
    assert told in refused(small, "VFTDecode", **both, first_frame=images)
    if isinstance(images, torch.Tensor) and images.ndim:
        images = images[:1].expand(small.tokens.frames, *images.shape[1:])
    told = told.split("shape")[0].split("values")[0]
    assert told in refused(small, "VFTBudgetSweep", **both, budgets="1", steps=1, original=images)


def test_alpha_is_dropped_and_an_overshoot_clamped_and_both_are_told(
    small: Made, caplog: pytest.LogCaptureFixture
) -> None:
    images = small.clip[0][:5]
    alpha = torch.cat([images, torch.rand_like(images[..., :1])], -1)
    loud = images.clone()
    loud[2, 0, 0], loud[3, 0, 0] = 1.3, -0.2
    grey = images[..., :1]
    with caplog.at_level("WARNING", "videoflextok"):
        out = small.host.run("VFTEncode", tokenizer=small.tokenizer, images=alpha)
        assert "alpha is dropped" in out.ui["text"][0] and "alpha is dropped" in caplog.text
        plain = small.host.run("VFTEncode", tokenizer=small.tokenizer, images=images)
        assert torch.equal(out.result[0].ids, plain.result[0].ids)
        out = small.host.run("VFTEncode", tokenizer=small.tokenizer, images=loud)
        assert "frame 2 has values from" in out.ui["text"][0]
        clamped = small.host.results(
            "VFTEncode", tokenizer=small.tokenizer, images=loud.clamp(0, 1)
        )
        assert torch.equal(out.result[0].ids, clamped.ids)
        caplog.clear()
        for quiet in (grey, images.half(), images.double(), images * 1.01):
            small.host.run("VFTEncode", tokenizer=small.tokenizer, images=quiet)
        assert not caplog.text


def test_damage_of_a_video_stays_on_the_node(made: Made, tmp_path: Path) -> None:
    """It was shown while the node ran, and gone when it had ended."""
    path = broken_in_the_middle(tmp_path / "a.mp4")
    out = made.host.run("VFTEncode", tokenizer=made.tokenizer, video=VideoFromFile(str(path)))
    assert "damaged video data was skipped, near frame" in out.ui["text"][0]
    path.write_bytes(path.read_bytes()[:200])  # ComfyUI's own reader has no duration for it
    told = refused(made, "VFTEncode", tokenizer=made.tokenizer, video=VideoFromFile(str(path)))
    assert "a.mp4 cannot be read" in told


# ---------------------------------------------------------------------- budgets


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"budget": 129}, "budget 129 is out of range"),
        ({"by": "tokens in all", "budget": 4}, "4 tokens are allowed"),
        ({"by": "bytes", "budget": 9}, "10 bytes"),
        ({"by": "information"}, "connect Load VFT Prior"),
        ({"adaptive": True}, "'adaptive' needs a prior: connect Load VFT Prior"),
    ],
)
def test_budgets_that_cannot_be(made: Made, words: dict[str, Any], told: str) -> None:
    assert told in refused(made, "VFTTruncate", tokens=made.tokens, **words)


@pytest.mark.parametrize("budget", [17, 4096])
def test_a_prior_writes_no_more_than_it_knows(made: Made, budget: int) -> None:
    told = refused(made, "VFTTextToTokens", prior=made.prior, budget=budget)
    assert f"budget {budget}" in told
    assert "16" in told


def test_refining_needs_a_larger_budget(made: Made) -> None:
    told = refused(made, "VFTRefine", prior=made.prior, tokens=made.tokens, budget=8)
    assert "16" in told


@pytest.mark.parametrize("budgets", ["", "one two", "1;2", "1.5"])
def test_a_sweep_wants_numbers(made: Made, budgets: str) -> None:
    run = {"tokenizer": made.tokenizer, "tokens": made.tokens, "budgets": budgets}
    assert "give numbers separated by spaces" in refused(made, "VFTBudgetSweep", **run)


def test_a_sweep_wants_budgets_that_are_there(made: Made) -> None:
    run = {"tokenizer": made.tokenizer, "tokens": made.tokens, "steps": 1}
    assert "budget 129" in refused(made, "VFTBudgetSweep", **run, budgets="1 129")
    assert "budget 0" in refused(made, "VFTBudgetSweep", **run, budgets="0 1")
    told = refused(made, "VFTBudgetSweep", **run, original=made.clip[0][:3])
    assert "got 3 original frames, the tokens are of 17" in told


# ---------------------------------------------------------------------- what belongs together


def test_tokens_of_another_tokenizer_are_refused_by_name(made: Made, other: Any) -> None:
    _, tokens = other
    refusals: list[Callable[[], str]] = [
        lambda: refused(made, "VFTDecode", tokenizer=made.tokenizer, tokens=tokens),
        lambda: refused(
            made, "VFTBudgetSweep", tokenizer=made.tokenizer, tokens=tokens, budgets="1"
        ),
        lambda: refused(
            made, "VFTJoinTokens", tokenizer=made.tokenizer, first=made.tokens, second=tokens
        ),
        lambda: refused(made, "VFTSliceTokens", tokenizer=made.tokenizer, tokens=tokens),
        lambda: refused(made, "VFTRefine", prior=made.prior, tokens=tokens),
        lambda: refused(
            made, "VFTTruncate", tokens=tokens, by="information", prior=made.prior
        ),
    ]  # fmt: skip
    for refusal in refusals:
        told = refusal()
        assert "'other'" in told
        assert "'vft-small'" in told


def test_a_prior_refuses_another_tokenizer_by_name(made: Made, other: Any) -> None:
    told = refused(made, "VFTLoadPrior", tokenizer=other[0])
    assert "'vft-small'" in told
    assert "'other'" in told


@pytest.mark.parametrize("name", ["gone.safetensors", "../../etc/passwd", "/etc/hostname"])
def test_models_that_are_not_in_the_folder(made: Made, name: str) -> None:
    for node, widget in (("VFTLoadTokenizer", "tokenizer"), ("VFTLoadPrior", "prior")):
        told = refused(made, node, **{widget: name})
        assert "is not in models/videoflextok" in told
        assert "Download VFT Model" in told


def test_a_prior_is_no_tokenizer(made: Made, umt5_prior: Any) -> None:
    assert "prior" in refused(made, "VFTLoadTokenizer", tokenizer="umt5.safetensors")
    assert "tokenizer" in refused(made, "VFTLoadPrior", prior="tiny.safetensors")


# ---------------------------------------------------------------------- words


def test_the_wrong_text_encoder_is_named(made: Made, umt5_prior: Any) -> None:
    told = refused(made, "VFTTextToTokens", prior=umt5_prior, prompt="a ball", clip=Clip())
    assert "[1, 512, 4096]" in told
    assert "umt5_xxl" in told
    assert "type wan" in told
    states = [[torch.zeros(1, 4, 24), {}]]
    told = refused(made, "VFTTextToTokens", prior=umt5_prior, conditioning=states * 2)
    assert "2 parts" in told


def test_a_prior_without_words_of_its_own_asks_for_clip(made: Made, umt5_prior: Any) -> None:
    told = refused(made, "VFTTextToTokens", prior=umt5_prior, prompt="a ball")
    assert "connect clip" in told
    told = refused(made, "VFTClassToTokens", prior=umt5_prior)
    assert "takes captions, not classes" in told


def test_no_prompt_is_no_caption_whatever_encodes_it(made: Made, umt5_prior: Any) -> None:
    """An empty prompt through a text encoder was taken for a caption of one end token."""

    class Ends(Clip):
        def tokenize(self, text: str) -> list[str]:
            return [*text.split(), "</s>"]

    Ends.dim = 24
    run = {"prior": umt5_prior, "budget": 2}
    alone = made.host.results("VFTTextToTokens", **run, prompt="")
    empty = made.host.results("VFTTextToTokens", **run, prompt=" ", clip=Ends())
    words = made.host.results("VFTTextToTokens", **run, prompt="a ball", clip=Ends())
    assert torch.equal(empty.ids, alone.ids)
    assert not torch.equal(words.ids, alone.ids)


def test_a_prior_with_words_of_its_own_takes_no_clip(made: Made) -> None:
    told = refused(made, "VFTTextToTokens", prior=made.prior, prompt="a ball", clip=Clip())
    assert "reads the prompt itself" in told


def test_an_unknown_class_is_answered_with_some_that_exist(made: Made) -> None:
    told = refused(made, "VFTClassToTokens", prior=made.prior, other_class="spinn")
    assert "no class 'spinn'" in told
    assert "there are still, " in told


# ---------------------------------------------------------------------- cut and join


def test_parts_that_are_not_there(made: Made) -> None:
    run = {"tokenizer": made.tokenizer, "tokens": made.tokens}
    told = refused(made, "VFTSliceTokens", **run, first_chunk=1)
    assert "these tokens hold chunks 0 to 0" in told


def test_clips_that_cannot_be_joined(made: Made) -> None:
    run = {"tokenizer": made.tokenizer, "second": made.tokens}
    short = made.host.results("VFTEncode", tokenizer=made.tokenizer, images=made.clip[0][:9])
    told = refused(made, "VFTJoinTokens", **run, first=short, unfinished_chunk="drop")
    assert "has 9 frames, not one whole chunk of 17" in told
    fast = dataclasses.replace(made.tokens, fps=24.0)
    assert "24 and 8 fps" in refused(made, "VFTJoinTokens", **run, first=fast)


# ---------------------------------------------------------------------- files


@pytest.fixture
def secret(made: Made, tmp_path: Path) -> Path:
    """A token file outside of ComfyUI's folders."""
    made.tokens.save(tmp_path / "secret.vft")
    return tmp_path / "secret.vft"


@pytest.mark.parametrize("suffix", ["", " [output]"])
@pytest.mark.parametrize("way", ["absolute", "dots", "link to the file", "link to its folder"])
def test_no_way_out_of_comfyuis_folders(
    made: Made, secret: Path, way: str, suffix: str
) -> None:  # fmt: skip
    inside = made.host.base / ("output" if suffix else "input")
    link = inside / f"link-{way.replace(' ', '-')}"
    try:
        if way == "absolute":
            name = str(secret)
        elif way == "dots":
            name = f"{'../' * len(inside.parts)}{secret.relative_to('/')}"
            assert (inside / name).is_file()
        elif way == "link to the file":
            link = link.with_suffix(".vft")
            link.symlink_to(secret)
            name = link.name
        else:
            link.symlink_to(secret.parent)
            name = f"{link.name}/secret.vft"
        told = refused(made, "VFTLoadTokens", file=name + suffix)
        assert "is not inside ComfyUI's" in told
        node = made.host.nodes["VFTLoadTokens"]
        assert node.validate_inputs(file=name + suffix) == told
    finally:
        link.unlink(missing_ok=True)


FOREIGN = [
    "..\\..\\secret.vft", "C:\\secret.vft", "c:secret.vft", "\\\\host\\share\\secret.vft",
    "\\secret.vft", "a/..\\../secret.vft", "..", "../", "./..", "a/../../secret.vft", "x\0.vft",
    "/dev/stdin", "//etc/hostname", "~/../../../etc/hostname/x.vft", "s" * 5000 + ".vft",
    "loop/a.vft",
]  # fmt: skip
STAYS = ["．．/secret.vft", "\u2025/secret.vft", "..\u2215secret.vft", "%2e%2e/secret.vft",
         "e\u0301.vft", "\u00e9.vft", "CON.vft", "nul", "aux/a.vft", "~", "$HOME/a.vft",
         "file:secret.vft"]  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN + STAYS)
def test_no_spelling_of_a_name_leads_out(made: Made, name: str) -> None:
    """Windows' separators, drives and devices, look-alikes of dots, both forms of an accent: for
    reading, for writing, for models. `STAYS` may be written to the output folder, as they are."""
    base, outside = made.host.base, made.host.base.parent
    made.tokens.save(outside / "secret.vft")
    made.tokens.save(base / "secret.vft")
    for kind in ("input", "output"):
        if not (base / kind / "loop").is_symlink():
            (base / kind / "loop").symlink_to("loop")
    before = set(outside.rglob("*"))
    for suffix in ("", " [output]"):
        refused(made, "VFTLoadTokens", file=name + suffix)
    refused(made, "VFTLoadTokenizer", tokenizer=name)
    refused(made, "VFTLoadPrior", prior=name)
    prefix = name.removesuffix(".vft")
    if name in FOREIGN:
        refused(made, "VFTSaveTokens", tokens=made.tokens, filename_prefix=prefix)
    else:
        made.host.run("VFTSaveTokens", tokens=made.tokens, filename_prefix=prefix)
    new = [p for p in set(outside.rglob("*")) - before if base / "output" not in p.parents]
    assert not new
    assert len(list((base / "output").rglob("*.tmp*"))) == 0


def test_both_forms_of_an_accent_are_two_files(made: Made) -> None:
    name = made.host.base / "input" / "caf\u00e9.vft"
    made.tokens.save(name)
    assert made.host.results("VFTLoadTokens", file=name.name).frames == made.tokens.frames
    if not name.with_name("cafe\u0301.vft").exists():  # macOS takes either
        refused(made, "VFTLoadTokens", file="cafe\u0301.vft")


@pytest.mark.parametrize("prefix", ["away/clip", "away/deeper/clip", "../x/clip", "/tmp/clip"])
def test_nothing_is_saved_outside_of_the_output_folder(
    made: Made, tmp_path: Path, prefix: str
) -> None:
    """A link inside the output folder led out: ComfyUI compares the names only."""
    link = made.host.base / "output" / "away"
    link.symlink_to(tmp_path)
    try:
        told = refused(made, "VFTSaveTokens", tokens=made.tokens, filename_prefix=prefix)
        assert "is not inside ComfyUI's output folder" in told
        assert not list(tmp_path.iterdir()) and not (made.host.base / "x").exists()
    finally:
        link.unlink()


def test_models_that_are_linked_into_their_folder_are_taken(made: Made, tmp_path: Path) -> None:
    """Many keep models on another disk; no workflow can make such a link."""
    link = made.host.models / "linked.safetensors"
    link.symlink_to(save_tiny(tmp_path / "far.safetensors"))
    try:
        made.host.run("VFTLoadTokenizer", tokenizer="linked.safetensors")
        for name in (
            "../models/videoflextok/linked.safetensors",
            "./linked.safetensors",
            str(link),
        ):
            refused(made, "VFTLoadTokenizer", tokenizer=name)
    finally:
        link.unlink()


@pytest.mark.parametrize("name", ["gone.vft", "a.txt", "", ".", "a\0b.vft"])
def test_token_files_that_are_none(made: Made, name: str) -> None:
    (made.host.base / "input" / "a.txt").write_text("no tokens")
    told = refused(made, "VFTLoadTokens", file=name)
    assert made.host.nodes["VFTLoadTokens"].validate_inputs(file=name) == told


def test_a_damaged_token_file_is_named(made: Made) -> None:
    (made.host.base / "input" / "bad.vft").write_bytes(b"nothing of the kind")
    assert "bad.vft" in refused(made, "VFTLoadTokens", file="bad.vft")


def test_a_link_to_nothing_does_not_break_the_list(made: Made) -> None:
    link = made.host.base / "input" / "nowhere.vft"
    link.symlink_to("gone.vft")
    try:
        assert "example.vft [pack]" in made.host.module("vft_nodes.files").file_names()
    finally:
        link.unlink()
