"""FLOPs: the counter and the closed forms agree, and a difference is an error."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from planer.config import WorkloadConfig
from planer.evaluation.flops import checked_flops, count_flops
from planer.models import LanguageModel, initialise
from planer.specs import Architecture, Attention, FeedForward, MoE, Skip

EVERYTHING = (Attention(4, 16), FeedForward(128), Skip(), Attention(1, 16), MoE(128, 4, 1), MoE(128, 4, 2))


def network(*blocks) -> LanguageModel:
    model = LanguageModel(Architecture(50, 64, blocks))
    initialise(model, torch.Generator().manual_seed(0))
    return model.eval()


@pytest.mark.parametrize("attention", ["cached", "recompute"])
@pytest.mark.parametrize("batch, tgt_len, mem_len", [(2, 8, 24), (3, 7, 16), (1, 16, 0), (1, 4, 3)])
def test_counter_equals_closed_form(attention, batch, tgt_len, mem_len):
    """Exactly, with routing, positions, and keys and values of the memory."""
    counted, formula = checked_flops(network(*EVERYTHING), WorkloadConfig(batch, tgt_len, mem_len, attention, "eager"))
    assert counted == formula


def test_every_block_is_counted():
    workload = WorkloadConfig(2, 8, 8, "cached", "eager")
    head = count_flops(network(Skip()), workload)
    assert head == 2 * 64 * 50
    assert count_flops(network(FeedForward(128)), workload) - head == 2 * 2 * 64 * 128


def test_wrong_closed_form_is_an_error():
    model = network(*EVERYTHING)
    model.architecture = dataclasses.replace(model.architecture, blocks=(*EVERYTHING, FeedForward(128)))
    with pytest.raises(AssertionError, match="the counter sees"):
        checked_flops(model, WorkloadConfig(2, 8, 8, "cached", "eager"))
