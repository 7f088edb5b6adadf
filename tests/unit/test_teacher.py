"""Stored and computed logits of a teacher have the same bits.  A wrong file of logits is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from test_retrain import CONFIG

from planer.data.stream import StreamBatches
from planer.errors import UserError
from planer.models import LanguageModel, initialise
from planer.runtime import Runtime
from planer.specs import Architecture, Attention, FeedForward, MoE
from planer.tensors import write_tensors
from planer.training.teacher import CachedTeacher, LiveTeacher, write_cache

pytestmark = pytest.mark.slow

TEXT = np.random.default_rng(0).integers(11, size=4 * 30, dtype=np.uint8)
"""An epoch has four segments, the last one of 5 tokens."""
STEPS = 10
SHAPE = (STEPS, CONFIG.batch * CONFIG.tgt_len, 11)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    blocks = (Attention(2, 8), FeedForward(24), MoE(24, 3, 1), Attention(1, 8))
    model = LanguageModel(Architecture(11, 16, blocks, dropout=0.2, moe_dropout=0.2, init_std=0.3))
    initialise(model, torch.Generator().manual_seed(0))
    return model


@pytest.fixture(scope="module")
def cache(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "logits.safetensors"
    write_cache(path, model, TEXT, dataclasses.replace(CONFIG, steps=STEPS), Runtime())
    return path


def logits_of(teacher, steps, fresh=None) -> list[torch.Tensor]:
    batches = StreamBatches(TEXT, CONFIG.batch, CONFIG.tgt_len)
    return [teacher.logits(teacher.rows(step, batches.batch_at(step)[0], step == fresh)) for step in steps]


def test_stored_logits_equal_computed_logits(model, cache):
    """The steps are two and a half epochs, each with a shorter last segment."""
    live, cached = (
        logits_of(teacher, range(STEPS)) for teacher in (LiveTeacher(model, 12), CachedTeacher(cache, *SHAPE))
    )
    assert [len(rows) for rows in live] == [32, 32, 32, 20] * 2 + [32, 32]
    for mine, stored in zip(live, cached, strict=True):
        assert mine.dtype == stored.dtype == torch.float32 and torch.equal(mine, stored)
    assert not torch.equal(live[0], live[4]), "the memory is not reset at the end of an epoch"
    assert torch.equal(logits_of(CachedTeacher(cache, *SHAPE), [7])[0], live[7]), "steps can be read in any order"
    broken, resumed = LiveTeacher(model, 12), LiveTeacher(model, 12)
    logits_of(broken, range(5))
    resumed.restore(broken.state())
    assert all(map(torch.equal, logits_of(resumed, range(5, STEPS)), live[5:]))


def test_the_logits_are_those_of_evaluation_with_memory(model):
    batches, memory = StreamBatches(TEXT, CONFIG.batch, CONFIG.tgt_len), None
    for step, rows in enumerate(logits_of(LiveTeacher(model, 12), range(6))):
        with torch.no_grad():
            output = model.eval()(batches.batch_at(step)[0], memory, mem_len=12)
            hidden, memory = output.hidden, output.state
            exact = model.logits(hidden).flatten(0, 1)
        torch.testing.assert_close(rows, exact, rtol=2**-11, atol=1e-6)  # half precision
        assert not torch.equal(rows, exact) and not rows.requires_grad


def test_the_memory_of_a_teacher_can_be_reset(model):
    teacher = LiveTeacher(model, 12)
    first = logits_of(teacher, [0, 1])
    assert not torch.equal(logits_of(teacher, [0])[0], first[0])
    assert all(map(torch.equal, logits_of(teacher, [0, 1], fresh=0), first))


def test_equal_teachers_write_equal_files(model, cache, tmp_path):
    write_cache(tmp_path / "again", model, TEXT, dataclasses.replace(CONFIG, steps=STEPS), Runtime())
    assert (tmp_path / "again").read_bytes() == cache.read_bytes()


@pytest.mark.parametrize(("steps", "rows", "vocab_size"), [(STEPS + 1, *SHAPE[1:]), (STEPS, 31, 11), (*SHAPE[:2], 12)])
def test_logits_of_another_training_are_refused(cache, steps, rows, vocab_size):
    with pytest.raises(UserError, match="logits.safetensors.*holds logits of shape .*10, 32, 11") as error:
        CachedTeacher(cache, steps, rows, vocab_size)
    assert "\n" not in str(error.value) and f"needs {(steps, rows, vocab_size)}" in str(error.value)


@pytest.mark.parametrize(
    "tensors",
    [{"weight": torch.zeros(3)}, {"logits": torch.zeros(SHAPE)}, {"logits": torch.full(SHAPE, torch.nan).half()}],
    ids=["other name", "other type", "no numbers"],
)
def test_other_tensors_are_refused(tmp_path, tensors):
    write_tensors(tmp_path / "logits.safetensors", tensors)
    with pytest.raises(UserError, match="logits.safetensors") as error:
        CachedTeacher(tmp_path / "logits.safetensors", *SHAPE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", [3, 60, 500, -1])
def test_a_damaged_file_is_refused(cache, tmp_path, place):
    content = bytearray(cache.read_bytes())
    content[place] ^= 1
    (tmp_path / "logits.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="logits.safetensors") as error:
        CachedTeacher(tmp_path / "logits.safetensors", *SHAPE)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="logits.safetensors does not exist; put a whole copy there"):
        CachedTeacher(tmp_path / "logits.safetensors", *SHAPE)
