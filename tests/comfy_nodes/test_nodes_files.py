"""Files that the nodes offer by name: lists, spellings, changes that size and time do not show."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comfy_graph import Executor
from comfy_world import Made
from conftest import save_tiny

_read: list[str] = []
sys.addaudithook(lambda event, args: _read.append(str(args[0])) if event == "os.scandir" else None)


@pytest.fixture
def output(made: Made) -> Iterator[Path]:
    """A folder of the output folder, empty; an hour old, like what a run of last time left."""
    folder = made.host.base / "output" / "full"
    folder.mkdir()
    yield folder
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.rmdir()


def aged(folder: Path) -> None:
    """As if all of it had been there for an hour."""
    for path in (*folder.rglob("*"), folder, folder.parent):
        os.utime(path, (path.stat().st_mtime - 3600,) * 2)


def offered(made: Made) -> list[str]:
    (file,) = made.host.nodes["VFTLoadTokens"].GET_SCHEMA().inputs
    return [name for name in file.options if name.startswith("full/")]


def test_a_folder_that_did_not_change_is_not_read_again(made: Made, output: Path) -> None:
    """Some keep 200,000 pictures in the output folder, and every page asks for the list."""
    for i in range(3):
        (output / str(i)).mkdir()
        (output / str(i) / "picture.png").touch()
        made.tokens.save(output / str(i) / "clip.vft")
    aged(output)
    first = offered(made)
    assert sorted(first) == [f"full/{i}/clip.vft [output]" for i in range(3)]
    _read.clear()
    assert offered(made) == first
    assert [path for path in _read if str(output) in path] == []
    made.tokens.save(output / "1" / "another.vft")
    assert offered(made)[0] == "full/1/another.vft [output]"  # the newest
    assert {Path(path).name for path in _read if str(output) in path} == {"1"}


def test_a_folder_that_takes_long_is_read_bit_by_bit(made: Made, output: Path) -> None:
    for i in range(3):
        (output / str(i)).mkdir()
        made.tokens.save(output / str(i) / "clip.vft")
    aged(output)
    files = made.host.module("vft_nodes.listed").TokenFiles(".vft")
    for place, count in (("full", 0), ("0", 1), ("1", 2), ("2", 3)):  # one more with each call
        _read.clear()
        assert len(files.below(output, patience=-1)) == count
        assert [Path(path).name for path in _read] == [place]


def test_a_file_that_vanishes_meanwhile_leaves_the_rest(
    made: Made, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look into the folder and the look at the file's time."""
    for name in ("goes.vft", "stays.vft"):
        made.tokens.save(output / name)
    getmtime = os.path.getmtime

    def meanwhile(path: Any) -> float:
        if Path(path).name == "goes.vft":
            Path(path).unlink()
        return getmtime(path)

    monkeypatch.setattr(os.path, "getmtime", meanwhile)
    assert offered(made) == ["full/stays.vft [output]"]


def test_links_and_hidden_folders_are_no_ways_on(made: Made, output: Path) -> None:
    (output / ".hidden").mkdir()
    made.tokens.save(output / ".hidden" / "a.vft")
    (output / "round").symlink_to(output)
    (output / "nothing.vft").symlink_to("gone.vft")
    made.tokens.save(output / "b.VFT")
    assert offered(made) == ["full/b.VFT [output]"]


def test_names_of_another_system_are_understood(made: Made, output: Path) -> None:
    """A workflow that was saved on Windows says `folder\\file`."""
    made.tokens.save(output / "clip.vft")
    folder = made.host.models / "folder"
    folder.mkdir()
    save_tiny(folder / "tiny.safetensors")
    execute = Executor(made.host)
    prompt: dict[str, Any] = {
        "1": {"class_type": "VFTLoadTokens", "inputs": {"file": "full\\clip.vft [output]"}},
        "2": {"class_type": "VFTTokensInfo", "inputs": {"tokens": ["1", 0]}},
        "3": {"class_type": "VFTLoadTokenizer", "inputs": {
            "tokenizer": "folder\\tiny.safetensors", "dtype": "auto", "device": "auto"}},
    }  # fmt: skip
    try:
        execute.check(prompt)
        assert execute(prompt)["2"][1] == made.tokens.budget
        words = prompt["3"]["inputs"]
        assert "tiny" in made.host.results("VFTLoadTokenizer", **words)[1]
        gone = {**prompt["3"], "inputs": {**words, "tokenizer": "folder\\gone.safetensors"}}
        with pytest.raises(ValueError, match=r"gone\.safetensors.* is not in models/videoflextok"):
            execute.check({"3": gone})
    finally:
        (folder / "tiny.safetensors").unlink()
        folder.rmdir()


def same_size_and_time(path: Path, before: os.stat_result) -> None:
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_tokens_of_the_same_size_and_time_are_read_again(made: Made) -> None:
    path = made.host.base / "input" / "same.vft"
    execute = Executor(made.host)
    prompt = {
        "1": {"class_type": "VFTLoadTokens", "inputs": {"file": "same.vft"}},
        "2": {"class_type": "VFTTokensInfo", "inputs": {"tokens": ["1", 0]}},
    }
    made.tokens.save(path, {"note": "a"})
    execute(prompt)
    before = path.stat()
    made.tokens.save(path, {"note": "b"})
    same_size_and_time(path, before)
    execute(prompt)
    assert execute.ran == ["VFTLoadTokens", "VFTTokensInfo"]
    os.utime(path)  # only touched
    execute(prompt)
    assert execute.ran == []


def test_a_model_of_the_same_size_and_time_is_loaded_again(made: Made) -> None:
    loader = made.host.nodes["VFTLoadTokenizer"]
    path = made.host.models / "same.safetensors"

    def stamp() -> Any:
        return loader.fingerprint_inputs(tokenizer=path.name, dtype="auto", device="auto")

    save_tiny(path, seed=1, name="same")
    first, before = stamp(), path.stat()
    assert stamp() == first
    save_tiny(path, seed=2, name="same")
    same_size_and_time(path, before)
    assert stamp() != first
    path.unlink()
