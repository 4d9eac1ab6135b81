"""Asking for a profile where nobody can answer."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from headrace.training.profile import main


def test_a_pod_without_a_session_says_what_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--steps", "3"], tmp_path) == 1
    assert "the script must use headrace.training.session" in capsys.readouterr().err


def test_the_list_entry_of_a_process_that_was_killed_is_removed(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / str(gone.pid)).write_text("0")
    assert main([], tmp_path) == 1
    assert not (tmp_path / str(gone.pid)).exists()
