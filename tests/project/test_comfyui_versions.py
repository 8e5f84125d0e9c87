"""The command that runs ring 3 in several ComfyUIs: which Python each gets, and what it counts."""

from __future__ import annotations

from pathlib import Path

import pytest
from comfyui.versions import Result, main, pythons, read_report, version_of

REPORT = """<?xml version="1.0"?><testsuites><testsuite name="pytest" errors="1" failures="2"
skipped="3" tests="40" time="90.0"/></testsuites>"""


def checkout(path: Path, version: str, environment: str = "") -> Path:
    path.mkdir()
    (path / "main.py").touch()
    (path / "comfyui_version.py").write_text(f'# made by a machine\n__version__ = "{version}"\n')
    if environment:
        (path / environment / "bin").mkdir(parents=True)
        (path / environment / "bin" / "python").touch()
    return path


def test_each_checkout_has_its_own_python_unless_one_is_given(tmp_path: Path) -> None:
    one, two = checkout(tmp_path / "a", "0.8.0", "venv"), checkout(tmp_path / "b", "0.33.0")
    assert pythons([one, two], []) == [f"{one}/venv/bin/python", "python3"]
    assert pythons([one, two], ["/p"]) == ["/p", "/p"]
    assert pythons([one, two], ["/p", "/q"]) == ["/p", "/q"]
    with pytest.raises(ValueError, match="names 2 interpreters for 1 checkouts"):
        pythons([one], ["/p", "/q"])
    assert [version_of(c) for c in (one, two)] == ["0.8.0", "0.33.0"]


def test_errors_count_as_failures_and_so_does_no_report(tmp_path: Path) -> None:
    path = tmp_path / "report.xml"
    assert read_report(path, "0.8.0") == Result("0.8.0", 0, 1, 0, 0)
    path.write_text(REPORT)
    result = read_report(path, "0.8.0")
    assert result == Result("0.8.0", passed=34, failed=3, skipped=3, seconds=90)
    assert result.row() == "| 0.8.0 | 34 | 3 | 3 | 1.5 min |"


def test_a_folder_that_is_no_checkout_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([str(tmp_path)]) == main([]) == 2
    said = capsys.readouterr().err
    assert f"no main.py in {tmp_path}" in said and "which ComfyUI?" in said
    monkeypatch.setenv("COMFYUI_PYTHON", "/p /q")
    assert main([str(checkout(tmp_path / "a", "0.8.0"))]) == 2
    assert "2 interpreters" in capsys.readouterr().err
