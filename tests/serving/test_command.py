"""``python -m planer serve``: signals, a kill, and mistakes of the user."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys

import openai
import pytest

from tests.command_line import refused_line
from tests.serving.conftest import PATIENCE
from tests.unit.toy import ROOT

ASKED = {"model": "net", "prompt": "x", "temperature": 0}


def served(folder, *options: str) -> tuple[subprocess.Popen, int]:
    """A running server and its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "planer", "serve", str(folder), "--threads", "1", "--device", "cpu", *options],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    match = re.fullmatch(r"net answers on http://127\.0\.0\.1:(\d+)/v1\n", line)
    assert match, line
    return process, int(match[1])


def client(port: int) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=PATIENCE)


def test_a_killed_server_starts_again_and_sigterm_lets_requests_finish(folder, continuation):
    process, port = served(folder, "--port", "0")
    with process:
        assert client(port).completions.create(**ASKED).choices[0].text == continuation("x", tokens=16)
        process.kill()
    process, port = served(folder, "--port", "0", "--grace", "600")
    with process:
        stream = client(port).completions.create(**ASKED, max_tokens=500, stream=True)
        first = next(stream)
        process.send_signal(signal.SIGTERM)
        text = "".join(chunk.choices[0].text for chunk in [first, *stream])
        assert text == continuation("x", tokens=500)
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--active", "0"], "active is 0; it must be from 1 to 1,000"),
        (["--seconds", "nan"], "seconds is nan; it must be a finite number"),
        (["--port", "http"], "argument --port: invalid int value: 'http'"),
        (["--port", "70000"], "port 70000 of 127.0.0.1: "),
        (["--host", "300.1.1.1"], "port 8000 of 300.1.1.1: "),
        (["--host", "\u00e4..b"], "port 8000 of \u00e4..b: encoding of hostname failed; name others with --host"),
        (["--device", "tpu"], "device: 'tpu' is unknown"),
    ],
)
def test_a_mistake_is_one_line(folder, capsys, options, reason):
    assert reason in refused_line(capsys, "serve", str(folder), *options)


def test_a_port_in_use_is_one_line(folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port} of 127.0.0.1: Address already in use; name others" in refused_line(
            capsys, "serve", str(folder), "--port", port
        )


def test_a_network_without_vocabulary_is_one_line(folder, tmp_path, capsys):
    for name in ("architecture.yaml", "model.safetensors"):
        os.link(folder / name, tmp_path / name)
    assert "no vocab.json belongs to this network" in refused_line(capsys, "serve", str(tmp_path))


def test_missing_packages_are_named(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "planer.serving.server", None)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'planer[serve]'" in refused_line(capsys, "serve", str(folder))
