"""Full queues, long requests, clients that disconnect, errors, metrics, the log, and the end of a server."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from itertools import islice

import openai
import pytest

from tests.serving.conftest import NAME, PATIENCE

ENDLESS = {"model": NAME, "prompt": "x", "max_tokens": 1_000_000}
SHORT = {"model": NAME, "prompt": "x", "max_tokens": 8, "temperature": 0}
ACTIVE, WAITING = "planer_requests_active", "planer_requests_waiting"
COUNT = tuple(f'planer_request_seconds_count{{route="{route}"}}' for route in ("/v1/completions", "other"))
CANCELLED = 'planer_generations_total{finish="cancelled"}'


@pytest.fixture(scope="module")
def endless(started):
    """One active request of any length, and one waiting request."""
    return started(max_tokens=1_000_000, active=1, waiting=1)


def sent(server, body: dict, length: int | None = None) -> socket.socket:
    """A connection on which a request, or only the first bytes of its body, was sent."""
    text = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(text)}"
    client = socket.create_connection(("127.0.0.1", server.server.port), timeout=PATIENCE)
    client.sendall(f"{head}\r\n\r\n".encode() + text[:length])
    return client


def joined(stream) -> str:
    return "".join(chunk.choices[0].text for chunk in stream)


def test_a_full_queue_refuses_one_request_and_answers_the_others(endless, continuation):
    endless.pause()
    streams = [endless.api.completions.create(**SHORT, stream=True) for _ in range(2)]
    endless.wait_for(ACTIVE, 1)
    endless.wait_for(WAITING, 1)
    with pytest.raises(openai.RateLimitError) as refused:
        endless.api.completions.create(**SHORT)
    assert refused.value.response.headers["Retry-After"] == "1" and refused.value.code == "queue_full"
    endless.go_on()
    assert [joined(stream) for stream in streams] == [continuation("x", tokens=8)] * 2
    assert endless.api.completions.create(**SHORT).choices[0].text == continuation("x", tokens=8)


def test_closing_a_stream_ends_its_generation(endless):
    before = endless.figures().get(CANCELLED, 0)
    stream = endless.api.completions.create(**ENDLESS, stream=True)
    assert len(list(islice(stream, 3))) == 3
    stream.close()
    endless.wait_for(ACTIVE, 0)
    endless.wait_for(CANCELLED, before + 1)


def test_a_disconnect_ends_active_and_waiting_generations(endless):
    before = endless.figures().get(CANCELLED, 0)
    first = sent(endless, ENDLESS)
    endless.wait_for(ACTIVE, 1)
    second = sent(endless, ENDLESS)
    endless.wait_for(WAITING, 1)
    second.close()
    endless.wait_for(WAITING, 0)
    assert endless.figures()[ACTIVE] == 1
    first.close()
    endless.wait_for(ACTIVE, 0)
    endless.wait_for(CANCELLED, before + 2)
    assert endless.figures()["planer_generated_tokens_total"] < ENDLESS["max_tokens"]


@pytest.mark.parametrize("length", [None, 5], ids=["after the request", "within the request"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_disconnect_at_once_leaves_no_generation(endless, stream, length):
    before = sum(value for name, value in endless.figures().items() if name.startswith(COUNT))
    sent(endless, ENDLESS | {"stream": stream}, length).close()
    for _ in range(3000):
        after = sum(value for name, value in endless.figures().items() if name.startswith(COUNT))
        if after == before + 1:
            break
        time.sleep(0.02)
    assert after == before + 1
    endless.wait_for(ACTIVE, 0)
    assert endless.figures()[WAITING] == 0


@pytest.fixture(scope="module")
def impatient(started):
    return started(max_tokens=1_000_000, seconds=0.5)


def test_a_request_that_takes_too_long_ends_with_an_error(impatient):
    with pytest.raises(openai.InternalServerError, match="the request took longer than 0.5 s") as error:
        impatient.api.completions.create(**ENDLESS)
    assert error.value.status_code == 504 and error.value.code == "timeout"
    assert error.value.response.headers["x-should-retry"] == "false"


def test_a_stream_that_takes_too_long_ends_with_an_error(impatient):
    with pytest.raises(openai.APIError, match="the request took longer than 0.5 s"):
        list(impatient.api.completions.create(**ENDLESS, stream=True))
    impatient.wait_for(ACTIVE, 0)


def test_a_long_prompt_is_interrupted_and_leaves_others_their_turns(started, continuation, monkeypatch):
    server = started(active=2)
    monkeypatch.setattr("planer.models.generate.SEGMENT", 1)
    server.pause()
    long = sent(server, SHORT | {"prompt": "x" * 8_000})
    server.wait_for(ACTIVE, 1)
    server.go_on()
    assert server.api.completions.create(**SHORT).choices[0].text == continuation("x", tokens=8)
    assert server.figures()[ACTIVE] == 1
    long.close()
    server.wait_for(CANCELLED, 1)
    assert server.figures()["planer_generated_tokens_total"] == 8


def test_the_time_to_read_a_prompt_counts(impatient, monkeypatch):
    def slow(text: str) -> list[int]:
        time.sleep(0.6)
        return [1]

    monkeypatch.setattr(impatient.network, "encode", slow)
    with pytest.raises(openai.InternalServerError, match="the request took longer than 0.5 s"):
        impatient.api.completions.create(**SHORT)


def test_a_body_that_does_not_arrive_ends_with_an_error(impatient):
    with sent(impatient, SHORT, length=5) as client:
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 408 ") and b"the request's body took longer than 0.5 s" in answer


def test_an_error_in_the_network_ends_one_request_only(endless, continuation, capsys, monkeypatch):
    def broken(*arguments, **options):
        yield [1]
        raise RuntimeError("broken network")

    monkeypatch.setattr(endless.network, "steps", broken)
    with pytest.raises(openai.InternalServerError, match="the server has a fault; its log says more"):
        endless.api.completions.create(**SHORT)
    with pytest.raises(openai.APIError, match="the server has a fault; its log says more"):
        list(endless.api.completions.create(**SHORT, stream=True))
    monkeypatch.undo()
    assert "RuntimeError: broken network" in capsys.readouterr().err
    assert endless.api.completions.create(**SHORT).choices[0].text == continuation("x", tokens=8)


def test_a_stopping_server_finishes_active_requests_and_refuses_new_ones(started, continuation):
    server = started(grace=600)
    server.pause()
    stream = server.api.completions.create(**SHORT, stream=True)
    server.wait_for(ACTIVE, 1)
    assert server.ask("GET", "/health")[0] == 200
    stopping = threading.Thread(target=server.server.stop)
    stopping.start()
    while server.ask("GET", "/health")[0] == 200:
        pass
    assert json.loads(server.ask("GET", "/health")[2]) == {"live": True, "ready": False, "model": NAME}
    with pytest.raises(openai.InternalServerError, match="the server is shutting down") as refused:
        server.api.completions.create(**SHORT)
    assert refused.value.status_code == 503 and refused.value.response.headers["Retry-After"] == "1"
    server.go_on()
    assert joined(stream) == continuation("x", tokens=8)
    stopping.join(PATIENCE)
    assert not stopping.is_alive()


def test_after_the_grace_time_requests_end_with_an_error(started):
    server = started(max_tokens=1_000_000)
    streamed, whole = server.api.completions.create(**ENDLESS, stream=True), sent(server, ENDLESS)
    server.wait_for(ACTIVE, 2)
    server.server.stop()
    with pytest.raises(openai.APIError, match="the server is shutting down"):
        list(streamed)
    with whole:
        assert whole.recv(4096).startswith(b"HTTP/1.1 503 ")
    with pytest.raises(openai.APIConnectionError):
        server.api.models.list()


def test_metrics_have_the_format_of_prometheus(server):
    server.api.completions.create(**SHORT)
    status, headers, text = server.ask("GET", "/metrics")
    assert status == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4")
    families = re.findall(r"^# HELP (\w+) .+\n# TYPE \1 (counter|gauge|histogram)$", text, re.MULTILINE)
    samples = re.findall(
        r'^(\w+?)(?:_bucket|_sum|_count)?(?:\{(?:\w+="[^"\n]*",?)+\})? [0-9.e+-]+$', text, re.MULTILINE
    )
    assert len(families) * 2 + len(samples) == len(text.splitlines())
    assert set(samples) <= {name for name, _ in families} and text.endswith("\n")
    buckets = [int(n) for n in re.findall(r'_bucket\{route="/v1/completions",le="[^"]+"\} (\d+)', text)]
    (count,) = re.findall(r'_count\{route="/v1/completions"\} (\d+)', text)
    assert buckets == sorted(buckets) and buckets[-1] == int(count)


def test_the_log_has_a_line_for_each_request_and_no_text_of_prompts(server, capsys):
    unknown = 'planer_requests_total{route="other",status="404"}'
    before = server.figures().get(unknown, 0)  # other tests use the same server
    for prompt in ("a secret", "a sécret"):
        server.ask("POST", "/v1/completions", SHORT | {"prompt": prompt})
    server.ask("GET", "/health")
    server.ask("GET", "/a/secret")
    server.wait_for(unknown, before + 1)
    lines = capsys.readouterr().err.splitlines()
    patterns = (r"POST /v1/completions 200, [\d.]+ s, 8 \+ 8 tokens, length", r"POST /v1/completions 400, [\d.]+ s")
    for line, pattern in zip(lines, (*patterns, r"GET other 404, [\d.]+ s"), strict=True):
        assert re.fullmatch(pattern, line), line
