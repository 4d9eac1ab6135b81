"""`python -m headrace.training classifier` with configurations that cannot work: exit code 78 and one clear last line.

They are found before PyTorch is needed, so these run where it is not installed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import headrace.training
from headrace.training.__main__ import main


@pytest.fixture
def signals() -> Iterator[None]:
    """The command sets handlers, as a process of its own may."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "HEADRACE_CLASSIFIER: not set; set it to the JSON"),
        (
            {"HEADRACE_CLASSIFIER": '{"dataset":{"builtin":"Digits"},"epochs":0}'},
            "epochs: 0: Input should be greater than or equal to 1; correct spec.classifier",
        ),
        ({"HEADRACE_CLASSIFIER": '{"dataset":{"uri":"file:///no/such"}}'}, "file:///no/such: there is nothing here"),
        (
            {"HEADRACE_CLASSIFIER": '{"dataset":{"uri":"s3://b/x"}}', "AWS_ENDPOINT_URL": "http://store:1"},
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ),
    ],
)
@pytest.mark.usefixtures("signals")
def test_what_cannot_work_ends_with_78_and_one_clear_line(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in os.environ:
        if name.startswith(("AWS_", "HEADRACE_")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["classifier"]) == 78
    stderr = capfd.readouterr().err
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in stderr


def test_sigterm_before_training_ends_with_143(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(tmp_path / "block")
    # A data set that takes for ever to open.
    script = (
        "import sys, headrace.training.classifier as c, headrace.training.__main__ as m\n"
        f"def load(_):\n    open({str(ready)!r}, 'w').close()\n    open({str(tmp_path / 'block')!r})\n"
        "c.load = load\nm._exit(m.main(['classifier']))\n"
    )
    environment = os.environ | {"HEADRACE_CLASSIFIER": '{"dataset":{"builtin":"Digits"}}'}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 30
        while not ready.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=10)
    assert process.returncode == 143
    assert b"told to stop" in stderr


def test_importing_the_package_does_not_need_torch() -> None:
    code = "import sys, headrace.training; sys.exit(any(m == 'torch' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'sesion'"):
        headrace.training.sesion  # noqa: B018
