"""Training of tiny networks, validation, and resuming."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from kill import kill_at

from planer.config import OptimizerConfig, RetrainConfig
from planer.data.stream import StreamBatches
from planer.data.texts import Texts
from planer.models import LanguageModel, initialise
from planer.runtime import Runtime
from planer.specs import Architecture, Attention, FeedForward, MoE
from planer.tasks.causal_lm import CausalLM
from planer.tasks.nll import SEGMENT_TOKENS, SEGMENTS, Protocol, mean_nll, segment_nll
from planer.training.checkpoint import Checkpoint
from planer.training.lamb import Lamb
from planer.training.loop import Record
from planer.training.recipe import Recipe
from planer.training.retrain import train
from planer.training.schedule import learning_rate
from planer.training.terms import Balance, Term

CPU, SEEDED = Runtime(), Runtime(seed=1)
OPTIMIZER = OptimizerConfig("lamb", 0.02, 0.001, 5, (0.9, 0.999), 1e-6, 0.0, 0.25)
CONFIG = RetrainConfig(
    batch=4,
    tgt_len=8,
    mem_len=12,
    steps=40,
    optimizer=OPTIMIZER,
    log_steps=10,
    checkpoint_steps=6,
    balance_weight=0.01,
    eval_steps=15,
)

pytestmark = pytest.mark.slow
ARCHITECTURE = Architecture(
    vocab_size=11,
    d_model=16,
    blocks=(Attention(2, 8), MoE(32, 4, 1), Attention(1, 8), FeedForward(32), MoE(32, 3, 2)),
    dropout=0.1,
    moe_dropout=0.2,
)
TEXT = np.random.default_rng(0).permutation(np.arange(1400) % 11).astype(np.uint8)
VALID = TEXT[::-1][:500].copy()
TEXTS = Texts(11, TEXT, VALID)


def run(folder, config=CONFIG, rows=None, texts=TEXTS, runtime=SEEDED, until=None):
    on_row = (lambda row: None) if rows is None else rows.append
    return Recipe(config, texts, runtime).train(ARCHITECTURE, Record(Checkpoint(folder, "test"), on_row, until))


def changed(**values) -> RetrainConfig:
    return dataclasses.replace(CONFIG, **values)


def weights(model) -> dict[str, list]:
    return {name: tensor.tolist() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run(tmp_path_factory.mktemp("retrain"))


def test_training_equals_a_plain_loop(result):
    """Segments in order, memory across epochs, clipping, LAMB, cosine schedule."""
    model = LanguageModel(ARCHITECTURE)
    initialise(model, Runtime(seed=1).generator("retrain", "initialisation"))
    torch.manual_seed(Runtime(seed=1).derive("retrain", "dropout"))
    optimizer = Lamb(model.parameters(), lr=1.0)
    batches = StreamBatches(TEXT, 4, 8)
    assert batches.segments_per_epoch == 44 and CONFIG.steps == 40
    memory, losses = None, []
    for step in range(40):
        inputs, targets = batches.batch_at(step)
        output = model(inputs, memory, mem_len=12, wants=("balance",))
        balance, memory = [aux["balance"] for aux in output.aux if aux], output.state
        loss = model.nll(output.hidden, targets).mean() + 0.01 * (balance[0] + balance[1]) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.param_groups[0]["lr"] = learning_rate(step + 1, OPTIMIZER, 40)
        optimizer.step()
        losses.append(loss.item())
    assert weights(model) == weights(result[0])
    logged = result[1]["loss"].dropna().tolist()
    assert logged == pytest.approx([sum(losses[i : i + 10]) / 10 for i in range(0, 40, 10)])


def test_memory_continues_across_epochs(tmp_path):
    seen = []

    class Recording(LanguageModel):
        def forward(self, tokens, state=None, score=None, **reading):
            if self.training:
                seen.append((tokens.shape[1], None if state is None else state[0].shape[1]))
            return super().forward(tokens, state, score, **reading)

    model = Recording(ARCHITECTURE)
    initialise(model, torch.Generator().manual_seed(0))
    config = changed(steps=12, eval_steps=100)
    task = CausalLM(Texts(11, TEXT[: 4 * 30], VALID), config, Runtime())
    _, metrics = train(model, task, [], Runtime(), Record(Checkpoint(tmp_path, "x")))
    assert seen == [(8, None), (8, 8), (8, 12), (5, 12)] + [(8, 12), (8, 12), (8, 12), (5, 12)] * 2
    assert metrics["tokens"] == 4 * 29 * 3


def test_values_of_history_and_metrics(result):
    model, history, metrics = result
    assert history["step"].tolist() == [10, 15, 20, 30, 40]
    for block, experts in ((1, 4), (4, 3)):
        shares = history[[f"load_{block}_{expert}" for expert in range(experts)]].dropna()
        assert len(shares) == 4 and shares.sum(axis=1).tolist() == pytest.approx([1.0] * 4)
    logged = history.dropna(subset="loss")
    assert logged["loss"].tolist() == pytest.approx((logged["nll"] + 0.01 * logged["balance"]).tolist())
    assert history.loc[history["valid_nll"].notna(), "step"].tolist() == [15, 30, 40]
    assert not model.training
    assert metrics["params"] == sum(param.numel() for param in model.parameters())
    assert metrics["active_params"] < metrics["params"]
    assert metrics["tokens"] == 40 * 4 * 8 and metrics["steps"] == 40
    assert metrics["valid_nll"] == history["valid_nll"].iloc[-1]  # the text is shorter than VALID_TOKENS
    assert metrics["valid_bpc"] == pytest.approx(metrics["valid_nll"] / math.log(2))
    assert metrics["tokens_per_second"] == metrics["tokens"] / metrics["seconds"]


def test_validation_and_logging_do_not_change_the_training(result, tmp_path):
    model, history, _ = run(tmp_path, changed(eval_steps=1, log_steps=3, checkpoint_steps=1000))
    assert weights(model) == weights(result[0])
    assert history["valid_nll"].notna().sum() == 40


def test_another_seed_gives_another_network(result, tmp_path):
    assert weights(run(tmp_path, runtime=Runtime(seed=2))[0]) != weights(result[0])


@pytest.mark.parametrize("name, lr", [("lamb", 0.05), ("adamw", 0.01)])
def test_a_periodic_text_is_learned(tmp_path, name, lr):
    text = (np.arange(4000) % 11).astype(np.uint8)
    config = changed(steps=100, optimizer=dataclasses.replace(OPTIMIZER, name=name, lr=lr))
    metrics = run(tmp_path, config, texts=Texts(11, text, text[:500]))[2]
    assert metrics["valid_nll"] < 0.1 * math.log(11)  # log(11) without learning


def test_a_term_adds_to_the_loss_and_to_the_history(result, tmp_path):
    class Shrinking(Term):
        def __call__(self, result, batch, step):
            assert result.counted == batch.targets.numel()
            size = model.embedding.weight.square().sum()
            return 10.0 * size, {"size": size}

    model = LanguageModel(ARCHITECTURE)
    model.load_state_dict(result[0].state_dict())
    before = model.embedding.weight.norm().item()
    task, terms = CausalLM(TEXTS, CONFIG, Runtime(), CONFIG.steps, "shrink"), [Balance(0.01), Shrinking()]
    history, metrics = train(model, task, terms, Runtime(), Record(Checkpoint(tmp_path, "x")))
    assert model.embedding.weight.norm().item() < 0.8 * before
    logged = history.dropna(subset="loss")
    expected = logged["nll"] + 0.01 * logged["balance"] + 10 * logged["size"]
    assert logged["loss"].tolist() == pytest.approx(expected.tolist())
    assert history["valid_nll"].notna().sum() == 1


def test_bfloat16_keeps_weights_in_float32(tmp_path):
    config = changed(steps=5, checkpoint_steps=2)
    model, history, _ = run(tmp_path, config, runtime=Runtime(dtype=torch.bfloat16, seed=1))
    assert {param.dtype for param in model.parameters()} == {torch.float32}
    single = run(tmp_path / "single", config)[1]
    assert history["loss"].iloc[0] == pytest.approx(single["loss"].iloc[0], rel=0.02)
    assert history["loss"].iloc[0] != single["loss"].iloc[0]


@pytest.fixture(scope="module")
def sharp():
    """A network with large weights, so that attention matters, in double precision, so that no routing is a tie."""
    model = LanguageModel(dataclasses.replace(ARCHITECTURE, init_std=0.5)).double()
    initialise(model, torch.Generator().manual_seed(4))
    return model.eval()


def test_the_loss_of_one_segment_is_the_mean(sharp):
    text = torch.from_numpy(TEXT[:200].astype(np.int64))[None]
    with torch.no_grad():
        hidden = sharp(text[:, :-1], mem_len=0).hidden
        expected = sharp.nll(hidden, text[:, 1:]).mean().item()
    nll, counted = mean_nll(sharp, TEXT[:200], Protocol(1, 300, 0), CPU)
    assert counted == 199 and nll == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("attention", ["cached", "recompute"])
def test_with_same_length_the_segmentation_does_not_change_the_loss(sharp, attention):
    expected, counted = mean_nll(sharp, VALID, Protocol(2, 24, 24, 10, True), CPU, attention)
    assert counted == 498
    for tgt_len in (4, 12):
        found, _ = mean_nll(sharp, VALID, Protocol(2, tgt_len, 24, 10, True), CPU, attention)
        assert found == pytest.approx(expected, rel=1e-10)
    for other in ((2, 4, 24, 10, False), (2, 4, 24, 0, True), (2, 4, 20, 10, True)):
        assert mean_nll(sharp, VALID, Protocol(*other), CPU, attention)[0] != pytest.approx(expected, rel=1e-4)


def test_the_loss_with_cached_attention_equals_recomputed(sharp):
    cached, recomputed = (mean_nll(sharp, VALID, Protocol(4, 8, 12), CPU, a) for a in ("cached", "recompute"))
    assert cached[0] == pytest.approx(recomputed[0], rel=1e-10)


def test_segments_are_contiguous_and_their_mean_is_the_loss(sharp):
    """The segments of two streams."""
    streams = torch.from_numpy(VALID[:400].astype(np.int64)).view(2, 200)
    with torch.no_grad():
        each = sharp.nll(sharp(streams[:, :-1], mem_len=0).hidden, streams[:, 1:]).flatten()
    nll, counts = segment_nll(sharp, VALID[:400], Protocol(2, 300, 0), CPU)
    assert counts.tolist() == [67, 67, 66, 66, 66, 66] and nll.dtype == torch.float64
    parts = each.split(counts.tolist())
    assert nll.tolist() == pytest.approx([part.mean().item() for part in parts], rel=1e-10)
    whole, counted = mean_nll(sharp, VALID[:400], Protocol(2, 300, 0), CPU)
    assert counted == 398 and whole == pytest.approx(each.mean().item(), rel=1e-10)


def test_tgt_len_does_not_change_the_segments(sharp):
    expected, counts = segment_nll(sharp, VALID, Protocol(2, 24, 24, 10, True), CPU)
    assert len(counts) == 498 // SEGMENT_TOKENS and int(counts.sum()) == 498
    nll, again = segment_nll(sharp, VALID, Protocol(2, 4, 24, 10, True), CPU)
    assert again.tolist() == counts.tolist() and nll.tolist() == pytest.approx(expected.tolist(), rel=1e-10)


def test_numbers_of_segments_of_long_and_short_texts(sharp):
    long = np.tile(TEXT, 1 + SEGMENTS * SEGMENT_TOKENS // len(TEXT) * 2)
    assert len(segment_nll(sharp, long, Protocol(16, 64, 0), CPU)[1]) == SEGMENTS
    assert segment_nll(sharp, VALID[:40], Protocol(2, 8, 0), CPU)[1].tolist() == [38]


def test_validation_restores_training_mode(result):
    model = result[0].train()
    mean_nll(model, VALID, Protocol(4, 8, 12), CPU)
    assert model.training
    model.eval()


def test_a_killed_training_resumes_with_the_same_bits(result, tmp_path, capsys):
    kill_at(20, run, tmp_path)
    assert Checkpoint(tmp_path, "test").load()[1]["step"] == 18
    model, history, metrics = run(tmp_path)
    assert "retrain: resuming at step 18/40" in capsys.readouterr().err
    assert weights(model) == weights(result[0])
    pd.testing.assert_frame_equal(history, result[1], check_exact=True)
    assert metrics["valid_nll"] == result[2]["valid_nll"] and metrics["tokens"] == result[2]["tokens"]


@pytest.mark.parametrize("until", [1, 7, 15, 40])
def test_a_stopped_training_resumes_with_the_same_bits(result, tmp_path, until):
    """Only the end has a whole validation."""
    model, history, metrics = run(tmp_path, until=until)
    assert not model.training and metrics["steps"] == until == Checkpoint(tmp_path, "test").load()[1]["step"]
    assert ("valid_nll" in metrics) == (until == 40)
    model, history, metrics = run(tmp_path)
    assert weights(model) == weights(result[0])
    pd.testing.assert_frame_equal(history, result[1], check_exact=True)
    assert metrics["valid_nll"] == result[2]["valid_nll"] and metrics["tokens"] == result[2]["tokens"]
