"""The catalogue: what is shipped is sound, what is not is refused, and no name opens a socket."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import save_tiny

from vft_lib import load_tokenizer
from vft_lib.errors import CheckpointError, VftError
from vft_lib.models.catalog import catalog, find, look_up, models_folder, read_catalog

ENTRY = """
[[model]]
name = "one"
kind = "tokenizer"
repo = "org/one"
revision = "main"
files = ["config.json", "model.safetensors"]
licence = "mit"
commercial = "yes"
size_gb = 1.0
about = "a model"
"""


def test_the_shipped_catalogue() -> None:
    entries = catalog()
    tokenizers = [e.name for e in entries.values() if e.kind == "tokenizer"]
    assert tokenizers == [
        "videoflextok_d18_d28", "videoflextok_d18_d18_k600", "k600-videoflextok",
        "k600-semantok", "uco3d-videoflextok", "uco3d-semantok",
    ]  # fmt: skip
    priors = [e for e in entries.values() if e.kind == "prior"]
    assert len(priors) == 20
    assert [e.name for e in entries.values() if e.kind == "image encoder"] == ["dinov2-large"]
    for e in priors:
        assert e.files == (f"ar/{e.name}/config.json", f"ar/{e.name}/model.safetensors")
        assert e.name.startswith(f"{e.tokenizer}-d")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "one"', 'name = "../one"', "plain name"),
        ('repo = "org/one"', 'repo = "one"', "plain repo"),
        ('"config.json"', '"../config.json"', "plain file"),
        ('"config.json"', '"/etc/passwd"', "plain file"),
        ('"config.json"', '"a/../../config.json"', "plain file"),
        ('"config.json"', '"sub/config.json"', "one folder"),
        ('files = ["config.json", "model.safetensors"]', "files = []", "one folder"),
        ('files = ["config.json", "model.safetensors"]', 'files = "config.json"', "list"),
        ('kind = "tokenizer"', 'kind = "vae"', "expected one of tokenizer, prior"),
        ('kind = "tokenizer"', 'kind = "prior"', "names its tokenizer"),
        ('kind = "tokenizer"', 'kind = "prior"\ntokenizer = "two"', "'two'"),
        ('kind = "tokenizer"', 'kind = "prior"\ntokenizer = "one"', "no tokenizer"),
        ("size_gb = 1.0", 'size_gb = "1"', "size_gb"),
        ("size_gb = 1.0", "", "'size_gb' is missing"),
        ("size_gb = 1.0", "size_gb = 1.0\nsha = 1", "unknown entry 'sha'"),
        ("[[model]]", "[model]", "[[model]]"),
        ("[[model]]", "x = 1\n[[model]]", "['x']"),
        ("[[model]]", "[[model", "not a readable catalogue"),
        ("", "", ""),
    ],
)
def test_a_catalogue_is_checked(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "catalog.toml"
    path.write_text(ENTRY.replace(old, new, 1) if old else ENTRY)
    if not old:
        assert list(read_catalog(path)) == ["one"]
        return
    with pytest.raises(VftError) as e:
        read_catalog(path)
    assert said in str(e.value)
    assert str(path) in str(e.value)
    assert "\n" not in str(e.value)


def test_a_name_is_given_once(tmp_path: Path) -> None:
    path = tmp_path / "catalog.toml"
    path.write_text(ENTRY + ENTRY)
    with pytest.raises(VftError, match="two models are called 'one'"):
        read_catalog(path)


def test_names_and_hub_ids() -> None:
    entry = catalog()["k600-semantok"]
    assert look_up("k600-semantok") is entry
    assert look_up("StabilityLabs/SemanTok/tokenizers/k600-semantok") is entry
    assert look_up("EPFL-VILAB/videoflextok_d18_d28") is catalog()["videoflextok_d18_d28"]
    with pytest.raises(VftError, match="several models; name one of k600-videoflextok"):
        look_up("StabilityLabs/SemanTok")
    other = look_up("org/repo/a/b")
    assert other is not None
    assert (other.repo, other.folder, other.name) == ("org/repo", "a/b", "org--repo--a--b")
    assert not other.listed
    for name in ("nothing", "org/../repo", "../x", "/etc/passwd", "a/b.safetensors", "", "a//b"):
        assert look_up(name) is None


def test_models_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VFT_HOME", str(tmp_path))
    assert models_folder() == tmp_path
    monkeypatch.setenv("VFT_HOME", "")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    assert models_folder().name == "videoflextok"
    assert models_folder().is_absolute()


def test_a_downloaded_model_is_loaded_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VFT_HOME", str(tmp_path))
    assert find("videoflextok_d18_d28") is None
    path = save_tiny(tmp_path / "videoflextok_d18_d28.safetensors")
    assert find("videoflextok_d18_d28") == path
    for name in ("videoflextok_d18_d28", "EPFL-VILAB/videoflextok_d18_d28"):
        assert load_tokenizer(name, device="cpu").config.name == "tiny"
    save_tiny(tmp_path / "org--repo.safetensors", name="other")
    assert load_tokenizer("org/repo", device="cpu").config.name == "other"


OFFLINE = """
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("a socket was opened")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import vft_lib
for name in sys.argv[1:]:
    try:
        vft_lib.load_tokenizer(name, device="cpu")
    except vft_lib.CheckpointError as e:
        print(e)
assert "huggingface_hub" not in sys.modules
"""


def test_loading_never_opens_a_socket(tmp_path: Path) -> None:
    names = ["videoflextok_d18_d28", "org/repo", "default", "k600-semantok-d16"]
    run = subprocess.run(
        [sys.executable, "-c", OFFLINE, *names], capture_output=True, text=True,
        env=os.environ | {"VFT_HOME": str(tmp_path)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    said = run.stdout.splitlines()
    assert len(said) == 3, "one line for each but 'default'"
    assert "`vft download videoflextok_d18_d28` fetches it (about 10.5 GB, licence" in said[0]
    assert str(tmp_path) in said[0]
    assert "`vft download org/repo`" in said[1]
    assert "is a prior, not a tokenizer; its tokenizer is 'k600-semantok'" in said[2]


def test_an_unknown_name_is_one_line() -> None:
    with pytest.raises(CheckpointError, match="neither 'default', nor an existing file") as e:
        load_tokenizer("vft-nono")
    assert "\n" not in str(e.value)
