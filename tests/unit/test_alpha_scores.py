"""Architecture weights as scores."""

from __future__ import annotations

import numpy as np
import torch

from planer.search.scorers.alpha import alpha_scores


def test_scores_are_log_probabilities_and_their_best_is_the_argmax():
    alpha = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    scores = alpha_scores(alpha)
    np.testing.assert_allclose(np.exp(scores).sum(-1), 1, rtol=1e-12)
    np.testing.assert_allclose(scores[2, 1] - scores[2, 3], (alpha[2, 1] - alpha[2, 3]).item(), rtol=1e-5)
    assert scores.argmax(-1).tolist() == alpha.argmax(-1).tolist() != [0] * 5
