"""Files from strangers: kept findings replayed, and files bent at random (`python -m tests.fuzz`
hunts for longer, with coverage). What is asked of every reader stands in `fuzz/targets.py`."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from fuzz.mutate import mutate
from fuzz.oracle import judge, warm
from fuzz.targets import TARGETS, layout, tokens_examples, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from vft_lib.cli.vft import main
from vft_lib.errors import MAX_MESSAGE, CheckpointError, TokenFileError, VftError, one_line
from vft_lib.files.untrusted import DEPTH, HEADER_BYTES, plain, read_json, read_literal
from vft_lib.models.loading import load_prior
from vft_lib.tokens import Tokens

SEEDS = sorted((Path(__file__).parents[1] / "fuzz" / "seeds").glob("*/*"))


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    for target in TARGETS.values():
        warm(target.run, target.examples())


@pytest.mark.parametrize("name", TARGETS)
def test_sound_files_are_read(name: str) -> None:
    assert all(judge(TARGETS[name].run, data) for data in TARGETS[name].examples())


@pytest.mark.parametrize("seed", SEEDS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_kept_findings(seed: Path) -> None:
    judge(TARGETS[seed.parent.name].run, seed.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32), times=st.integers(1, 3))
def test_bent_files(name: str, seed: int, times: int) -> None:
    rng = random.Random(seed)
    data = rng.choice(TARGETS[name].examples())
    for _ in range(times):
        data = mutate(TARGETS[name], data, rng)
    judge(TARGETS[name].run, data)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=400))
def test_any_bytes(name: str, data: bytes) -> None:
    judge(TARGETS[name].run, data)


@given(st.text(max_size=60), st.integers(20, 70))
def test_a_message_is_one_line_of_a_terminal(text: str, limit: int) -> None:
    line = one_line(text, limit)
    assert len(line) <= limit
    assert one_line(line, limit) == line
    assert not set(line) & {"\n", "\r", "\x1b", "\x9b", "\x07", "\u2028", "\u202e"}
    line.encode()
    assert str(VftError(text)) == one_line(text)


def test_a_long_message_keeps_both_ends() -> None:
    message = str(VftError("/a/path " + "x" * 50_000 + " the reason"))
    assert message.startswith("/a/path ")
    assert message.endswith(" the reason")
    assert len(message) <= MAX_MESSAGE


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 62), 1 << 62) | st.text(max_size=9)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)  # fmt: skip


@given(json_values)
def test_plain_data_stays_as_it_is(value: object) -> None:
    assert plain(value) == value
    assert read_literal(repr(value)) == value or isinstance(value, str)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": NaN}', '{"a": -Infinity}', '{"a": 1, "a": 2}', "9" * 30, "[" * 10**5, "",
        "[" * (DEPTH + 2) + "]" * (DEPTH + 2), '{"a": {"b": 1, "b": 1}}', "1" * (1 << 21),
    ],
    ids=lambda t: t[:16],
)  # fmt: skip
def test_json_that_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        read_json(text)


@pytest.mark.parametrize(
    "text",
    [
        "&a [*a]", "a: &a [1]\nb: *a", "!!python/name:os.system", "b'x'", "{1: 2}", "0x" + "f" * 99,
    ],
)  # fmt: skip
def test_literals_that_stay_text(text: str) -> None:
    assert read_literal(text) == text


def tokens_file(path: Path, **arrays: np.ndarray) -> Path:
    save_file(arrays, path, {"vft": "{}"})
    return path


def refused(path: Path) -> str:
    with pytest.raises(TokenFileError) as e:
        Tokens.load(path)
    return str(e.value)


def test_a_giant_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.vft"
    with path.open("wb") as f:
        f.write((HEADER_BYTES + 1).to_bytes(8, "little"))
        f.truncate(HEADER_BYTES + 100)
    assert f"expected at most {HEADER_BYTES}" in refused(path)


def test_of_two_tensors_of_one_name_neither_is_read(tmp_path: Path) -> None:
    text = tokens_examples()[0][1:]
    twice = text[:-1] + b',"ids":' + str(layout({"ids": [2, 5]}, "U16")["ids"]).encode() + b"}"
    header = twice.replace(b"'", b'"')
    (tmp_path / "a.vft").write_bytes(len(header).to_bytes(8, "little") + header + bytes(20))
    assert "twice" in refused(tmp_path / "a.vft")


def test_names_and_axes_of_tensors_are_bounded(tmp_path: Path) -> None:
    ids = np.zeros((2, 3), np.uint16)
    assert "a tensor is called 'x\\x1b'" in refused(tokens_file(tmp_path / "a", **{"x\x1b": ids}))
    assert "a tensor is called" in refused(tokens_file(tmp_path / "b", **{"x" * 300: ids}))
    many = tokens_file(tmp_path / "c", ids=np.zeros((1,) * 9, np.uint16))
    assert "more than 8 axes" in refused(many)


@pytest.mark.parametrize("source", ["\x1b]0;owned\x07.mp4", "\ud800", "a\nvft: all is well"])
def test_a_clip_s_name_does_not_reach_the_terminal_as_it_is(
    tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tokens_examples()[0][1:].decode()
    data = data.replace("clip.mp4", json.dumps(json.dumps(source)[1:-1])[1:-1])
    path = write(b"H" + data.encode(), tmp_path / "a.vft")
    assert Tokens.load(path).source == source
    assert main(["info", str(path)]) == 0
    said = capsys.readouterr().out
    said.encode()
    assert all(line.isprintable() for line in said.splitlines())
    assert "vft: all is well" not in said.splitlines()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.vft")
    assert "no regular file" in refused(tmp_path / "a.vft")


@pytest.mark.parametrize("place", ["model.safetensors", "folder"])
def test_a_git_lfs_pointer_in_place_of_a_model(
    tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a clone holds where Git LFS is not installed."""
    file = tmp_path / "model.safetensors"
    file.write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123456789\n"
    )
    named = str(tmp_path if place == "folder" else file)
    tokens = str(tmp_path / "t.vft")
    for args in (["info", named], ["convert", named, str(tmp_path / "out.safetensors")]):
        assert main(args) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(file) in line
        assert "Git LFS pointer, which stands for the file; run `git lfs pull`" in line
    Path(tokens).write_bytes(file.read_bytes())
    assert main(["info", tokens]) == 2
    assert "git lfs pull" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="git lfs pull"):
        load_prior(file, device="cpu")
