"""A smoothed bigram model: a network with a higher loss has not learnt to use context.

    p(w | c) = (n(c, w) + mu p(w)) / (n(c) + mu),     p(w) = (n(w) + 1) / (N + V)

the posterior mean under a Dirichlet prior centred on the unigram distribution (MacKay and Peto, 1995).
Only bigrams that occur are stored, since V = 267,735 words would need a large table of V x V.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Candidate prior strengths; both ends are far from what text of 10^5 to 10^8 tokens prefers.
PRIORS = tuple(2.0**power for power in range(-4, 21))


class Bigram:
    """Counts of a training text.  Tokens are one-dimensional integer arrays with values below vocab_size."""

    def __init__(self, train: np.ndarray, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._pairs, self._pair_counts = np.unique(self._keys(train[:-1], train[1:]), return_counts=True)
        self._contexts = np.bincount(train[:-1], minlength=vocab_size)
        self._unigrams = (np.bincount(train, minlength=vocab_size) + 1) / (len(train) + vocab_size)

    def probability(self, context: np.ndarray, token: np.ndarray, prior: float) -> np.ndarray:
        """p(token | context), elementwise, for prior strength mu > 0."""
        pairs, contexts = self._pair_count(self._keys(context, token)), self._contexts[context]
        return (pairs + prior * self._unigrams[token]) / (contexts + prior)

    def nll(self, text: np.ndarray, priors: Sequence[float]) -> np.ndarray:
        """Mean of -log p in nats over every token of text but the first, for each prior strength."""
        keys, repeats = np.unique(self._keys(text[:-1], text[1:]), return_counts=True)
        context, token = np.divmod(keys, self.vocab_size)
        totals = [repeats @ -np.log(self.probability(context, token, prior)) for prior in priors]
        return np.array(totals) / repeats.sum()

    def _keys(self, context: np.ndarray, token: np.ndarray) -> np.ndarray:
        return context.astype(np.int64) * self.vocab_size + token

    def _pair_count(self, keys: np.ndarray) -> np.ndarray:
        place = np.minimum(np.searchsorted(self._pairs, keys), len(self._pairs) - 1)
        return np.where(self._pairs[place] == keys, self._pair_counts[place], 0)


def bigram_nll(train: np.ndarray, test: np.ndarray, vocab_size: int, valid: np.ndarray | None = None) -> float:
    """Nats per token of test under a bigram model of train; every token of test but the first is scored.

    The prior strength is the best one for valid.  Without valid it is the best one for the last tenth of train, and the
    model then counts all of train.
    """
    if valid is None:
        held_out = len(train) // 10
        chooser, valid = Bigram(train[:-held_out], vocab_size), train[-held_out:]
        model = Bigram(train, vocab_size)
    else:
        chooser = model = Bigram(train, vocab_size)
    prior = PRIORS[chooser.nll(valid, PRIORS).argmin()]
    return float(model.nll(test, [prior])[0])
