"""The server with a converted decoder of transformers."""

from __future__ import annotations

import openai
import pytest

import planer
from planer.serving.limits import Limits
from planer.serving.server import Server

pytest.importorskip("transformers", reason="the package transformers is not installed")

from tests.serving.conftest import PATIENCE  # noqa: E402
from tests.unit.converted import thresholded  # noqa: E402
from tests.unit.tiny_pretrained import save, save_tokenizer  # noqa: E402

LONG = "the network's 32 positions; ask for fewer"
ASKED = {"model": "hf", "prompt": "the quick brown fox", "temperature": 0, "max_tokens": 9}


def test_answers_are_the_text_of_the_network_and_end_at_its_eos_token(tmp_path):
    model = thresholded("llama")
    planer.pretrained.select(model, "product", 0.5, fast=False)
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    network = planer.load(tmp_path)
    ids = network.encode(ASKED["prompt"])
    written = list(network.stream(ids, tokens=9))
    server = Server(network, "hf", Limits.of(threads=1, grace=0), port=0)
    server.start()
    try:
        api = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0, timeout=PATIENCE)
        answer = api.completions.create(**ASKED)
        assert answer.choices[0].text == network.surroundings.vocabulary.decode(written, ids)
        assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 9)
        network.model.generation_config.eos_token_id = written[5]
        ended = api.completions.create(**ASKED)
        assert ended.choices[0].finish_reason == "stop"
        assert ended.usage.completion_tokens == written.index(written[5]) < 9
    finally:
        server.stop()


def test_a_text_longer_than_the_positions_is_refused_and_defaults_fit(tmp_path, capsys):
    save("gpt2", tmp_path)
    network = planer.load(tmp_path)
    server = Server(network, "hf", Limits.of(threads=1, grace=0), port=0)
    server.start()
    try:
        api = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0, timeout=PATIENCE)
        chat = api.chat.completions.create(model="hf", messages=[{"role": "user", "content": "fox"}])
        assert chat.usage.total_tokens == network.positions == 32 and chat.choices[0].finish_reason == "length"
        for asked in (ASKED | {"max_tokens": 30}, {"model": "hf", "prompt": "fox " * 40}):
            with pytest.raises(openai.BadRequestError, match=LONG) as refused:
                api.completions.create(**asked)
            assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "prompt")
    finally:
        server.stop()
    assert "Traceback" not in capsys.readouterr().err
