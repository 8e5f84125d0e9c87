"""A workflow from a stranger: any widget set to anything, any link to anything.

A node works, or says in one line what is wrong; it writes nowhere else, allocates little, and can
be cancelled.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_host import Clip, _default, is_widget
from comfy_vision import ClipVision
from comfy_world import Made
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from video.test_video_inputs import memory_peak

from vft_lib.models.catalog import catalog
from vft_lib.tokens import Tokens

PATIENCE = 0.2  # seconds that a node may work before the test presses Cancel
SLOWEST = 20.0  # seconds of processor time until it must have answered
NODES = [
    "LoadTokenizer", "LoadPrior", "DownloadModel", "Encode", "Truncate", "Decode", "TextToTokens",
    "ClassToTokens", "Refine", "SaveTokens", "LoadTokens", "JoinTokens", "SliceTokens",
    "BudgetSweep", "TokensInfo", "ExampleClip",
]  # fmt: skip

NAMES = [
    "", " ", ".", "..", "../../x/clip", "/etc/hostname", "a/../../../x", "a\0b", "C:\\x\\clip",
    "..\\..\\x", "\\\\host\\share\\clip", "CON", "nul.vft", "con/clip", "a" * 300, "a/" * 300,
    "x" * 10**5, "file:///etc/passwd", "http://localhost:1/x", "%s%n", "${HOME}", "`id`", "\n",
    "\u202egnp", "．．/．．/x", "\u2025/x", "e\u0301/é", "\udcff", "default", "9" * 5000, "0",
    "-1", "1 " * 9999, "clip", "example.vft [pack]", "x.vft [output]", "[output]",
]  # fmt: skip
WILD = st.one_of(
    st.sampled_from(NAMES),
    st.text(max_size=40),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**400, True, False]),
    st.sampled_from([0.0, -0.0, 0.5, 1e-300, 1e300, -1e300, math.nan, math.inf, -math.inf]),
    st.none(),
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
        max_leaves=4,
    ),
    st.sampled_from([b"bytes", 1j, object, Ellipsis]),
)


@contextmanager
def impatient() -> Iterator[None]:
    """Presses Cancel once a node has been at work for a while."""
    import comfy.model_management as mm
    import comfy.utils

    begin, before = time.monotonic(), comfy.utils.PROGRESS_BAR_HOOK

    def hook(*_: Any, **__: Any) -> None:
        if time.monotonic() - begin > PATIENCE:
            mm.interrupt_current_processing(True)

    comfy.utils.set_progress_bar_global_hook(hook)
    try:
        yield
    finally:
        comfy.utils.set_progress_bar_global_hook(before)
        mm.interrupt_current_processing(False)


def run(made: Made, node: str, values: dict[str, Any]) -> None:
    """Works, is cancelled, or one line."""
    import comfy.model_management as mm

    before = time.process_time()
    with impatient():
        try:
            made.host.run(node, **values)
        except made.host.error as e:
            assert str(e).isprintable() and 5 < len(str(e)) < 1100
        except mm.InterruptProcessingException:
            pass
    assert time.process_time() - before < SLOWEST


def validated(node: Any, values: dict[str, Any]) -> dict[str, Any] | None:
    """What ComfyUI makes of a prompt's widget values; None if it refuses them. It converts first,
    then compares: NaN passes, and any object is a text."""
    made: dict[str, Any] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
    # The node looks at the inputs that its validate_inputs names; no list is compared for those.
    own = (
        inspect.signature(node.validate_inputs).parameters
        if "validate_inputs" in vars(node)
        else ()
    )
    out = {}
    for i in node.GET_SCHEMA().inputs:
        if i.id not in values:
            continue
        value, kind = values[i.id], i.get_io_type()
        if not is_widget(i):
            out[i.id] = value
            continue
        try:
            value = made.get(kind, lambda x: x)(value)
        except (TypeError, ValueError, OverflowError):
            return None
        if kind in ("INT", "FLOAT") and (value < i.min or value > i.max):
            return None
        if kind == "COMBO" and i.id not in own and value not in i.options:
            return None
        if i.id in own and node.validate_inputs(**{i.id: value}) is not True:
            return None
        out[i.id] = value
    return out


@pytest.fixture(scope="module")
def made(small: Made) -> Made:
    """Tiny models: what is refused does not depend on what a model has learned."""
    return small


@pytest.fixture(scope="module")
def things(made: Made) -> dict[str, Any]:
    """By socket type, what may be on a wire."""
    images, video, _ = made.host.results("VFTExampleClip", seed=1, frames=5, size=64)
    return {
        "VFT_TOKENIZER": made.tokenizer, "VFT_PRIOR": made.prior, "VFT_TOKENS": made.tokens,
        "IMAGE": images, "VIDEO": video, "AUDIO": {"waveform": torch.zeros(1, 1, 99)},
        "CLIP": Clip(), "CONDITIONING": [[torch.zeros(1, 4, 24), {}]], "CLIP_VISION": ClipVision(),
    }  # fmt: skip


def usual(node: Any, things: dict[str, Any]) -> dict[str, Any]:
    """Inputs that work, and quickly."""
    values = {}
    for i in node.GET_SCHEMA().inputs:
        if is_widget(i):
            values[i.id] = _default(i)
        elif not i.optional:
            values[i.id] = things[i.get_io_type()]
    small = {"steps": 1, "frames": 5, "size": 32, "budgets": "1", "file": "example.vft [pack]"}
    values |= {name: value for name, value in small.items() if name in values}
    return values | (
        {"images": things["IMAGE"]} if node.GET_SCHEMA().node_id == "VFTEncode" else {}
    )


def edges(i: Any) -> list[Any]:
    """A widget's own values, up to its limits."""
    if i.get_io_type() in ("INT", "FLOAT"):
        return [i.min, i.max, i.default, i.min - 1, i.max + 1]
    return list(i.options) if i.get_io_type() == "COMBO" else [i.default]


@contextmanager
def written_below(base: Path, *allowed: str) -> Iterator[None]:
    """Nothing may appear below `base` but in the folders `allowed`."""
    before = set(base.rglob("*"))
    yield
    new = {p for p in set(base.rglob("*")) - before if p.relative_to(base).parts[0] not in allowed}
    assert not new


def _download_is_there(made: Made) -> list[Path]:
    """Files for Download VFT Model to find, or `accept_licence` would open a connection."""
    files = [made.host.models / entry.file_name for entry in catalog().values()]
    for file in files:
        file.touch()
    return files


@pytest.mark.slow
@pytest.mark.parametrize("wire", ["validated", "unvalidated"])
@pytest.mark.parametrize("name", NODES)
def test_any_value_works_or_is_refused_in_one_line(
    made: Made, things: dict[str, Any], name: str, wire: str
) -> None:
    node = made.host.nodes[f"VFT{name}"]
    inputs = node.GET_SCHEMA().inputs
    plain = usual(node, things)
    files = _download_is_there(made) if name == "DownloadModel" else []

    @st.composite
    def values(draw: Callable[..., Any]) -> dict[str, Any]:
        chosen = dict(plain)
        for i in draw(st.lists(st.sampled_from(inputs), max_size=3, unique_by=lambda i: i.id)):
            if is_widget(i):
                chosen[i.id] = draw(st.one_of(st.sampled_from(edges(i)), WILD))
            elif wire == "unvalidated":
                chosen[i.id] = draw(st.one_of(st.sampled_from(list(things.values())), WILD))
            else:
                chosen[i.id] = things[i.get_io_type()]
        return chosen

    @settings(
        max_examples=60, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(values=values())
    def check(values: dict[str, Any]) -> None:
        ready = validated(node, values) if wire == "validated" else values
        if ready is not None:
            run(made, f"VFT{name}", ready)

    try:
        with memory_peak() as grown, written_below(made.host.base, "output", "temp"):
            run(made, f"VFT{name}", plain)
            check()
            assert grown() < 3 << 30
    finally:
        for file in files:
            file.unlink()


@pytest.mark.parametrize(
    ("node", "values", "told"),
    [
        ("VFTExampleClip", {"frames": 4096, "size": 1024}, "at 1024 px take at most 64"),
        ("VFTExampleClip", {"frames": 4097}, "frames is 4097; give a whole number, 1 to 4096"),
        ("VFTExampleClip", {"seed": 10**400}, "a number of about 400 digits"),
        ("VFTDecode", {"steps": 1001}, "steps is 1001; give a whole number, 0 to 1000"),
        ("VFTDecode", {"guidance": math.nan}, "guidance is nan; give a number, 0.0 to 30.0"),
        ("VFTDecode", {"preview": "no"}, "preview is 'no'; give true or false"),
        ("VFTDecode", {"tokens": "clip.vft"}, "tokens got str; connect VFT_TOKENS"),
        ("VFTDecode", {"first_frame": [1]}, "first_frame got list; connect IMAGE"),
        ("VFTEncode", {"fit": "squash"}, "fit is 'squash'; choose one of crop, pad, stretch"),
        ("VFTTextToTokens", {"prompt": "a" * 10**5}, "at most 65536 characters"),
        ("VFTDownloadModel", {"model": "evil", "accept_licence": True}, "model is 'evil'"),
        ("VFTDownloadModel", {"accept_licence": "false"}, "give true or false"),
        ("VFTTokensInfo", {}, "tokens is missing"),
    ],
)
def test_limits_are_named(made: Made, node: str, values: dict[str, Any], told: str) -> None:
    links = {"VFTDecode": {"tokenizer": made.tokenizer, "tokens": made.tokens},
             "VFTEncode": {"tokenizer": made.tokenizer, "images": made.clip[0]},
             "VFTTextToTokens": {"prior": made.prior}}  # fmt: skip
    with pytest.raises(made.host.error) as e:
        made.host.run(node, **links.get(node, {}) | values)
    assert told in str(e.value)


def test_frames_that_the_disk_cannot_take_are_refused_before_the_work(made: Made) -> None:
    """A mapped file that outgrows the disk ends the whole ComfyUI with a bus error."""
    pictures = made.host.module("vft_nodes.pictures")
    store = pictures.FrameStore(1 << 40)
    with pytest.raises(made.host.error, match="GB in the temp folder"):
        store.add(torch.zeros(64, 64, 3, dtype=torch.uint8).numpy())
    assert not list((made.host.base / "temp").glob("*.frames"))


@pytest.mark.parametrize(
    "notes",
    [[1], "x", 7, {"workflow": [math.nan, "\0"]}, {"vft": "{}"}, {"a": {"b": 1}}],
)
def test_whatever_a_client_sends_as_the_workflow_the_tokens_are_saved(
    made: Made, notes: Any
) -> None:
    from comfy_api.latest import io

    hidden = {io.Hidden.prompt: {"1": notes}, io.Hidden.extra_pnginfo: notes}
    out = made.host.run("VFTSaveTokens", tokens=made.tokens, hidden=hidden)
    saved = out.ui["vft"][0]
    read = Tokens.load(made.host.base / "output" / saved["subfolder"] / saved["filename"])
    assert torch.equal(read.ids, made.tokens.ids)
