"""Nothing in this program runs, imports or unpickles what a file says: the syntax trees are read,
not the words. What is allowed stands here, with the reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT / "__init__.py", *sorted(ROOT.glob("vft_*/**/*.py"))]

MODULES = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "copyreg",
    "importlib", "imp", "runpy", "code", "codeop", "ctypes", "cffi", "subprocess", "pty", "pkgutil",
    "multiprocessing", "zipimport", "pydoc",
}  # fmt: skip
BUILTINS = {"eval", "exec", "compile", "__import__", "globals", "breakpoint"}
# Attributes of modules: `torch.load` is pickle, `yaml.load` makes any object its loader says.
CALLS = {
    "torch": {"load", "hub", "package", "jit", "classes", "storage", "serialization"},
    "yaml": {"load", "load_all", "unsafe_load", "full_load", "Loader", "UnsafeLoader",
             "FullLoader", "CLoader", "add_constructor"},
    "np": {"load"}, "numpy": {"load"}, "importlib": {"import_module"},
    "os": {"system", "popen", "execv", "execve", "execvp", "spawnv", "startfile", "posix_spawn"},
    "builtins": BUILTINS, "sys": {"modules"}, "typing": {"get_type_hints"},
}  # fmt: skip
KEYWORDS = {"trust_remote_code": False, "allow_pickle": False, "use_safetensors": True}

INSTALLED = "find_spec of a name that stands there: is it installed"
ALLOWED = {
    ("vft_lib/__init__.py", "import importlib.import_module"): "of our own modules, named there",
    ("vft_lib/config/fields.py", "typing.get_type_hints"): "of our own dataclasses",
    ("vft_lib/models/hub_files.py", "sys.modules"): "asks whether huggingface_hub is there",
    ("vft_lib/evaluation/card.py", "import importlib.util"): INSTALLED,
    ("vft_lib/evaluation/learned.py", "import importlib.util"): INSTALLED,
    ("vft_lib/evaluation/options.py", "np.load"): "with allow_pickle=False, of what it wrote",
    ("vft_lib/footage/pack.py", "import multiprocessing"): "decodes pictures in processes",
    ("vft_lib/footage/packing.py", "import importlib.metadata"): "licences of packages named there",
    ("vft_lib/footage/packing.py", "import importlib.util"): INSTALLED,
    ("vft_lib/footage/packing.py", "import multiprocessing"): "encodes pictures in processes",
    ("vft_lib/footage/packing.py", "np.load"): "with allow_pickle=False, of what it wrote",
    ("vft_lib/footage/worlds.py", "import multiprocessing"): "draws clips in processes",
    ("vft_lib/gpu_check/check.py", "import subprocess"): "runs itself, one part after another",
    (
        "vft_lib/scoring/networks.py",
        "torch.jit",
    ): "a file named on the command line, after its hash",
    ("vft_lib/scoring/networks.py", "torch.load"): "weights_only, of torchvision's own file",
    ("vft_lib/measure/features.py", "import importlib.util"): INSTALLED,
    ("vft_lib/transformer/attention.py", "import importlib.util.find_spec"): INSTALLED,
    (
        "vft_lib/measure/features.py",
        "torch.load",
    ): "weights_only, of a package's own file",
    ("vft_lib/footage/real.py", "import importlib.util"): INSTALLED,
    ("vft_lib/shards/decoding.py", "import multiprocessing"): "decodes clips in processes",
    ("vft_lib/shards/decoding.py", "import multiprocessing.connection"): "and listens to them",
    ("vft_lib/shards/decoding.py", "import multiprocessing.connection.Connection"): "its type",
    ("vft_nodes/resources.py", "compile"): "a field of that name",
    ("vft_lib/footage/real.py", "np.load"): "with allow_pickle=False, of our own cache",
}


def name_of(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def uses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of everything here that could run or unpickle something."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in MODULES:
                    yield line, f"import {alias.name}"
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            for alias in node.names:
                if node.module.partition(".")[0] in MODULES:
                    yield line, f"import {node.module}.{alias.name}"
                elif alias.name in CALLS.get(node.module, ()):
                    yield line, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Name) and node.id in BUILTINS:
            yield line, node.id
        elif isinstance(node, ast.Attribute) and node.attr in CALLS.get(name_of(node.value), ()):
            yield line, name_of(node)
        elif isinstance(node, ast.Call) and name_of(node.func).endswith("Model.from_pretrained"):
            if "use_safetensors" not in [k.arg for k in node.keywords]:
                yield line, "from_pretrained without use_safetensors"
        elif isinstance(node, ast.keyword) and node.arg in KEYWORDS:  # noqa: SIM102
            if getattr(node.value, "value", None) is not KEYWORDS[node.arg]:
                yield line, f"{node.arg}="


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_runs_what_a_file_says(path: Path) -> None:
    file = str(path.relative_to(ROOT)).replace("\\", "/")
    found = [(line, use) for line, use in uses(ast.parse(path.read_text(encoding="utf-8")))]
    wrong = [f"{file}:{line}: {use}" for line, use in found if (file, use) not in ALLOWED]
    assert not wrong
    unused = {use for f, use in ALLOWED if f == file} - {use for _, use in found}
    assert not unused, "allowed, but no longer there"


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from pickle import loads", "eval('1')", "x = exec", "__import__('os')",
        "import importlib.util", "from importlib import import_module", "torch.load(p)",
        "from torch import load", "yaml.load(t, L)", "yaml.unsafe_load(t)", "np.load(p)",
        "f(trust_remote_code=True)", "f(allow_pickle=x)", "XModel.from_pretrained(n)",
        "os.system(c)", "import subprocess",
        "compile(s, f, 'exec')", "torch.hub.load(r)", "def f():\n    import dill as d",
    ],
)  # fmt: skip
def test_the_walk_sees(code: str) -> None:
    assert list(uses(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    ["re.compile(p)", "m.eval()", "'eval(x)'", "# exec", "json.load(f)", "f(allow_pickle=False)"],
)
def test_the_walk_sees_no_more(code: str) -> None:
    assert not list(uses(ast.parse(code)))
