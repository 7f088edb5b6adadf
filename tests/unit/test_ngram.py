"""The bigram reference."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from real_data import real

from planer.data.ngram import PRIORS, Bigram, bigram_nll
from planer.data.prepare import prepare


def sample(length, vocab_size, seed=0):
    """Tokens with bigram structure: the next is the last plus 1, or random."""
    generator = np.random.default_rng(seed)
    steps = np.where(generator.random(length) < 0.7, 1, generator.integers(0, vocab_size, length))
    return (np.cumsum(steps) % vocab_size).astype(np.uint16)


@pytest.mark.parametrize("prior", [0.1, 1.0, 300.0])
def test_probabilities_sum_to_one_for_every_context(prior):
    train = sample(400, 20)  # tokens 20 to 24 never occur
    model = Bigram(train, 25)
    context, token = np.divmod(np.arange(25 * 25), 25)
    total = model.probability(context, token, prior).reshape(25, 25).sum(1)
    np.testing.assert_allclose(total, 1, rtol=1e-12)


def test_wikitext_vocabulary_needs_no_square_table():
    vocab_size = 267_735
    train = np.array([vocab_size - 1, 5, vocab_size - 1, 5, 0], np.uint32)
    model = Bigram(train, vocab_size)
    for context in (5, vocab_size - 1, 77):
        every = np.arange(vocab_size)
        probability = model.probability(np.full(vocab_size, context), every, 2.0)
        assert math.isclose(probability.sum(), 1, rel_tol=1e-9)
    assert model.probability(np.array([vocab_size - 1]), np.array([5]), 2.0) > 0.49


def test_agrees_with_a_dictionary_of_counts():
    train, test = sample(300, 12).tolist(), sample(80, 12, seed=1).tolist()
    pairs, contexts, unigrams = Counter(itertools.pairwise(train)), Counter(train[:-1]), Counter(train)
    for prior in (0.5, 16.0):
        nll = []
        for c, w in itertools.pairwise(test):
            unigram = (unigrams[w] + 1) / (len(train) + 12)
            nll.append(-math.log((pairs[c, w] + prior * unigram) / (contexts[c] + prior)))
        ours = Bigram(np.array(train), 12).nll(np.array(test), [prior])
        assert math.isclose(ours[0], sum(nll) / len(nll), rel_tol=1e-12)


def test_smoothing_is_chosen_on_valid():
    train, valid, test = (sample(n, 30, seed) for n, seed in ((2_000, 0), (500, 1), (500, 2)))
    model = Bigram(train, 30)
    best = PRIORS[model.nll(valid, PRIORS).argmin()]
    assert bigram_nll(train, test, 30, valid) == model.nll(test, [best])[0]
    # With shuffled validation text the unigram model is best.
    shuffled = np.random.default_rng(0).permutation(valid)
    assert bigram_nll(train, test, 30, shuffled) > bigram_nll(train, test, 30, valid)


def test_nll_of_periodic_random_and_mixed_text():
    cycle = np.arange(4_000) % 50
    assert bigram_nll(cycle, cycle, 50) < 0.01
    noise = np.random.default_rng(0).integers(0, 50, 60_000)
    assert bigram_nll(noise[:50_000], noise[50_000:], 50) == pytest.approx(math.log(50), abs=0.01)
    structured = sample(20_000, 50)
    nll = bigram_nll(structured[:18_000], structured[18_000:], 50)
    # Entropy of "+1 with probability 0.7 + 0.3 / 50, else one of 49".
    step = 0.7 + 0.3 / 50
    entropy = -step * math.log(step) - (1 - step) * math.log((1 - step) / 49)
    assert entropy - 0.05 < nll < entropy + 0.15


def bits_per_byte(name, folder):
    manifest = prepare(name, folder)
    train, valid, test = (np.load(folder / f"{split}.npy") for split in ("train", "valid", "test"))
    return bigram_nll(train, test, manifest["vocab_size"], valid) / math.log(2)


def test_bits_per_byte_of_pysource(tmp_path):
    # 3.28 on CPython 3.11.7; the text differs between versions.
    assert 2.9 < bits_per_byte("pysource", tmp_path) < 4.1


def test_bits_per_byte_of_enwik8_mini(tmp_path, monkeypatch):
    monkeypatch.setenv("PLANER_DATA", str(real("enwik8-4MB").parent))
    assert bits_per_byte("enwik8-mini", tmp_path) == pytest.approx(3.9553, abs=1e-3)
