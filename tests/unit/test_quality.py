"""Quality by the two evaluation protocols."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from planer.config import DataConfig
from planer.evaluation.quality import in_unit, quality, unit_of
from planer.models import LanguageModel, initialise
from planer.runtime import Runtime
from planer.specs import Architecture, Attention, FeedForward
from planer.tasks.nll import Protocol

CPU = Runtime()
MEM_LEN = 12
FINAL = Protocol(3, 8, MEM_LEN, same_length=True)


def network(*blocks, vocab_size: int = 11) -> LanguageModel:
    model = LanguageModel(Architecture(vocab_size, 16, blocks or (Attention(2, 8), FeedForward(32)), init_std=0.3))
    initialise(model, torch.Generator().manual_seed(0))
    return model.double().eval()


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 11, 200, dtype=np.uint8)


def one_pass_per_token(model: LanguageModel, text: np.ndarray, batch: int, **options) -> float:
    """Mean nll of all tokens but the first of a stream, each from one pass over mem_len + 1 tokens."""
    length = len(text) // batch
    used = torch.from_numpy(text[: batch * length].astype(np.int64))
    total = 0.0
    for target in range(batch * length):
        if target % length:
            window = used[torch.arange(target - MEM_LEN - 1, target) % len(used)]
            hidden = model(window[None], mem_len=MEM_LEN, **options).hidden
            total += model.nll(hidden[:, -1:], used[target].view(1, 1)).item()
    return total / (batch * (length - 1))


@pytest.mark.parametrize("clamp_len", [0, 5])
def test_final_protocol_equals_one_pass_per_token(text, clamp_len):
    """With one attention block, a prediction depends on mem_len + 1 inputs only."""
    model = network()
    with torch.no_grad():
        expected = one_pass_per_token(model, text, 3, clamp_len=clamp_len)
    found = quality(model, text, dataclasses.replace(FINAL, clamp_len=clamp_len), CPU)
    assert found["nll"] == pytest.approx(expected, rel=1e-12)
    assert found["tokens"] == 3 * (66 - 1)


def test_final_protocol_does_not_depend_on_segment_length(text):
    model = network()
    found = [quality(model, text, dataclasses.replace(FINAL, tgt_len=n), CPU)["nll"] for n in (1, 5, 12, 64)]
    assert found == pytest.approx([found[0]] * 4, rel=1e-12)


def test_train_protocol_depends_on_segment_length(text):
    train = dataclasses.replace(FINAL, same_length=False)
    model = network()
    found = [quality(model, text, dataclasses.replace(train, tgt_len=n), CPU)["nll"] for n in (4, 16)]
    assert abs(found[0] - found[1]) > 1e-4


def test_a_network_of_zeros_has_uniform_probabilities(text):
    model = network()
    for parameter in (model.embedding.weight, model.head.bias):
        torch.nn.init.zeros_(parameter)
    found = quality(model, text, FINAL, CPU)
    assert found["nll"] == pytest.approx(math.log(11))
    assert found["bpc"] == pytest.approx(math.log2(11))
    assert found["ppl"] == pytest.approx(11)


def test_a_score_in_its_unit():
    found = {"nll": 2.0, "bpc": 2.9, "ppl": 7.4, "tokens": 5}
    assert in_unit(found, "bpc") == {"nll": 2.0, "bpc": 2.9, "tokens": 5}
    assert in_unit(found, "ppl") == {"nll": 2.0, "ppl": 7.4, "tokens": 5}


@pytest.mark.parametrize(
    ("dataset", "text", "tokenizer", "unit"),
    [
        ("enwik8", "", "bytes", "bpc"),
        ("text8", "", "bytes", "bpc"),
        ("wikitext-103", "", "bytes", "ppl"),
        ("", "my.txt", "bytes", "bpc"),
        ("", "my.txt", "words", "ppl"),
        ("", "my.txt", "folder/tokenizer.json", "ppl"),
    ],
)
def test_the_unit_is_bpc_for_bytes_and_ppl_for_other_tokens(dataset, text, tokenizer, unit):
    assert unit_of(DataConfig(dataset, text, tokenizer)) == unit
