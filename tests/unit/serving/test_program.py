"""The program as it is started in a pod: exit codes, last lines, and a rolling restart under load."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from headrace.serving.__main__ import main
from headrace.storage import AccessDenied, StorageError, Unreachable
from tests.unit.serving import models
from tests.unit.serving.waiting import until

BODY = b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]}]}'


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_bad_model_is_exit_78_and_the_last_line_says_which_and_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x80\x04 a pickle, perhaps")
    uri = f"file://{tmp_path}/model.onnx"
    arguments = ["predictor", "--name", "demo", "--host", "127.0.0.1", "--port", "0", "--drain-seconds", "0"]
    assert main([*arguments, "--storage-uri", uri]) == 78
    assert last_line(capsys).startswith(f"{uri}: is a Python pickle (joblib, torch.save), which could run any code")
    assert main([*arguments, "--storage-uri", f"file://{tmp_path}/missing"]) == 78
    assert f"file://{tmp_path}/missing" in last_line(capsys)


def test_a_store_that_refuses_is_exit_78_and_one_that_does_not_answer_is_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["predictor", "--name", "demo", "--host", "127.0.0.1", "--port", "0", "--drain-seconds", "0"]
    arguments += ["--storage-uri", "s3://lake/model"]
    denied = AccessDenied("s3://lake/model", "the store refuses the key", "check AWS_ACCESS_KEY_ID")
    for error, code in ((denied, 78), (Unreachable("s3://lake/model", "no answer"), 1)):

        async def refuse(*_: object, failed: StorageError = error) -> None:
            raise failed

        monkeypatch.setattr("headrace.serving.predictor.load", refuse)
        assert main(arguments) == code
        assert last_line(capsys) == str(error)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["chain.json", "ConfigMap"]),
        ("{}", ["chain.json", "name"]),
        (
            json.dumps(
                {
                    "name": "demo",
                    "namespace": "ns",
                    "predictor": {"host": "h"},
                    "fallback": [
                        {
                            "name": "last",
                            "static": {"outputs": [{"name": "y", "datatype": "INT64", "shape": [1], "data": ["one"]}]},
                        }
                    ],
                }
            ),
            ["y", "INT64"],
        ),
    ],
)
def test_a_bad_chain_is_exit_78(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, words: list[str]
) -> None:
    file = tmp_path / "chain.json"
    if text is not None:
        file.write_text(text)
    assert main(["router", "--chain", str(file), "--host", "127.0.0.1", "--port", "0", "--drain-seconds", "0"]) == 78
    line = last_line(capsys)
    for word in words:
        assert word in line


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@asynccontextmanager
async def program(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "headrace.serving", *arguments, stderr=asyncio.subprocess.PIPE, env=dict(os.environ)
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def is_ready(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/v2/health/ready") as response:
            return response.status == 200
    except aiohttp.ClientConnectionError:
        return False


async def test_a_rolling_restart_under_load_loses_no_request(tmp_path: Path) -> None:
    """Two processes on two addresses, as two pods are; the clients turn to the new one while the old one drains."""
    models.linear(tmp_path / "model.onnx")
    port = free_port()
    arguments = ["predictor", "--name", "demo", "--storage-uri", f"file://{tmp_path}", "--port", str(port)]
    arguments += ["--drain-seconds", "0.7", "--grace-seconds", "5"]
    answers: list[tuple[int, str | None]] = []
    target = "127.0.0.1"
    stop = False

    async def load(session: aiohttp.ClientSession) -> None:
        while not stop:
            async with session.post(f"http://{target}:{port}/v2/models/demo/infer", data=BODY) as response:
                await response.read()
                answers.append((response.status, response.headers.get("Connection")))

    async with aiohttp.ClientSession() as session, program(*arguments, "--host", "127.0.0.1") as old:
        await until(lambda: is_ready(session, f"http://127.0.0.1:{port}"), "the old one is ready", 30)
        clients = [asyncio.ensure_future(load(session)) for _ in range(4)]
        async with program(*arguments, "--host", "127.0.0.2") as new:
            await until(lambda: is_ready(session, f"http://127.0.0.2:{port}"), "the new one is ready", 30)
            old.send_signal(signal.SIGTERM)

            async def draining() -> bool:
                return not await is_ready(session, f"http://127.0.0.1:{port}")

            await until(draining, "it says that it is not ready")
            before = len(answers)
            # It goes on answering while endpoints are taken back, and asks its clients to go.
            await until(lambda: len(answers) >= before + 20, "answers while it drains")
            assert answers[-1] == (200, "close")
            target = "127.0.0.2"
            assert await asyncio.wait_for(old.wait(), 20) == 0
            after = len(answers)
            await until(lambda: len(answers) >= after + 20, "answers of the new one")
            stop = True
            await asyncio.gather(*clients)
            new.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(new.wait(), 20) == 0
    assert {status for status, _ in answers} == {200}
