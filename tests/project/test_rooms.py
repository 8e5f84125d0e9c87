"""The plan of the house: rooms of ten modules or fewer, and imports that go one way (from a room to
those above it in this list)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

LIBRARY = Path(__file__).resolve().parents[2] / "vft_lib"
ROOMS = (
    "errors", "files", "config", "token_file", "tokens", "transformer", "autoencoder",
    "image_features", "tokenizer", "prior", "video", "clips", "checkpoints", "models", "world",
    "measure", "gpu_check", "footage", "shards", "train", "distill", "evaluation", "scoring",
    "study", "cli",
)  # fmt: skip
LONGEST = 350  # lines
LONGER = {"world/world.py"}


def rooms_used(file: Path) -> Iterator[str]:
    """The rooms that a module imports from, inside functions too."""
    package = ("vft_lib", *file.relative_to(LIBRARY).parts[:-1])
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            path = [*base, *(node.module or "").split("."), *(a.name for a in node.names)]
            yield [p for p in path if p][1]


def test_imports_go_one_way() -> None:
    folders = {f.parent.name for f in LIBRARY.glob("*/__init__.py")}
    assert folders | {"errors", "token_file", "tokens", "image_features"} == set(ROOMS)
    wrong = []
    for file in [*LIBRARY.glob("*/*.py"), *(LIBRARY / f"{name}.py" for name in ROOMS)]:
        if not file.exists():
            continue
        room = file.parent.name if file.parent != LIBRARY else file.stem
        for used in rooms_used(file):
            where = file.relative_to(LIBRARY).as_posix()
            if ROOMS.index(used) > ROOMS.index(room):
                wrong.append((where, used))
    assert not wrong


def test_rooms_and_modules_are_small() -> None:
    for room in LIBRARY.glob("*/__init__.py"):
        modules = [f.name for f in room.parent.glob("*.py") if f.name != "__init__.py"]
        assert len(modules) <= 10, room.parent.name
    long = {
        f.relative_to(LIBRARY).as_posix()
        for f in LIBRARY.rglob("*.py")
        if len(f.read_text("utf-8").splitlines()) > LONGEST
    }
    assert long <= LONGER


def test_every_room_and_module_says_what_it_is() -> None:
    for file in LIBRARY.rglob("*.py"):
        assert ast.get_docstring(ast.parse(file.read_text("utf-8"))), file
    plan = (LIBRARY.parent / "ARCHITECTURE.md").read_text("utf-8")
    table = plan[plan.index("| room |") : plan.index("Beside the library")]
    named = re.findall(
        r"`(\w+)(?:/|\.py)`", "\n".join(r.split("|")[1] for r in table.splitlines() if r)
    )
    assert tuple(named) == ROOMS, "in the order of imports"
