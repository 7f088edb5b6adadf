"""Answers to the client of OpenAI are what the network generates."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.serving.conftest import NAME

PROMPT = "def main(argv):"


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0}, {"temperature": 0.8, "seed": 3}, {"temperature": 1.5, "top_p": 0.5, "seed": 9}],
    ids=["greedy", "sampled", "top_p"],
)
def test_a_completion_is_what_generate_writes(server, continuation, options):
    answer = server.api.completions.create(model=NAME, prompt=PROMPT, max_tokens=40, **options)
    (choice,) = answer.choices
    assert choice.text == continuation(PROMPT, tokens=40, **options) and len(choice.text) == 40
    assert (choice.index, choice.finish_reason, answer.object, answer.model) == (0, "length", "text_completion", NAME)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (15, 40, 55)


def test_defaults_are_those_of_the_api(server):
    """16 tokens, temperature 1 and another seed each time."""
    texts = [server.api.completions.create(model=NAME, prompt=[PROMPT]).choices[0].text for _ in range(2)]
    assert texts[0] != texts[1] and len(texts[0]) == 16


def test_a_streamed_completion_is_the_same(server, continuation):
    stream = server.api.completions.create(
        model=NAME, prompt=PROMPT, max_tokens=40, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last, counts = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == continuation(PROMPT, tokens=40)
    assert len(chunks) == 40 and {chunk.choices[0].finish_reason for chunk in chunks} == {None}
    assert (last.choices[0].text, last.choices[0].finish_reason) == ("", "length")
    assert counts.choices == [] and counts.usage.completion_tokens == 40
    assert len({chunk.id for chunk in [*chunks, last, counts]}) == 1


def test_a_stream_ends_with_done(server):
    body = {"model": NAME, "prompt": PROMPT, "max_tokens": 2, "stream": True}
    status, headers, text = server.ask("POST", "/v1/completions", body)
    assert status == 200 and headers["Content-Type"].startswith("text/event-stream")
    *events, done, end = text.split("\n\n")
    assert done == "data: [DONE]" and end == "" and all(event.startswith("data: {") for event in events)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_stop_word_ends_the_text_before_it(server, continuation, stream):
    """The stop word comes in several tokens; the other one does not come, though its first letters do."""
    expected = continuation(PROMPT, tokens=60)
    word, never = expected[30:34], expected[10:13] + "\x7f"
    asked = {"model": NAME, "prompt": PROMPT, "max_tokens": 60, "temperature": 0, "stop": [never, word]}
    answer = server.api.completions.create(**asked, stream=stream)
    chunks = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    assert "".join(chunk.text for chunk in chunks) == expected.partition(word)[0]
    assert chunks[-1].finish_reason == "stop"


def test_text_held_back_for_a_stop_word_comes_at_the_end(server, continuation):
    expected = continuation(PROMPT, tokens=20)
    asked = {"model": NAME, "prompt": PROMPT, "max_tokens": 20, "temperature": 0, "stop": expected[-3:] + "\x7f"}
    choice = server.api.completions.create(**asked).choices[0]
    assert (choice.text, choice.finish_reason) == (expected, "length")


MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "Bye"},
]
TEMPLATE = "system: Be brief.\nuser: Hello\nassistant: Hi\nuser: Bye\nassistant:"


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_a_chat_is_lines_of_roles(server, continuation, limit):
    answer = server.api.chat.completions.create(model=NAME, messages=MESSAGES, temperature=0, **{limit: 30})
    (choice,) = answer.choices
    assert choice.message.role == "assistant" and choice.message.content == continuation(TEMPLATE, tokens=30)
    assert answer.object == "chat.completion" and answer.usage.prompt_tokens == len(TEMPLATE)


def test_a_streamed_chat_is_the_same(server, continuation):
    stream = server.api.chat.completions.create(
        model=NAME, messages=MESSAGES, temperature=0, max_tokens=30, stream=True
    )
    first, *chunks, last = list(stream)
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == continuation(TEMPLATE, tokens=30)
    assert last.choices[0].finish_reason == "length" and last.choices[0].delta.content is None


def test_the_model_is_listed(server):
    (model,) = server.api.models.list().data
    assert (model.id, model.owned_by) == (NAME, "planer")
    assert server.api.models.retrieve(NAME) == model


def test_200_requests_of_8_clients_have_the_texts_of_generate(server, continuation):
    """Greedy and sampled, whole and streamed, short and long, with few different prompts."""
    chance = random.Random(0)
    requests = [
        {"prompt": f"{chance.choice('abc')} {chance.randrange(5)}", "max_tokens": chance.randint(1, 30)}
        | {"temperature": chance.choice((0, 1)), "seed": chance.randrange(3), "stream": chance.random() < 0.5}
        for _ in range(200)
    ]

    def answer(asked: dict) -> str:
        given = server.api.completions.create(model=NAME, **asked)
        choices = [chunk.choices[0] for chunk in given] if asked["stream"] else given.choices
        assert choices[-1].finish_reason == "length"
        return "".join(choice.text for choice in choices)

    finished, written = 'planer_generations_total{finish="length"}', "planer_generated_tokens_total"
    before = server.figures()
    with ThreadPoolExecutor(8) as clients:
        texts = list(clients.map(answer, requests))
    for asked, text in zip(requests, texts, strict=True):
        sampling = {"tokens": asked["max_tokens"], "temperature": asked["temperature"], "seed": asked["seed"]}
        assert text == continuation(asked["prompt"], **sampling)
    server.wait_for(finished, before.get(finished, 0) + 200)
    after = server.figures()
    assert after[written] - before.get(written, 0) == sum(asked["max_tokens"] for asked in requests)
    assert after["planer_requests_active"] == after["planer_requests_waiting"] == 0
