"""Prediction of masked tokens, compared with transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from planer.config import LoopConfig, OptimizerConfig
from planer.data.task_files import TaskFacts, write_task
from planer.errors import UserError
from planer.runtime import Runtime
from planer.tasks.make_task import check_task, make_task
from planer.tasks.masked_tokens import IGNORED, MaskedTokens, hide
from planer.training.loss import StepLoss

transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")

from tests.unit.tiny_pretrained import VOCAB, save_tokenizer, tiny  # noqa: E402
from tests.unit.tiny_tasks import BLOCK, facts, save_task, tensors  # noqa: E402

ADAMW = OptimizerConfig("adamw", 1e-3, 0.0, 0, (0.9, 0.999), 1e-8, 0.0, 1.0)
TRAINING = LoopConfig(batch=3, steps=3, optimizer=ADAMW, log_steps=1, checkpoint_steps=3)


def task(folder, seed: int = 7, accumulate: int = 1) -> MaskedTokens:
    folder = save_task("masked_tokens", folder)
    return make_task(folder, TRAINING, Runtime(seed=seed), "finetune", accumulate=accumulate)


def test_the_same_tokens_are_masked_as_in_transformers(tmp_path):
    save_tokenizer(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    special = tuple(tokenizer.all_special_ids)
    own = TaskFacts(
        "masked_tokens", "nll", special_ids=special, mask_id=tokenizer.mask_token_id, vocab_size=len(tokenizer)
    )
    blocks = torch.randint(len(tokenizer), (40, 64), generator=torch.Generator().manual_seed(1))
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    collator.generator = torch.Generator().manual_seed(5)
    inputs, labels = collator.torch_mask_tokens(blocks.clone())
    found = hide(blocks, own, torch.Generator().manual_seed(5))
    assert torch.equal(found["input_ids"], inputs) and torch.equal(found["labels"], labels)
    assert not torch.isin(blocks[labels != IGNORED], torch.tensor(special)).any()


def test_loss_and_scores_equal_those_of_transformers(tmp_path):
    own, model = task(tmp_path), tiny("bert")
    for batch in (own.batch(0), own.batch(1)):
        theirs = model(input_ids=batch["input_ids"], labels=batch["labels"]).loss
        torch.testing.assert_close(own.loss(model, batch, None).loss, theirs)
    scores = own.scores(model, "valid")
    (batch,) = own.batches("valid", 100)
    theirs = model(input_ids=batch["input_ids"], labels=batch["labels"]).loss
    assert np.average(scores.nll, weights=scores.counts) == pytest.approx(theirs.item(), rel=1e-5)
    assert own.evaluate(model, "valid")["ppl"] == pytest.approx(theirs.exp().item(), rel=1e-5)
    assert scores.counts.tolist() == (batch["labels"] != IGNORED).sum(1).tolist()


def test_masks_differ_between_steps_of_training_and_not_between_evaluations(tmp_path):
    first, again = task(tmp_path / "a"), task(tmp_path / "b", seed=8)
    epoch = first._epochs.per_epoch
    assert not torch.equal(first.batch(0)["labels"], first.batch(epoch)["labels"])
    assert torch.equal(first.batch(1)["labels"], task(tmp_path / "c").batch(1)["labels"])
    for ours, theirs in zip(first.batches("test", 2), again.batches("test", 1000), strict=False):
        assert all(torch.equal(tensor, theirs[name][: len(tensor)]) for name, tensor in ours.items())


def test_blocks_are_the_text_between_special_symbols(tmp_path):
    own = task(tmp_path)
    (batch,) = own.batches("test", 1000)
    whole = batch["input_ids"].where(batch["labels"] == IGNORED, batch["labels"])
    text = own.splits["test"]["tokens"]
    assert whole.shape == (own.size("test"), BLOCK) == (len(text) // (BLOCK - 2), BLOCK)
    assert torch.equal(whole[:, 1:-1].flatten().int(), text[: own.size("test") * (BLOCK - 2)])
    assert (whole[:, 0] == facts("masked_tokens").first_id).all()
    assert (whole[:, -1] == facts("masked_tokens").last_id).all()
    assert whole.max() < VOCAB


def test_parts_of_a_batch_are_weighted_by_masked_tokens(tmp_path):
    found, model = [], tiny("bert")
    for accumulate in (1, 3):
        model.zero_grad()
        loss, metrics = StepLoss(
            model, task(tmp_path / str(accumulate), accumulate=accumulate), [], Runtime()
        ).backward(0)
        found.append((loss, metrics["accuracy"], [weight.grad.clone() for weight in model.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)


def test_a_block_without_masked_tokens_has_no_loss(tmp_path):
    own, model = task(tmp_path), tiny("bert")
    batch = own.batch(0)
    batch["labels"][:] = IGNORED
    assert own.loss(model, batch, None).loss == 0
    assert own.score(model, batch).nll.tolist() == own.score(model, batch).counts.tolist() == [0, 0, 0]


@pytest.mark.parametrize("hidden", [0, 2])
def test_parts_without_masked_tokens_do_not_change_gradients(hidden, tmp_path):
    """Of three parts, the first has ``hidden`` tokens to predict, the others none."""
    found, model = [], tiny("bert")
    for accumulate in (1, 3):
        own = task(tmp_path / str(accumulate), accumulate=accumulate)
        batch = own.batch(0)
        batch["labels"][:] = IGNORED
        batch["labels"][0, 1 : 1 + hidden] = 7
        own.batch = lambda step, batch=batch: batch
        model.zero_grad()
        loss, metrics = StepLoss(model, own, [], Runtime()).backward(0)
        found.append((loss, metrics["accuracy"], [weight.grad.clone() for weight in model.parameters()]))
    assert (found[1][0] > 0) == (hidden > 0)
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)


def test_a_split_without_masked_tokens_is_refused(tmp_path):
    splits = {split: tensors("masked_tokens", split) for split in ("train", "valid", "test")}
    write_task(tmp_path, facts("masked_tokens"), splits, {})
    check_task(tmp_path, {"finetune": 3})
    splits["test"] = {"tokens": torch.ones(10, dtype=torch.int32)}  # a special symbol
    write_task(tmp_path, facts("masked_tokens"), splits, {})
    with pytest.raises(UserError, match="no token of the split test is hidden and predicted; give it more text"):
        check_task(tmp_path, {})
