"""Refused requests, with the error bodies of the API."""

from __future__ import annotations

import json
import socket

import openai
import pytest

from tests.serving.conftest import NAME, PATIENCE

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
ASKED = {"model": NAME, "prompt": "x", "max_tokens": 2}
CHATTED = {"model": NAME, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}


def refusal(server, status: int, path: str, body, method: str = "POST", **options) -> dict:
    """The error of a refused request."""
    given, headers, text = server.ask(method, path, body, **options)
    assert given == status and headers["Content-Type"] == "application/json", text
    error = json.loads(text)["error"]
    assert error.keys() == {"message", "type", "param", "code"} and "\n" not in error["message"]
    return error


@pytest.mark.parametrize(
    ("change", "param", "reason"),
    [
        ({"n": 2}, "n", "n is 2: Input should be 1"),
        ({"best_of": 3}, "best_of", "best_of is 3"),
        ({"echo": True}, "echo", "echo is True"),
        ({"logprobs": 5}, "logprobs", "logprobs is 5"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens is 0"),
        ({"max_tokens": "5"}, "max_tokens", "max_tokens is '5'"),
        ({"max_tokens": 2049}, "max_tokens", "max_tokens is 2,049; this server writes at most 2,048"),
        ({"temperature": -0.1}, "temperature", "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature", "temperature is nan"),
        ({"top_p": 0}, "top_p", "top_p is 0"),
        ({"seed": -1}, "seed", "seed is -1"),
        ({"seed": 10**30}, "seed", "seed is 1000"),
        ({"stop": ""}, "stop.0", "stop.0 is ''"),
        ({"stop": ["a"] * 5}, "stop", "stop is ['a', 'a'"),
        ({"stop": 3}, "stop", "stop is 3"),
        ({"stream": "yes"}, "stream", "stream is 'yes'"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "frequency_penalty is 0.5"),
        ({"tools": []}, "tools", "tools is not supported; leave it out"),
        ({"prompt": ["a", "b"]}, "prompt", "prompt is ['a', 'b']"),
        ({"prompt": None}, "prompt", "prompt is empty"),
        ({"prompt": ""}, "prompt", "the prompt '' holds no token"),
        ({"prompt": "é"}, "prompt", "the prompt's byte 0xc3 ('Ã') is not in the vocabulary of this network; leave it"),
        ({"prompt": "x" * 8193}, "prompt", "the prompt has 8,193 tokens; this server reads at most 8,192"),
        ({"model": 1}, "model", "model is 1"),
    ],
)
def test_a_parameter_is_refused(server, change, param, reason):
    error = refusal(server, 400, COMPLETIONS, ASKED | change)
    assert error["message"].startswith(reason) and error["param"] == param
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [1]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "é"}]}, "messages"),
        ({"max_completion_tokens": 5000}, "max_tokens"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_a_parameter_of_a_chat_is_refused(server, change, param):
    assert refusal(server, 400, CHAT, CHATTED | change)["param"] == param


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "the body is not valid JSON: "),
        (b"", "the body is missing"),
        (b"[1]", "the body is [1]"),
        (b'"\xff"', "POST '/v1/completions': "),
        (b"[" * 100_000, "POST '/v1/completions': "),
        (b'{"seed": ' + b"1" * 5000 + b"}", "POST '/v1/completions': "),
        (b'{"model": "m"}', "prompt is missing"),
        (b'{"model": "' + NAME.encode() + b'", "prompt": "\\ud800"}', "prompt is '\\ud800'"),
    ],
)
def test_a_malformed_body_is_refused(server, body, reason):
    assert refusal(server, 400, COMPLETIONS, body)["message"].startswith(reason)


def test_a_body_of_another_content_type_is_refused(server):
    """A web page may make a browser send text/plain to any address."""
    error = refusal(server, 400, COMPLETIONS, json.dumps(ASKED).encode(), kind="text/plain")
    assert error["message"] == "the body must be JSON; send the header Content-Type: application/json"


def test_another_model_and_other_routes_are_not_found(server):
    assert refusal(server, 404, COMPLETIONS, ASKED | {"model": "other"})["code"] == "model_not_found"
    assert refusal(server, 404, "/v1/models/other", None, method="GET")["param"] == "model"
    refusal(server, 404, "/v1/embeddings", ASKED)
    refusal(server, 405, COMPLETIONS, None, method="GET")


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_a_prompt_of_a_megabyte_is_refused(server, path):
    body = ASKED | {"prompt": "x" * 2**20}
    assert refusal(server, 413, path, body)["message"] == "the request's body is larger than 262,144 bytes"
    with pytest.raises(openai.APIStatusError) as error:
        server.api.completions.create(**body)
    assert error.value.status_code == 413 and error.value.code == "request_too_large"


def test_an_endless_body_is_refused(server):
    """More bytes than the server discards; the client sees the answer or a closed connection."""
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.server.port), timeout=PATIENCE) as client:
        client.sendall(head.encode())
        chunk = b"100000\r\n" + b"x" * 2**20 + b"\r\n"
        with pytest.raises(OSError):
            for _ in range(1000):
                client.sendall(chunk)


def test_the_client_sees_the_kind_of_error(server):
    with pytest.raises(openai.BadRequestError, match="n is 2"):
        server.api.completions.create(**ASKED, n=2)
    with pytest.raises(openai.NotFoundError):
        server.api.models.retrieve("other")


def test_refusals_are_counted_and_later_requests_answered(server):
    sample = 'planer_requests_total{route="/v1/completions",status="400"}'
    before = server.figures().get(sample, 0)
    refusal(server, 400, COMPLETIONS, b"{")
    server.wait_for(sample, before + 1)
    assert len(server.api.completions.create(**ASKED).choices[0].text) == 2
