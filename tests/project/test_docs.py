"""The documentation holds: links lead somewhere, quoted commands parse, cloning is shallow."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from vft_lib.cli.vft import build_parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [p for where in ("*.md", "docs/*.md", "weights/*.md") for p in sorted(ROOT.glob(where))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def blocks(text: str) -> str:
    """The lines of a page's shell blocks, joined where they go on."""
    return "\n".join(re.findall(r"^ *```sh\n(.*?)```", text, re.S | re.M)).replace("\\\n", " ")


def anchors(text: str) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_quoted_commands_parse(page: Path) -> None:
    parser = build_parser()
    for line in blocks(page.read_text(encoding="utf-8")).splitlines():
        words = shlex.split(re.sub(r"\[[^]]*\]", "", line), comments=True)
        if words and Path(words[0]).name == "vft":
            try:
                parser.parse_args(words[1:])
            except SystemExit as e:
                assert e.code in (0, None), f"{page.name}: {line}"
        if words[:2] == ["git", "clone"]:
            assert words[2:4] == ["--depth", "1"], f"{page.name}: {line}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200
