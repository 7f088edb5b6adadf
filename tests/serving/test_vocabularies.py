"""Answers in bytes, words and subwords, from given tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planer.models.vocabulary import Vocabulary
from tests.serving.conftest import NAME
from tests.unit.test_vocabulary import BYTES, SUBWORDS, WORDS


@pytest.fixture(scope="module")
def server(started):
    return started()


@pytest.fixture
def writes(server):
    """Gives the server's network another vocabulary and the tokens it writes."""

    def script(vocabulary: Vocabulary, ids: list[int]) -> None:
        server.network.surroundings = replace(server.network.surroundings, vocabulary=vocabulary)
        server.network.steps = lambda prompt, tokens, **_: ([i] for i in ids[:tokens])

    return script


CASES = [
    (BYTES, list("né\nuser".encode()), ["n", "é", "\n", "u", "s", "e", "r"]),
    (BYTES, [97, 0xC3], ["a", "\ufffd"]),
    (WORDS, [2, 3, 0, 4], [" the", " cat", "\n", "sat"]),
    (Vocabulary(SUBWORDS), [2, 3, 4, 0], ["ab", "é", "a"]),
]


@pytest.mark.parametrize(("vocabulary", "ids", "pieces"), CASES)
def test_a_stream_has_only_whole_characters(server, writes, vocabulary, ids, pieces):
    writes(vocabulary, ids)
    prompt = "the cat" if vocabulary is WORDS else "ab"
    asked = {"model": NAME, "prompt": prompt, "max_tokens": len(ids)}
    *chunks, last = server.api.completions.create(**asked, stream=True)
    assert [chunk.choices[0].text for chunk in chunks] == pieces
    answer = server.api.completions.create(**asked)
    assert answer.choices[0].text == "".join(pieces)
    assert answer.usage.prompt_tokens == {"bytes": 2, "words": 2, "subwords": 1}[vocabulary.kind]
    assert answer.usage.completion_tokens == len(ids)


@pytest.mark.parametrize(
    ("vocabulary", "ids", "stop", "text", "read"),
    [
        (BYTES, list("été".encode()), "té", "é", 5),
        (WORDS, [2, 3, 4, 5], "cat sat", " the ", 3),
        (Vocabulary(SUBWORDS), [0, 2, 3, 4, 0], "bé", "aa", 4),
    ],
)
def test_a_stop_word_across_tokens_ends_the_text(server, writes, vocabulary, ids, stop, text, read):
    """No token is generated after the one that completes it."""
    writes(vocabulary, ids)
    prompt = "the" if vocabulary is WORDS else "a"
    answer = server.api.completions.create(model=NAME, prompt=prompt, max_tokens=9, stop=stop)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (text, "stop")
    assert answer.usage.completion_tokens == read


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_chat_ends_before_the_next_turn_of_the_user(server, writes, stream):
    writes(BYTES, list(b" Hi.\nusers\nuser: and"))
    asked = {"model": NAME, "messages": [{"role": "user", "content": "Hello"}]}
    answer = server.api.chat.completions.create(**asked, stream=stream)
    if stream:
        *chunks, last = answer
        assert "".join(chunk.choices[0].delta.content for chunk in chunks) == " Hi.\nusers"
    else:
        (last,) = [answer]
        assert answer.choices[0].message.content == " Hi.\nusers"
    assert last.choices[0].finish_reason == "stop"


def test_the_routes_are_described(server):
    status, _, text = server.ask("GET", "/openapi.json")
    assert status == 200 and "/v1/chat/completions" in text
