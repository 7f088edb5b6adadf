"""The share of executed experts from which layers run densely."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from planer.conversion import stored
from planer.conversion.dynamic import dynamic_layers
from planer.conversion.selectors import ALL, Selector
from planer.evaluation.arms import break_even as module
from planer.kernels.cpp import build
from planer.runtime import device_name

pytest.importorskip("transformers", reason="the package transformers is not installed")

from tests.unit.converted import converted  # noqa: E402
from tests.unit.tiny_pretrained import tiny  # noqa: E402

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("slopes", "expected"),
    [((0.5, 0.5, 0.5), 1.0), ((1.2, 0.5, 0.5), 0.75), ((1.2, 2.0, 0.5), 0.5), ((0.5, 0.5, 20), 0.0)],
)
def test_the_share_is_the_largest_that_is_never_slower_than_dense(monkeypatch, slopes, expected):
    """slopes: time with all experts over the dense time, by number of tokens; times are proportional to the share."""
    left = iter(slopes)

    def made_up_times(calls, rounds, *_):
        slope = next(left)
        for call in calls.values():
            call()
        ms = [(name, 1.0 if name == "dense" else slope * float(name)) for name in calls]
        return pd.DataFrame([(name, 0, value) for name, value in ms], columns=["name", "round", "ms"])

    monkeypatch.setattr(module, "measure", made_up_times)
    model = converted("gpt2")
    assert module.break_even(model, tiny("gpt2"), CPU, 0) == expected
    assert all(layer.selector == ALL for layer in dynamic_layers(model))


@pytest.mark.skipif(not build.available(), reason="there is no C++ compiler")
def test_a_measured_share_counts_only_for_its_device_and_dtype():
    model, selector = converted("gpt2"), Selector("absolute", 0.6)
    here = {"share": 0.8, "device": device_name(CPU), "dtype": "float32"}
    for measured, saves in (
        (here, True),
        (None, False),
        (here | {"share": 0.5}, False),
        (here | {"share": 0.0}, False),
        (here | {"device": "another"}, False),
        (here | {"dtype": "bfloat16"}, False),
    ):
        description = stored.describe_experts(model, measured)
        stored.select(model, description, selector=selector.name, value=selector.value)
        assert [layer.saves_time(selector) for layer in dynamic_layers(model)] == [saves] * 2
