"""Tasks of pretrained networks, compared with transformers and PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from planer.config import LoopConfig, OptimizerConfig
from planer.data.epochs import EpochBatches
from planer.errors import UserError
from planer.runtime import Runtime
from planer.tasks.classification import LabelledTexts
from planer.tasks.make_task import check_task, make_task

transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")

from tests.unit import pretrained_networks  # noqa: E402
from tests.unit.tiny_pretrained import tiny  # noqa: E402
from tests.unit.tiny_tasks import LENGTHS, facts, save_task, tensors  # noqa: E402

ADAMW = OptimizerConfig("adamw", 1e-3, 0.0, 0, (0.9, 0.999), 1e-8, 0.0, 1.0)
FAMILIES = {"text": "gpt2", "labelled_text": "bert", "labelled_images": "vit"}


def network(kind: str):
    return pretrained_networks.network(FAMILIES[kind])


@pytest.fixture(params=FAMILIES)
def task(request, tmp_path):
    training = LoopConfig(batch=2, steps=3, optimizer=ADAMW, log_steps=1, checkpoint_steps=3)
    return make_task(save_task(request.param, tmp_path), training, Runtime(seed=7))


def test_every_sample_of_a_split_is_in_one_batch(task):
    rows = [row for batch in task.batches("valid", 2) for row in zip(*batch.values(), strict=True)]
    assert len(rows) == task.size("valid")


def test_scores_are_in_the_order_of_the_split_at_every_batch_size(task):
    model = network(task.facts.kind)
    together = task.scores(model, "valid")
    task.eval_batch = 1
    alone = task.scores(model, "valid")
    np.testing.assert_allclose(together.nll, alone.nll, rtol=1e-5)
    if together.labels is not None:
        assert together.labels.tolist() == tensors(task.facts.kind, "valid")["labels"].tolist()


def test_the_loss_equals_that_of_transformers(task):
    """Language models of transformers shift the labels themselves and get one more token."""
    model, batch = network(task.facts.kind), task.batch(0)
    ours = task.loss(model, batch, None).loss
    if task.facts.kind == "text":
        tokens = torch.cat((batch["input_ids"], batch["labels"][:, -1:]), dim=1)
        theirs = model(input_ids=tokens, labels=tokens).loss
    else:
        theirs = model(**batch).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_evaluation_has_the_headline_first_and_keeps_the_mode(task):
    model = network(task.facts.kind).train()
    measures = task.evaluate(model, "test")
    assert next(iter(measures)) == ("nll" if task.facts.kind == "text" else "accuracy")
    assert model.training


def test_real_tokens_are_those_of_the_texts(tmp_path):
    task = make_task(save_task("labelled_text", tmp_path), None, Runtime())
    counts = [count for batch in task.batches("train", 3) for count in task.real(batch).sum(1).tolist()]
    assert counts == sorted(LENGTHS["train"])


def test_padding_is_to_a_multiple_of_eight_and_changes_no_logits(tmp_path):
    task, model = make_task(save_task("labelled_text", tmp_path), None, Runtime()), network("labelled_text")
    data = tensors("labelled_text", "train")
    (batch,) = task.batches("train", 8)
    assert batch["input_ids"].shape == (8, 16)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    shortest = int(np.argmin(LENGTHS["train"]))
    begin, end = data["starts"][shortest], data["starts"][shortest + 1]
    alone = model(input_ids=data["ids"][begin:end].long()[None]).logits
    torch.testing.assert_close(logits[0], alone[0], rtol=1e-4, atol=1e-5)


def test_second_texts_of_pairs_have_type_1():
    task = LabelledTexts(
        facts("labelled_text"), {"test": tensors("labelled_text", "test", pairs=True)}, None, Runtime()
    )
    (batch,) = task.batches("test")
    assert batch["token_type_ids"].sum() == sum(LENGTHS["test"]) // 2
    assert not batch["token_type_ids"][~task.real(batch)].any()


def test_pixels_are_normalised_by_channel(tmp_path):
    task = make_task(save_task("labelled_images", tmp_path), None, Runtime())
    (batch,) = task.batches("test")
    pixels, given = batch["pixel_values"], tensors("labelled_images", "test")["pixels"]
    processor = transformers.ViTImageProcessorPil(do_resize=False, image_mean=task.facts.mean, image_std=task.facts.std)
    theirs = processor(list(given.permute(0, 2, 3, 1).numpy()), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, theirs)


def test_images_have_a_token_for_each_patch_and_one_more(tmp_path):
    task, seen = make_task(save_task("labelled_images", tmp_path), None, Runtime()), []
    model = tiny("vit")
    model.vit.layers[0].mlp.register_forward_hook(lambda module, inputs, result: seen.append(inputs[0].shape[:2]))
    (batch,) = task.batches("test")
    task.scores(model, "test")
    assert task.real(batch).shape == seen[0] and task.real(batch).all()


def test_chunks_of_logits_change_neither_loss_nor_gradients(tmp_path, monkeypatch):
    from planer.models import head

    task, model = make_task(save_task("text", tmp_path), None, Runtime()), network("text")
    (batch,) = task.batches("train", 32)

    def gradients() -> list[torch.Tensor]:
        loss = task.loss(model, batch, None).loss
        return [loss, *torch.autograd.grad(loss, list(model.parameters()))]

    whole = gradients()
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", 3 * model.config.vocab_size)
    torch.testing.assert_close(gradients(), whole, rtol=1e-4, atol=1e-5)


def test_an_epoch_has_every_sample_once_in_a_new_order():
    batches = EpochBatches(12, 3, seed=5, lengths=np.arange(12))
    epochs = [np.concatenate([batches.at(4 * epoch + i) for i in range(4)]) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()
    assert np.array_equal(EpochBatches(12, 3, seed=5, lengths=np.arange(12)).at(9), batches.at(9))


def test_samples_of_a_batch_have_similar_lengths():
    lengths = np.random.default_rng(0).permutation(64)
    batches = EpochBatches(64, 4, seed=5, lengths=lengths)
    assert all(np.ptp(lengths[batches.at(step)]) == 3 for step in range(16))


def test_too_few_samples_for_a_batch_are_refused(tmp_path):
    training = LoopConfig(batch=9, steps=1, optimizer=ADAMW, log_steps=1, checkpoint_steps=1)
    with pytest.raises(UserError, match="the training split has 8 samples, a batch 9; lower batch"):
        make_task(save_task("labelled_text", tmp_path), training, Runtime())


def test_a_batch_larger_than_the_training_split_is_refused(tmp_path):
    folder = save_task("labelled_text", tmp_path)
    check_task(folder, {"finetune": 8, "train_routers": 8})
    with pytest.raises(UserError, match="^train_routers.batch is 9, the training split has 8 samples; lower it$"):
        check_task(folder, {"finetune": 8, "train_routers": 9})


def test_a_damaged_split_is_one_line(tmp_path):
    file = save_task("text", tmp_path) / "valid.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="valid.safetensors"):
        make_task(tmp_path, None, Runtime())
    make_task(tmp_path, None, Runtime(), splits=["train"])
