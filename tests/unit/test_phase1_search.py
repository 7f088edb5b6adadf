"""Whole searches of phase 1: the trajectory, refusals and resuming."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from kill import kill_at
from safetensors import safe_open
from small_search import CONFIG, SHORT, SMALL, TEXTS, Parts, baseline, run, same, weights
from toy import MS, experiment, latency_table

from planer.config.variant import parse_variant
from planer.errors import UserError
from planer.files import write_json, write_parquet
from planer.runtime import Runtime
from planer.search.phase1 import search
from planer.search.supernet import save_supernet
from planer.training.checkpoint import Checkpoint
from planer.training.loop import Record

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    rows: list[dict] = []
    return *run(tmp_path_factory.mktemp("search"), rows), rows


def test_values_of_the_trajectory(result):
    _, trajectory, metrics, rows = result
    expected = [
        "epoch",
        "temperature",
        "expected_ms",
        "argmax_ms",
        "budget_ms",
        "entropy",
        "flips",
        "skip_share",
        "ce_weights",
        "kl_weights",
    ]
    lists = ["alpha", "updates", "expert_tokens"]
    assert list(trajectory.columns) == [*expected, *lists, "latency_loss", "beta", "beta_on", "ce_alpha", "kl_alpha"]
    assert trajectory["epoch"].tolist() == [0, 1, 2, 3, 4]
    assert trajectory["temperature"].tolist() == pytest.approx([5.0, *(5.0 * 0.7**k for k in range(4))])
    assert trajectory["ce_weights"].notna().all() and trajectory.loc[0, ["ce_alpha", "beta"]].isna().all()
    assert trajectory["ce_weights"].tolist() == pytest.approx([math.log(256)] * 5, rel=0.1)
    assert trajectory["budget_ms"].tolist() == [7.5] * 5  # half of 1 + 2 (4 + 3)
    ms = np.array([MS[name] for name in CONFIG.design_space])
    for row in trajectory.itertuples():
        probability = np.exp(row.alpha) / np.exp(row.alpha).sum(-1, keepdims=True)
        assert row.expected_ms == pytest.approx(1 + (probability @ ms).sum(), rel=1e-5)
        assert row.argmax_ms == pytest.approx(1 + ms[np.argmax(row.alpha, axis=-1)].sum())
        assert row.entropy == pytest.approx(-(probability * np.log(probability)).sum(-1).mean(), rel=1e-5)
        assert row.skip_share == pytest.approx(probability[:, 0].mean(), rel=1e-5)
    assert trajectory["expected_ms"][0] == pytest.approx(1 + 4 * ms.mean())
    live = [row for row in rows if "epoch" in row]
    assert [row["step"] for row in live] == [10, 22, 34, 46, 58] and "alpha" not in live[0]
    assert [row["ce_alpha"] for row in live[1:]] == trajectory["ce_alpha"][1:].tolist()
    assert metrics["expected_ms"] == trajectory["expected_ms"].iloc[-1] and metrics["target"] == 0.5
    lengths = [5 if segment % 44 == 43 else 8 for _, _, segment in Parts().task.plan]  # 350 tokens a stream
    assert metrics["tokens"] == 2 * sum(lengths)


def test_the_results_are_written(result, tmp_path):
    supernet, trajectory, metrics, _ = result
    write_json(tmp_path / "metrics.json", metrics)
    write_parquet(tmp_path / "trajectory.parquet", trajectory)
    assert np.stack(pd.read_parquet(tmp_path / "trajectory.parquet")["alpha"].iloc[-1]).shape == (4, 6)
    save_supernet(supernet, tmp_path / "supernet.safetensors")
    with safe_open(tmp_path / "supernet.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("alpha"), supernet.alpha)
    assert (tmp_path / "supernet.safetensors").stat().st_size < 4.2 * metrics["supernet_params"] + 2**15


def test_a_search_from_scratch_has_the_papers_supernet(tmp_path):
    """Every option has separate weights; there is no teacher and no parent."""
    supernet, trajectory, metrics = run(tmp_path, config=SHORT, scratch=True)
    assert supernet.blocks[0].owners == list(range(6)) and "kl_weights" not in trajectory
    assert metrics["supernet_params"] == sum(p.numel() for p in supernet.parameters())


def test_a_search_without_its_parent_is_refused(tmp_path):
    for changes in ({"start": "scratch"}, {"distill": 0.0}):
        config = experiment(search=SMALL | changes)
        with pytest.raises(ValueError, match="pass it as parent"):
            record = Record(Checkpoint(tmp_path, "test"))
            search(config, parse_variant("target_0.5"), latency_table(), TEXTS, Runtime(seed=7), record)


def test_a_supernet_starts_from_the_parent_or_from_random_weights(tmp_path):
    """With almost no learning rate, weights stay those of the start."""
    rate = {"optimizer": {"lr": 1e-12, "lr_min": 1e-12}}
    w2 = baseline().blocks[1].sublayer.w2.weight
    for start in ("parent", "scratch"):
        supernet = run(tmp_path / start, config=experiment(search=SMALL | rate | {"steps": 20, "start": start}))[0]
        found = supernet.blocks[1].options[CONFIG.design_space.index("feed_forward")].sublayer.w2.weight
        assert torch.allclose(found, w2, atol=1e-6) == (start == "parent")


def test_the_same_seed_gives_the_same_bits(result, tmp_path):
    supernet, trajectory, _ = run(tmp_path / "same")
    assert weights(supernet) == weights(result[0])
    same(trajectory, result[1])
    other = run(tmp_path / "other", config=SHORT, seed=8)[1]
    assert other["updates"][0] != trajectory["updates"][0]
    assert other["ce_weights"][0] != trajectory["ce_weights"][0]


def test_expert_tokens_are_counted(result):
    """Every token of a weight step counts once for top-1 and twice for top-2."""
    trajectory = result[1]
    tokens = [2 * (5 if segment % 44 == 43 else 8) for segment in range(50)]
    for epoch, row in enumerate(trajectory.itertuples()):
        counts = np.array(row.expert_tokens)
        assert counts.shape == (4, 4)
        if set(tokens[10 * epoch : 10 * epoch + 10]) == {16}:
            updates = np.array(row.updates)
            top1, top2 = (CONFIG.design_space.index(name) for name in ("moe_top1", "moe_top2"))
            assert counts.sum(1).tolist() == (16 * (updates[:, top1] + 2 * updates[:, top2])).tolist()


def test_flips_count_positions_whose_argmax_changed(result):
    before = np.zeros(4)
    for row in result[1].itertuples():
        argmax = np.argmax(row.alpha, axis=-1)
        assert row.flips == (before != argmax).sum()
        before = argmax


def test_an_unreachable_target_is_refused_before_training(tmp_path):
    with pytest.raises(UserError, match="reachable range is 0.07 to") as error:
        run(tmp_path, target=0.05)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_table_of_another_device_is_refused_before_training(tmp_path):
    with pytest.raises(UserError, match="measured with device Toy Device 3000.* but this run has"):
        record = Record(Checkpoint(tmp_path, "test"))
        search(CONFIG, parse_variant("target_0.5"), latency_table(), TEXTS, Runtime(seed=7), record, baseline())


def test_with_bfloat16_weights_alpha_and_memory_are_float32(tmp_path):
    config = dataclasses.replace(SHORT, dtype="bfloat16")
    supernet, trajectory, _ = run(tmp_path, config=config)
    assert {parameter.dtype for parameter in supernet.parameters()} == {torch.float32}
    tensors, _ = Checkpoint(tmp_path, "test").load()
    memory = [tensor for name, tensor in tensors.items() if name.startswith("loss.state.weights")]
    assert len(memory) == 4 and {tensor.dtype for tensor in memory} == {torch.float32}
    assert trajectory["ce_weights"].iloc[-1] == pytest.approx(math.log(256), rel=0.1)


class Crash(list):
    """A list of history rows that raises when the row of ``step`` is appended."""

    def __init__(self, step: int):
        self.step = step

    def append(self, row):
        if row["step"] == self.step:
            raise KeyboardInterrupt


def test_an_interrupted_search_resumes_with_the_same_bits(result, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Crash(15))
    check_resume(result, tmp_path, 14)


def test_a_killed_search_resumes_with_the_same_bits(result, tmp_path):
    kill_at(25, run, tmp_path)
    assert [group for group, _, _ in Parts().task.plan[19:23]] == ["weights", "alpha", "alpha", "weights"]
    check_resume(result, tmp_path, 21)  # between the two architecture steps


def test_the_multiplier_of_dual_ascent_survives_a_crash(tmp_path):
    config = experiment(search=SMALL | {"latency_loss": "dual"})
    expected = run(tmp_path / "whole", config=config, target=0.3)
    assert expected[1]["beta"].iloc[-1] > expected[1]["beta"].iloc[1] > 0
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "crash", Crash(40), config=config, target=0.3)
    trajectory = run(tmp_path / "crash", config=config, target=0.3)[1]
    same(trajectory, expected[1])


def check_resume(result, folder, step):
    assert Checkpoint(folder, "test").load()[1]["step"] == step
    supernet, trajectory, metrics = run(folder)
    assert weights(supernet) == weights(result[0])
    same(trajectory, result[1])
    assert metrics["tokens"] == result[2]["tokens"]
