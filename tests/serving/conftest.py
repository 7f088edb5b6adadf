"""A tiny network of random weights, and servers of it."""

from __future__ import annotations

import http.client
import json
import os
import string
import threading
import time
from collections.abc import Callable

import openai
import pytest
import torch

import planer
from planer.files import write_json
from planer.models import LanguageModel, initialise, save
from planer.models.network import Network
from planer.serving.limits import Limits
from planer.serving.server import Server
from planer.specs import Architecture, Attention, FeedForward

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before MLflow is imported

SYMBOLS = sorted(f"{string.ascii_letters}{string.digits}{string.punctuation} \n".encode())
NAME = "mine/target_0.5"
PATIENCE = 600
"""Seconds to wait for a server on a busy machine."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Small embeddings and large blocks: with other random weights it writes one symbol again and again."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("serving") / "net"
    model = LanguageModel(Architecture(len(SYMBOLS), 16, (Attention(2, 8), FeedForward(32)), init_std=2.0))
    initialise(model, torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.embedding.weight *= 0.15
    save(model, path)
    write_json(path / "vocab.json", SYMBOLS)
    return path


@pytest.fixture(scope="session")
def network(folder) -> Network:
    """The network whose texts the answers are compared with."""
    return planer.load(folder)


@pytest.fixture(scope="session")
def continuation(network) -> Callable[..., str]:
    """The text that ``Network.generate`` adds to a prompt."""

    def text(prompt: str, **sampling) -> str:
        return network.generate(prompt, **sampling).removeprefix(prompt)

    return text


class Running:
    """A server, and requests to it."""

    def __init__(self, server: Server, network: Network, held: threading.Event):
        self.server, self.network = server, network
        self.pause, self.go_on = held.clear, held.set
        self.api = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0, timeout=PATIENCE)

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE)

    def ask(self, method: str, path: str, body: bytes | dict | None = None, kind: str = "application/json"):
        """Status, headers and text of the answer to one plain request."""
        connection = self.connection()
        body = json.dumps(body) if isinstance(body, dict) else body
        connection.request(method, path, body, {"Content-Type": kind} if body is not None else {})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, answer.headers, text

    def figures(self) -> dict[str, float]:
        """Samples of /metrics by name."""
        lines = self.ask("GET", "/metrics")[2].splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    def wait_for(self, sample: str, value: float) -> None:
        """Wait until a figure has a value."""
        end = time.monotonic() + PATIENCE
        while self.figures().get(sample) != value:
            assert time.monotonic() < end, (sample, self.figures())
            time.sleep(0.02)


@pytest.fixture(scope="module")
def started(folder):
    """Starts servers with given limits, whose networks can be paused between two tokens.

    They stop with the module: a server logs a request after its answer, which must not reach another test's stderr.
    """
    running = []

    def start(**limits) -> Running:
        network, held = planer.load(folder), threading.Event()
        held.set()
        steps = network.steps

        def waiting_steps(*arguments, **options):
            for step in steps(*arguments, **options):
                assert held.wait(PATIENCE)
                yield step

        network.steps = waiting_steps
        server = Server(network, NAME, Limits.of(**{"threads": 1, "grace": 0} | limits), port=0)
        server.start()
        running.append(Running(server, network, held))
        return running[-1]

    yield start
    for one in running:
        one.go_on()
        one.server.stop()


@pytest.fixture(scope="module")
def server(started) -> Running:
    """A server with the default limits."""
    return started()
