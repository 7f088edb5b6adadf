"""Phase 1: what is trained when, on which text, at what temperature; a killed search ends with the same bits."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from kill import kill_at
from safetensors import safe_open
from toy import MS, VOCAB_SIZE, experiment, latency_table, latency_table_of_this_machine

from planer.config import SearchConfig
from planer.config.variant import parse_variant
from planer.errors import UserError
from planer.files import write_json, write_parquet
from planer.models import LanguageModel, initialise
from planer.search.latency_loss import LatencyLoss
from planer.search.phase1 import Phase1, search
from planer.search.supernet import Supernet, save_supernet
from planer.search.supernet_start import start_supernet
from planer.training.checkpoint import Checkpoint
from planer.training.loop import fit
from planer.training.parent_start import Parent

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
SMALL = {"batch": 2, "tgt_len": 8, "mem_len": 12, "steps": 50, "epoch_steps": 10, "log_steps": 5, "checkpoint_steps": 7}
CONFIG = experiment(search=SMALL)
"""5 epochs of 10 weight steps, the first one frozen, the others with 2 architecture steps each: 58 steps."""
SHORT = experiment(search=SMALL | {"steps": 20})
TOKENS = np.random.default_rng(0).integers(0, 256, 700).astype(np.uint8)
"""Random bytes, 44 segments."""


def baseline() -> LanguageModel:
    """The parent, trained little: its weights are random."""
    model = LanguageModel(CONFIG.model.architecture(VOCAB_SIZE, CONFIG.patterns.baseline))
    initialise(model, torch.Generator().manual_seed(3))
    return model


def run(folder, rows=None, config=CONFIG, target=0.5, seed=7, scratch=False):
    """A search; with ``scratch`` the paper's, which has no parent."""
    options = {"on_row": (lambda row: None) if rows is None else rows.append, "parent": None if scratch else baseline()}
    variant = dataclasses.replace(parse_variant(f"target_{target}"), scratch=scratch)
    table, checkpoint = latency_table_of_this_machine(config), Checkpoint(folder, "test")
    return search(config, variant, VOCAB_SIZE, table, TOKENS, seed=seed, checkpoint=checkpoint, **options)


def phase1(tokens=TOKENS, target=0.5, seed=7, kind=Phase1, stop_share=0.0, **changes) -> Phase1:
    """The objective alone, with a supernet of random weights."""
    settings: SearchConfig = dataclasses.replace(CONFIG.search, **changes)
    options = tuple(CONFIG.model.option(name) for name in CONFIG.design_space)
    supernet = Supernet(CONFIG.model.architecture(VOCAB_SIZE, ()), options, 4, settings.weight_sharing)
    initialise(supernet, torch.Generator().manual_seed(0))
    torch.nn.init.zeros_(supernet.alpha)
    torch.manual_seed(0)
    option_ms = [MS[name] for name in CONFIG.design_space]
    latency = LatencyLoss(option_ms, 1.0, 15.0, target, settings.latency_loss, settings.latency_weight, CPU)
    return kind(supernet.train(), latency, tokens, settings, seed=seed, stop_share=stop_share, parent=baseline())


def train(objective: Phase1, folder) -> pd.DataFrame:
    return fit(objective, log_steps=5, checkpoint_steps=1000, checkpoint=Checkpoint(folder, "test"))


def weights(supernet: LanguageModel) -> dict[str, list]:
    return {name: tensor.tolist() for name, tensor in supernet.state_dict().items()}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    rows: list[dict] = []
    return *run(tmp_path_factory.mktemp("search"), rows), rows


@pytest.mark.parametrize(
    "steps, epoch_steps, alpha_share, frozen_share",
    [
        (50, 10, 0.2, 0.1),
        (50, 10, 0.2, 0.0),
        (53, 10, 0.3, 0.25),
        (100, 0, 0.2, 0.1),
        (47, 8, 0.9, 0.5),
        (30, 7, 0.2, 0.1),
    ],
)
def test_the_plan(steps, epoch_steps, alpha_share, frozen_share):
    shares = {"alpha_share": alpha_share, "frozen_share": frozen_share}
    objective = phase1(steps=steps, epoch_steps=epoch_steps, **shares)
    length = epoch_steps or 44
    assert objective.batches.segments_per_epoch == 44
    assert [segment for turn, _, segment in objective.plan if turn == "weights"] == list(range(steps))
    assert [epoch for _, epoch, _ in objective.plan] == sorted(epoch for _, epoch, _ in objective.plan)
    for epoch in range(math.ceil(steps / length)):
        turns = [(turn, segment) for turn, e, segment in objective.plan if e == epoch]
        trained = [segment for turn, segment in turns if turn == "weights"]
        assert trained == list(range(epoch * length, min((epoch + 1) * length, steps)))
        assert [turn for turn, _ in turns[: len(trained)]] == ["weights"] * len(trained)
        stretch = [segment for turn, segment in turns if turn == "alpha"]
        frozen = epoch * length < frozen_share * steps
        assert len(stretch) == (0 if frozen else round(alpha_share * len(trained)))
        assert stretch == [stretch[0] + i for i in range(len(stretch))]
    assert objective.total_steps == len(objective.plan) == sum(turn.steps for turn in objective.turns.values())
    first_alpha = [turn for turn, _, _ in objective.plan].index("alpha")
    assert first_alpha >= frozen_share * steps


def test_stretches_for_alpha_start_at_random_places():
    starts = []
    for seed in (1, 2):
        plan = phase1(steps=400, epoch_steps=5, seed=seed).plan
        starts.append([segment for turn, _, segment in plan if turn == "alpha"])  # one step an epoch
        assert len(starts[-1]) == 72 and 0 <= min(starts[-1]) < 10 and 34 <= max(starts[-1]) < 44
        assert len(set(starts[-1])) > 25
    assert starts[0] != starts[1]


@pytest.mark.parametrize(
    "steps, epoch_steps, anneal, last", [(120_000, 2716, 0.7, 4.5e-6), (40_000, 2101, 0.6, 8.5e-4)]
)
def test_the_papers_temperatures(steps, epoch_steps, anneal, last):
    """enwik8 and WikiText-103: 5 at first, and these at the end, were there no floor."""
    objective = phase1(steps=steps, epoch_steps=epoch_steps, anneal=anneal, temperature_floor=1e-9)
    assert objective.temperature(objective.epochs - 1) == pytest.approx(last, rel=0.02)
    assert objective.turns["alpha"].steps == pytest.approx(0.2 * 0.9 * steps, rel=0.02)


def test_the_temperature_falls_to_its_floor():
    objective = phase1(steps=100, epoch_steps=5, frozen_share=0.3, temperature=5.0, anneal=0.5, temperature_floor=0.1)
    assert objective.frozen_epochs == 6
    temperatures = [objective.temperature(epoch) for epoch in range(20)]
    assert temperatures == pytest.approx([5.0] * 6 + [max(5.0 * 0.5**k, 0.1) for k in range(14)])
    assert temperatures[-1] == 0.1 and temperatures[11] == pytest.approx(0.15625)


class Watched(Phase1):
    """Notes what every step read and what it changed."""

    def __init__(self, *arguments, parent, **options):
        super().__init__(*arguments, parent=parent, **options)
        self.read: list[tuple] = []
        self.taught: list[tuple] = []
        self.changed: list[tuple[bool, bool]] = []
        self.metrics: list[dict] = []
        self.parent, self.parent_before = parent, weights(parent)
        for model, read in ((self.model, self.read), (parent, self.taught)):
            model.register_forward_hook(
                lambda _, given, keywords, outputs, read=read: read.append((*given, outputs[1])), with_kwargs=True
            )

    def loss(self, step):
        self.before = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
        self.gradients = [parameter.grad for parameter in self.weights]
        loss, metrics = super().loss(step)
        self.metrics.append({name: float(value) for name, value in metrics.items()} | {"loss": loss.item()})
        return loss, metrics

    def end_of_step(self, step):
        moved = {name for name, after in self.model.named_parameters() if not torch.equal(after, self.before[name])}
        self.changed.append(("alpha" in moved, bool(moved - {"alpha"})))
        if self.turn(step) == "alpha":  # not even computed
            assert all(now is then for now, then in zip((p.grad for p in self.weights), self.gradients, strict=True))
        return super().end_of_step(step)


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Watched:
    objective = phase1(kind=Watched)
    train(objective, tmp_path_factory.mktemp("watched"))
    return objective


def test_each_turn_changes_its_own_parameters_only(watched):
    turns = [turn for turn, _, _ in watched.plan]
    assert turns[:10] == ["weights"] * 10 and turns.count("alpha") == 8
    assert watched.changed == [(turn == "alpha", turn == "weights") for turn in turns]


def test_alpha_is_frozen_in_the_first_epochs(watched):
    assert watched.trajectory[0]["alpha"] == [[0.0] * 6] * 4
    assert all(row["alpha"] != [[0.0] * 6] * 4 for row in watched.trajectory[1:])


def test_each_turn_reads_the_text_it_follows(watched):
    """Memory is the text right before: weights carry theirs over the stretches for alpha, which start without any."""
    last = {"weights": None, "alpha": None}
    epoch_of_last_alpha = None
    for (turn, epoch, segment), (tokens, memory, after) in zip(watched.plan, watched.read, strict=True):
        assert torch.equal(tokens, watched.batches.batch_at(segment)[0])
        if turn == "alpha" and epoch != epoch_of_last_alpha:
            last["alpha"], epoch_of_last_alpha = None, epoch
        assert memory is last[turn]
        last[turn] = after
    assert last["weights"][0].shape == (2, 12, 32)


def test_teachers_read_the_text_of_their_turn(watched):
    """The parent's memory is the text right before, too."""
    last = {"weights": None, "alpha": None}
    epoch_of_last_alpha = None
    for (turn, epoch, segment), (tokens, memory, after) in zip(watched.plan, watched.taught, strict=True):
        assert torch.equal(tokens, watched.batches.batch_at(segment)[0])
        if turn == "alpha" and epoch != epoch_of_last_alpha:
            last["alpha"], epoch_of_last_alpha = None, epoch
        assert memory is last[turn]
        last[turn] = after
    assert last["weights"][0].shape == (2, 12, 32)


def test_the_parent_is_left_alone(watched):
    assert weights(watched.parent) == watched.parent_before and not watched.parent.training
    assert all(parameter.grad is None for parameter in watched.parent.parameters())


def test_the_loss_is_the_sum_of_its_parts(watched):
    for (turn, _, _), step in zip(watched.plan, watched.metrics, strict=True):
        penalty = step["beta"] * step["latency_loss"] if turn == "alpha" else 0.0
        assert step["loss"] == pytest.approx(0.5 * step[f"ce_{turn}"] + 0.5 * step[f"kl_{turn}"] + penalty)
        assert step[f"kl_{turn}"] > 0


def test_the_parts_are_what_they_say():
    """Cross-entropy of the text alone, and KL(parent || path), of the first step."""
    objective, parent = phase1(distill=0.25), baseline().eval()
    objective.model.eval()  # without dropout
    loss, metrics = objective.loss(0)
    inputs, targets = objective.batches.batch_at(0)
    with torch.no_grad():
        path, taught = (model.logits(model(inputs, mem_len=12).hidden).double() for model in (objective.model, parent))
        nll = torch.nn.functional.cross_entropy(path.flatten(0, 1), targets.flatten()).item()
        divergence = (taught.softmax(-1) * (taught.log_softmax(-1) - path.log_softmax(-1))).sum(-1).mean().item()
    assert metrics["ce_weights"].item() == pytest.approx(nll, rel=1e-5)
    assert metrics["kl_weights"].item() == pytest.approx(divergence, rel=1e-2)  # its logits are in half precision
    assert loss.item() == pytest.approx(0.75 * nll + 0.25 * divergence, rel=1e-4)


def test_a_path_that_is_the_parent_has_nothing_to_learn_from_it():
    objective, parent = phase1(distill=1.0, weight_sharing="none"), baseline()
    start_supernet(objective.model.eval(), Parent(parent, TOKENS, CONFIG.search))
    s, f = CONFIG.design_space.index("attention_2"), CONFIG.design_space.index("feed_forward")
    objective.choices = torch.tensor([[s, f, s, f]] * 10)
    for step in range(3):
        loss, metrics = objective.loss(step)
        assert loss.item() == pytest.approx(0, abs=1e-6) and metrics["ce_weights"] > 1


def test_without_a_weight_there_is_no_teacher():
    objective = phase1(distill=0.0)
    loss, metrics = objective.loss(0)
    assert not objective.teachers and list(metrics) == ["ce_weights"] and loss.item() == metrics["ce_weights"].item()


def test_rows_hold_the_means_of_their_own_epoch(watched):
    for row in watched.trajectory:
        steps = [m for (_, epoch, _), m in zip(watched.plan, watched.metrics, strict=True) if epoch == row["epoch"]]
        for name in ("ce_weights", "kl_weights", "ce_alpha", "kl_alpha", "latency_loss", "beta"):
            values = [step[name] for step in steps if name in step]
            assert (name in row) == bool(values)
            assert not values or row[name] == pytest.approx(sum(values) / len(values))


def test_epochs_sample_what_alpha_says(watched):
    """Frozen: every kind of option in turn.  Then: by chance."""
    updates = np.array([row["updates"] for row in watched.trajectory])
    assert updates.shape == (5, 4, 6) and (updates.sum(-1) == 10).all()
    kinds = np.stack([updates[..., members].sum(-1) for members in watched.model.kinds])
    assert set(kinds[0, 0]) <= {1, 2} and set(kinds[1:, 0].ravel()) <= {2, 3, 4}
    assert kinds[:, 1:].max() > 4
    for sampling in ("fair", "plain"):
        objective = phase1(sampling=sampling)
        with torch.no_grad():
            objective.model.alpha[:, 3] = 50.0
        assert (objective._choices(1) == 3).all()


def test_plain_sampling_is_uniform_while_alpha_is_frozen():
    counts = [
        torch.nn.functional.one_hot(phase1(sampling=sampling, steps=60_000, epoch_steps=6000)._choices(0), 6).sum(
            (0, 1)
        )
        for sampling in ("plain", "fair")
    ]
    assert ((counts[0] - 4000).abs() < 300).all()  # 5 standard deviations
    assert counts[1][0] < 4000 - 300  # a control: one step in seven


def test_the_trajectory(result):
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
    lengths = [5 if segment % 44 == 43 else 8 for _, _, segment in phase1().plan]  # 350 tokens a stream
    assert metrics["tokens"] == 2 * sum(lengths)


def test_the_results_can_be_written(result, tmp_path):
    supernet, trajectory, metrics, _ = result
    write_json(tmp_path / "metrics.json", metrics)
    write_parquet(tmp_path / "trajectory.parquet", trajectory)
    assert np.stack(pd.read_parquet(tmp_path / "trajectory.parquet")["alpha"].iloc[-1]).shape == (4, 6)
    save_supernet(supernet, tmp_path / "supernet.safetensors")
    with safe_open(tmp_path / "supernet.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("alpha"), supernet.alpha)
    assert (tmp_path / "supernet.safetensors").stat().st_size < 4.2 * metrics["supernet_params"] + 2**15


def test_a_search_from_scratch_has_the_papers_supernet(tmp_path):
    """Weights of its own for every option, no teacher, no parent."""
    supernet, trajectory, metrics = run(tmp_path, config=SHORT, scratch=True)
    assert supernet.blocks[0].owners == list(range(6)) and "kl_weights" not in trajectory
    assert metrics["supernet_params"] == sum(p.numel() for p in supernet.parameters())


def test_a_search_that_needs_a_parent_asks_for_it(tmp_path):
    for changes in ({"start": "scratch"}, {"distill": 0.0}):
        config = experiment(search=SMALL | changes)
        with pytest.raises(ValueError, match="pass it as parent"):
            options = {"seed": 7, "checkpoint": Checkpoint(tmp_path, "test"), "on_row": print}
            search(config, parse_variant("target_0.5"), VOCAB_SIZE, latency_table(), TOKENS, **options)


def test_a_supernet_starts_from_the_parent_or_from_random_weights(tmp_path):
    """Without a step between, the first options of the file are the parent's."""
    rate = {"optimizer": {"lr": 1e-12, "lr_min": 1e-12}}
    w2 = baseline().blocks[1].sublayer.w2.weight
    for start in ("parent", "scratch"):
        supernet = run(tmp_path / start, config=experiment(search=SMALL | rate | {"steps": 20, "start": start}))[0]
        found = supernet.blocks[1].options[CONFIG.design_space.index("feed_forward")].sublayer.w2.weight
        assert torch.allclose(found, w2, atol=1e-6) == (start == "parent")


def test_the_same_seed_is_the_same_search(result, tmp_path):
    supernet, trajectory, _ = run(tmp_path / "same")
    assert weights(supernet) == weights(result[0])
    pd.testing.assert_frame_equal(trajectory, result[1], check_exact=True)
    other = run(tmp_path / "other", config=SHORT, seed=8)[1]
    assert other["updates"][0] != trajectory["updates"][0]
    assert other["ce_weights"][0] != trajectory["ce_weights"][0]


def test_pressure_lowers_the_expected_latency(tmp_path):
    ends = []
    for weight in (30.0, 0.0):
        objective = phase1(target=0.3, latency_weight=weight, alpha_share=0.5)
        objective.turns["alpha"] = dataclasses.replace(
            objective.turns["alpha"], config=dataclasses.replace(CONFIG.search.alpha_optimizer, lr=0.1, lr_min=0.1)
        )
        train(objective, tmp_path / str(weight))
        ends.append(objective.trajectory[-1])
    start = objective.trajectory[0]["expected_ms"]
    assert ends[0]["expected_ms"] < 0.6 * start and ends[0]["beta"] > 0
    assert ends[0]["skip_share"] > 2 / 6
    assert ends[1]["expected_ms"] > 0.8 * start and ends[1]["beta"] == 0.0  # a control


def test_expert_tokens_are_counted(result):
    """Top-1 and top-2 share experts: every token of a weight step at a mixture counts once or twice."""
    trajectory = result[1]
    tokens = [2 * (5 if segment % 44 == 43 else 8) for segment in range(50)]
    for epoch, row in enumerate(trajectory.itertuples()):
        counts = np.array(row.expert_tokens)
        assert counts.shape == (4, 4)
        if set(tokens[10 * epoch : 10 * epoch + 10]) == {16}:
            updates = np.array(row.updates)
            top1, top2 = (CONFIG.design_space.index(name) for name in ("moe_top1", "moe_top2"))
            assert counts.sum(1).tolist() == (16 * (updates[:, top1] + 2 * updates[:, top2])).tolist()


def test_flips_count_positions_whose_argmax_moved(result):
    before = np.zeros(4)
    for row in result[1].itertuples():
        argmax = np.argmax(row.alpha, axis=-1)
        assert row.flips == (before != argmax).sum()
        before = argmax


def test_a_steady_argmax_ends_the_search(tmp_path):
    """PAR's stopping rule: with architecture weights that do not move, three of the four unfrozen epochs are enough."""
    objective = phase1(stop_share=0.75)
    objective.turns["alpha"] = dataclasses.replace(
        objective.turns["alpha"], config=dataclasses.replace(CONFIG.search.alpha_optimizer, lr=1e-12, lr_min=1e-12)
    )
    with torch.no_grad():
        objective.model.alpha[:, 0] = 1.0
    train(objective, tmp_path / "steady")
    assert [row["epoch"] for row in objective.trajectory] == [0, 1, 2, 3] and objective.converged
    assert objective.speed["steps"] == 46 < objective.total_steps
    moving = phase1(stop_share=0.75)
    moving.trajectory = [{"flips": flips} for flips in (0, 0, 0, 1, 0)]
    assert not moving.converged
    assert not phase1().converged


def test_an_unreachable_target_is_refused_before_training(tmp_path):
    with pytest.raises(UserError, match="reachable range is 0.07 to") as error:
        run(tmp_path, target=0.05)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_table_of_another_device_is_refused_before_training(tmp_path):
    checkpoint = Checkpoint(tmp_path, "test")
    with pytest.raises(UserError, match="measured with device Toy Device 3000.* but this run has"):
        variant, table = parse_variant("target_0.5"), latency_table()
        options = {"seed": 7, "checkpoint": checkpoint, "on_row": print, "parent": baseline()}
        search(CONFIG, variant, VOCAB_SIZE, table, TOKENS, **options)


@pytest.mark.parametrize("changes", [{"epoch_steps": 0}, {"alpha_share": 0.0}, {"epoch_steps": 2}])
def test_a_plan_that_never_trains_alpha_is_refused(changes):
    with pytest.raises(UserError, match="none of .* weight steps trains the architecture weights"):
        phase1(**{"steps": 40} | changes)


def test_bfloat16_leaves_weights_alpha_and_memory_in_float32(tmp_path):
    config = dataclasses.replace(SHORT, dtype="bfloat16")
    supernet, trajectory, _ = run(tmp_path, config=config)
    assert {parameter.dtype for parameter in supernet.parameters()} == {torch.float32}
    tensors, _ = Checkpoint(tmp_path, "test").load()
    memory = [tensor for name, tensor in tensors.items() if name.startswith("objective.memory/weights")]
    assert len(memory) == 4 and {tensor.dtype for tensor in memory} == {torch.float32}
    assert trajectory["ce_weights"].iloc[-1] == pytest.approx(math.log(256), rel=0.1)


class Crash(list):
    """History rows that raise once the row of a step is in."""

    def __init__(self, step: int):
        self.step = step

    def append(self, row):
        if row["step"] == self.step:
            raise KeyboardInterrupt


def test_an_interrupted_search_ends_with_the_same_bits(result, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Crash(15))
    check_resume(result, tmp_path, 14)


def test_sigkill_in_the_middle_costs_nothing_but_time(result, tmp_path):
    kill_at(25, run, tmp_path)
    assert [turn for turn, _, _ in phase1().plan[19:23]] == ["weights", "alpha", "alpha", "weights"]
    check_resume(result, tmp_path, 21)  # between the two


def test_the_multiplier_of_dual_ascent_survives_a_crash(tmp_path):
    config = experiment(search=SMALL | {"latency_loss": "dual"})
    expected = run(tmp_path / "whole", config=config, target=0.3)
    assert expected[1]["beta"].iloc[-1] > expected[1]["beta"].iloc[1] > 0
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "crash", Crash(40), config=config, target=0.3)
    trajectory = run(tmp_path / "crash", config=config, target=0.3)[1]
    pd.testing.assert_frame_equal(trajectory, expected[1], check_exact=True)


def check_resume(result, folder, step):
    assert Checkpoint(folder, "test").load()[1]["step"] == step
    supernet, trajectory, metrics = run(folder)
    assert weights(supernet) == weights(result[0])
    pd.testing.assert_frame_equal(trajectory, result[1], check_exact=True)
    assert metrics["tokens"] == result[2]["tokens"]
