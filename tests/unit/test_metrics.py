"""Metrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from planer.errors import UserError
from planer.tasks.metrics import METRICS, Scores, classified, join, measure

sklearn = pytest.importorskip("sklearn.metrics", reason="the package scikit-learn is not installed")


def batches(labels: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    sizes = (17, 1, 30)
    return [
        (torch.randn(n, labels, generator=generator), torch.randint(labels, (n,), generator=generator)) for n in sizes
    ]


@pytest.mark.parametrize("labels", [2, 5, 40])
def test_classification_agrees_with_scikit_learn(labels):
    """With 40 labels and 48 samples some labels are never right, never predicted or absent."""
    parts = batches(labels, labels)
    logits, truth = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    got = measure(["nll", "accuracy", "macro_f1"], join([classified(*part) for part in parts]))
    predicted, chances = logits.argmax(-1).numpy(), logits.double().softmax(-1).numpy()
    assert got["nll"] == pytest.approx(sklearn.log_loss(truth, chances, labels=range(labels)), rel=1e-6)
    assert got["accuracy"] == pytest.approx(sklearn.accuracy_score(truth, predicted))
    assert got["macro_f1"] == pytest.approx(sklearn.f1_score(truth, predicted, average="macro", zero_division=0))


def test_metrics_of_a_text_are_means_over_tokens():
    scores = Scores(nll=np.array([1.0, 3.0]), counts=np.array([30, 10]))
    assert measure(["ppl", "nll", "bpc"], scores) == pytest.approx(
        {"ppl": math.exp(1.5), "nll": 1.5, "bpc": 1.5 / math.log(2)}
    )


def test_perfect_and_wrong_predictions():
    truth = torch.tensor([0, 1, 2, 1])
    right = classified(10.0 * torch.nn.functional.one_hot(truth).float(), truth)
    wrong = classified(10.0 * torch.nn.functional.one_hot((truth + 1) % 3).float(), truth)
    assert measure(["accuracy", "macro_f1"], right) == {"accuracy": 1.0, "macro_f1": 1.0}
    assert measure(["accuracy", "macro_f1"], wrong) == {"accuracy": 0.0, "macro_f1": 0.0}
    for name in ("nll", "accuracy", "macro_f1"):
        better = measure([name], right)[name] < measure([name], wrong)[name]
        assert better == (METRICS[name].better == "lower"), name


def test_half_precision_logits_are_scored_in_single_precision():
    logits, truth = batches(5, 0)[0]
    low = classified(logits.bfloat16(), truth).nll
    assert np.allclose(low, classified(logits.bfloat16().float(), truth).nll, atol=1e-7)


def test_unknown_metrics_and_empty_scores_are_refused():
    text = Scores(np.array([1.0]), np.array([1]))
    with pytest.raises(UserError, match="metric 'f2' is unknown; allowed: nll, bpc, ppl, accuracy, macro_f1"):
        measure(["nll", "f2"], text)
    with pytest.raises(ValueError, match="accuracy needs labels"):
        measure(["accuracy"], text)
    with pytest.raises(ValueError, match="no samples"):
        measure(["nll"], Scores(np.array([]), np.array([])))
    with pytest.raises(ValueError, match="no samples with counted tokens"):
        measure(["nll"], Scores(np.array([0.0]), np.array([0.0])))
