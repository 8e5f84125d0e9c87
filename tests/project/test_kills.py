"""A short run of kills.py: kill -9 at random moments leaves no half file."""

from __future__ import annotations

import os

import kills
import pytest


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="fork and SIGKILL")
@pytest.mark.parametrize("command", ["encode", "tokenize", "decode", "convert", "download"])
def test_killed_commands_leave_no_half_file(command: str) -> None:
    assert kills.main(["--kills", "3", "--only", command]) == 0
