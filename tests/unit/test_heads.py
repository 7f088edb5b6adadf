"""Heads: probabilities, parameters, FLOPs, files, and training."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from real_data import real
from toy import experiment

import planer.heads
from planer.config import WorkloadConfig
from planer.data.texts import Texts
from planer.errors import UserError
from planer.evaluation.flops import checked_flops
from planer.evaluation.quality import from_nll
from planer.heads import AdaptiveSoftmax, HeadSpec, Softmax
from planer.heads.head import heads
from planer.heads.sparse_softmax import SparseSoftmax
from planer.latency.networks import random_tokens
from planer.models import LanguageModel, head, initialise, load, save
from planer.parsing import merge
from planer.runtime import Runtime
from planer.specs import Architecture, Attention, FeedForward
from planer.tasks.nll import Protocol, mean_nll
from planer.training.checkpoint import Checkpoint
from planer.training.loop import Record
from planer.training.recipe import Recipe, Student
from planer.training.teacher import write_cache

CPU = torch.device("cpu")
WT103 = (19_997, 39_997, 199_997)
BLOCKS = (Attention(2, 8), FeedForward(32))
WORDS, CUTOFFS = 60, (20, 30, 50)
HEADS = [Softmax(), AdaptiveSoftmax(CUTOFFS, 1), AdaptiveSoftmax(CUTOFFS, 2), SparseSoftmax(4)]


def network(spec: HeadSpec, **more) -> LanguageModel:
    model = LanguageModel(Architecture(WORDS, 16, BLOCKS, init_std=0.3, dropout=0.0, head=spec, **more))
    initialise(model, torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model.head.bias, generator=torch.Generator().manual_seed(2))
    return model


def hidden_and_words(count: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, count, 16, generator=generator), torch.randint(WORDS, (2, count), generator=generator)


def slow_nll(model: LanguageModel, h: torch.Tensor, word: int) -> float:
    """The loss of one token by the formulas, in double precision."""
    spec, own = model.head.spec, {name: tensor.double() for name, tensor in model.state_dict().items()}
    bounds = list(pairwise((0, *spec.cutoffs, WORDS)))

    def row(index: int, cluster: int) -> torch.Tensor:
        """The output vector of a word: its logit is the product with h, plus bias."""
        if spec.div_val == 1:
            return own["embedding.weight"][index]
        projection = own[f"embedding.projection_{cluster}"] if cluster else own["head.projection"]
        return projection @ own[f"embedding.table_{cluster}"][index - bounds[cluster][0]]

    def logits(cluster: int) -> list[torch.Tensor]:
        return [h @ row(index, cluster) + own["head.bias"][index] for index in range(*bounds[cluster])]

    (cluster,) = (number for number, (start, stop) in enumerate(bounds) if start <= word < stop)
    of_clusters = own["head.cluster_weight"]
    if spec.div_val > 1:
        of_clusters = of_clusters @ own["head.projection"].T
    shortlist = torch.stack([*logits(0), *(of_clusters @ h + own["head.cluster_bias"])]).log_softmax(0)
    if cluster == 0:
        return -shortlist[word].item()
    inside = torch.stack(logits(cluster)).log_softmax(0)
    return -(shortlist[len(shortlist) - cluster] + inside[word - bounds[cluster][0]]).item()


@pytest.mark.parametrize("spec", HEADS, ids=lambda spec: spec.label)
class TestEveryHead:
    def test_probabilities_sum_to_one_and_agree_with_the_loss(self, spec):
        model, (hidden, words) = network(spec), hidden_and_words()
        log_probs = model.log_probs(hidden)
        torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 50))
        torch.testing.assert_close(model.logits(hidden).log_softmax(-1), log_probs)
        torch.testing.assert_close(model.nll(hidden, words), -log_probs.gather(-1, words[..., None])[..., 0])
        with torch.inference_mode():
            torch.testing.assert_close(model.log_probs(hidden), log_probs)

    def test_chunks_change_neither_values_nor_gradients(self, spec, monkeypatch):
        model, (hidden, words) = network(spec), hidden_and_words()
        results = []
        for at_once in (2**26, 3 * WORDS):
            monkeypatch.setattr(head, "LOGITS_AT_ONCE", at_once)
            model.zero_grad()
            nll = model.nll(hidden.requires_grad_(), words)
            nll.sum().backward()
            fixed = [*model.head.parameters(), *model.embedding.parameters()]
            results.append([nll, hidden.grad, *(p.grad for p in fixed if p.grad is not None)])
            hidden.grad = None
            with torch.inference_mode():
                torch.testing.assert_close(model.nll(hidden, words), nll)
        for whole, chunked in zip(*results, strict=True):
            torch.testing.assert_close(chunked, whole)

    def test_every_weight_gets_a_gradient_for_any_words(self, spec):
        """LAMB skips weights without a gradient, and with them the decay of their moments."""
        model = network(spec)
        tokens = torch.zeros(2, 5, dtype=torch.int64)
        hidden = model(tokens, mem_len=0).hidden
        model.nll(hidden, tokens).sum().backward()
        assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]

    @pytest.mark.parametrize("norm", ["post", "pre"])
    def test_parameters_are_counted(self, spec, norm):
        model = network(spec, norm=norm)
        assert sum(parameter.numel() for parameter in model.parameters()) == model.architecture.params()

    def test_flops_are_counted(self, spec):
        workload = WorkloadConfig(2, 8, 8, "cached", "eager")
        counted, formula = checked_flops(network(spec).eval(), workload)
        assert counted == pytest.approx(formula, rel=1e-9)

    def test_a_saved_network_is_loaded_with_the_same_bits(self, spec, tmp_path):
        model, (_, words) = network(spec).eval(), hidden_and_words()
        save(model, tmp_path)
        copied = load(tmp_path)
        assert copied.architecture == model.architecture
        with torch.inference_mode():
            nll = [one.nll(one(words, mem_len=0).hidden, words) for one in (model, copied)]
        assert torch.equal(*nll)

    def test_the_tied_weights_are_stored_once(self, spec):
        assert (
            sum(tensor.numel() for tensor in network(spec).state_dict().values()) == network(spec).architecture.params()
        )

    def test_the_loss_of_a_bfloat16_model_is_single_precision(self, spec):
        model, words = network(spec).bfloat16().eval(), hidden_and_words()[1]
        hidden = model(words, mem_len=0).hidden
        assert hidden.dtype == torch.bfloat16 and model.nll(hidden, words).dtype == torch.float32

    def test_the_configuration_survives_a_round_trip(self, spec):
        assert HeadSpec.from_values(spec.to_dict(), "model.head") == spec
        assert experiment(model={"head": spec.to_dict()}).model.architecture(WORDS, "sf").head == spec


@pytest.mark.parametrize("spec", HEADS[1:3], ids=lambda spec: spec.label)
def test_the_adaptive_softmax_equals_a_slow_reference(spec):
    model, (hidden, words) = network(spec), hidden_and_words()
    nll = model.nll(hidden, words)
    rows = zip(hidden.flatten(0, 1).double(), words.flatten().tolist(), strict=True)
    torch.testing.assert_close(nll.flatten(), torch.tensor([slow_nll(model, h, word) for h, word in rows]))


@pytest.mark.parametrize("count", [1, 20])
def test_the_sparse_softmax_equals_a_slow_reference(count):
    """With fewer and with more rows than the 15 words of a module."""
    model, hidden = network(SparseSoftmax(4)), hidden_and_words(count)[0][:1]
    scales, shared, bias = model.head.scales, model.head.shared, model.head.bias
    for h, logits in zip(hidden[0], model.logits(hidden)[0], strict=True):
        expected = [(h * scales[word // 15] * shared[:, word % 15]).sum() + bias[word] for word in range(WORDS)]
        torch.testing.assert_close(logits, torch.stack(expected))


def test_parameters_and_initialisation_of_the_sparse_softmax():
    assert SparseSoftmax(4).params(32_000, 1024) == 32_000 * 1024 + 4 * 1024 + 1024 * 8_000 + 32_000
    with pytest.raises(UserError, match="model.head.modules: 7 must divide the number of symbols, 60"):
        experiment(model={"head": {"kind": "sparse_softmax", "modules": 7}}).model.architecture(WORDS, "sf")
    model = LanguageModel(Architecture(400, 64, (FeedForward(8),), init_std=0.1, head=SparseSoftmax(4)))
    initialise(model, torch.Generator().manual_seed(0))
    assert model.head.scales.std().item() == pytest.approx(0.5, rel=0.1)
    assert 0.98 < model.head.shared.abs().max().item() / math.sqrt(6 / 164) <= 1
    assert model.embedding.weight.std().item() == pytest.approx(0.1, rel=0.1) and not model.head.bias.any()


def test_the_adaptive_embedding_projects_each_table():
    model = network(HEADS[2])
    tokens = torch.tensor([[0, 19, 20, 29, 30, 49, 50, 59]])
    own, starts = model.embedding, (0, *CUTOFFS)
    for token, vector in zip(tokens[0].tolist(), model.embed(tokens)[0], strict=True):
        cluster = sum(token >= start for start in starts) - 1
        expected = own.projection(cluster) @ own.table(cluster)[token - starts[cluster]] * 4.0
        torch.testing.assert_close(vector, expected)


def test_initialisation_of_the_adaptive_softmax():
    model = LanguageModel(Architecture(WORDS, 64, (FeedForward(8),), init_std=0.1, head=AdaptiveSoftmax(CUTOFFS, 2)))
    initialise(model, torch.Generator().manual_seed(0))
    assert model.embedding.projection(0).std().item() == pytest.approx(0.01, rel=0.1)
    assert model.head.projection.std().item() == pytest.approx(0.01, rel=0.1)
    assert model.embedding.table(0).std().item() == pytest.approx(0.1, rel=0.1)
    assert not model.head.bias.any() and not model.head.cluster_bias.any()


def test_parameters_and_flops_of_transformer_xl_on_wikitext_103():
    """191,950,298 parameters with u and v shared over the 16 layers; here each layer has its own 2 * 8 * 64."""
    blocks = (Attention(8, 64), FeedForward(2048)) * 16
    base = Architecture(267_735, 512, blocks, head=AdaptiveSoftmax(WT103, 1))
    assert base.params() == 191_950_298 + 15 * 1024
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in LanguageModel(base).parameters()) == base.params()
    assert base.head.flops(267_735, 512) == pytest.approx(20.5e6 + 6e6, rel=0.05)


def test_cluster_shares_of_wikitext_103():
    """5 to 6 % of the text is beyond the shortlist."""
    clusters = AdaptiveSoftmax(WT103, 1).clusters(267_735)
    assert [cluster.size for cluster in clusters] == [19_997, 20_000, 160_000, 67_738]
    assert sum(cluster.share for cluster in clusters) == pytest.approx(1)
    assert [cluster.share for cluster in clusters] == pytest.approx([0.945, 0.024, 0.028, 0.003], abs=0.002)


def test_tables_of_the_large_network():
    spec = AdaptiveSoftmax(WT103, 4)
    tables = spec.tables(267_735, 1024)
    assert tables == ((19_997, 1024), (20_000, 256), (160_000, 64), (67_738, 16))
    words = sum(math.prod(table) for table in tables)
    projections = 1024 * (1024 + 1024 + 256 + 64 + 16)  # the first is that of the head
    assert spec.params(267_735, 1024) == words + projections + 267_735 + 3 * 1024 + 3


def test_random_tokens_have_the_shares_of_a_text():
    """Rare words take longer, and with uniform sampling most words would be rare."""
    architecture = network(HEADS[1]).architecture
    tokens = random_tokens(architecture, WorkloadConfig(50, 99, 0, "cached", "eager"), seed=0)
    found = torch.bucketize(tokens, torch.tensor(CUTOFFS), right=True).flatten().bincount() / tokens.numel()
    assert found.tolist() == pytest.approx([cluster.share for cluster in HEADS[1].clusters(WORDS)], abs=0.02)


@pytest.mark.parametrize(
    "values, message",
    [
        (
            {"kind": "flat"},
            "model.head.kind is 'flat'; allowed: {kind: adaptive_softmax}, {kind: softmax}",
        ),
        ({"kind": ["softmax"]}, "model.head.kind is ['softmax']; allowed: "),
        ("softmax", "model.head is 'softmax'; allowed: {kind: adaptive_softmax}, {kind: softmax}"),
        ({"kind": "softmax", "div_val": 2}, "unknown key model.head.div_val; there are no options: leave it out"),
        ({"kind": "adaptive_softmax", "div_val": 1}, "model.head.cutoffs is missing"),
        (
            {"kind": "adaptive_softmax", "div_val": 0, "cutoffs": [5]},
            "model.head.div_val is 0; it must be from 1 to 64",
        ),
        ({"kind": "adaptive_softmax", "div_val": 1, "cutoffs": [7, 5]}, r"cutoffs: [7, 5] must be in rising order"),
        ({"kind": "adaptive_softmax", "div_val": 1, "cutoffs": []}, "it must list 1 to 10 values, each once"),
    ],
)
def test_a_wrong_head_is_one_line(values, message):
    with pytest.raises(UserError) as error:
        HeadSpec.from_values(values, "model.head")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_head_of_another_kind_drops_earlier_options():
    adaptive = {"kind": "adaptive_softmax", "cutoffs": [20], "div_val": 1}
    layers = [{"head": adaptive}, {"head": {"cutoffs": [30]}}, {"head": {"kind": "softmax"}}]
    assert merge(*layers[:2]) == {"head": adaptive | {"cutoffs": [30]}}
    assert merge(*layers) == {"head": {"kind": "softmax"}}


@pytest.mark.parametrize(
    "cutoffs, div_val, message",
    [([20, 60], 1, "cutoffs: 60 must be below the number of symbols, 60"), ([20, 30], 8, "div_val: 8 leaves the last")],
)
def test_a_head_that_does_not_fit_is_one_line(cutoffs, div_val, message, tmp_path):
    config = experiment(model={"head": {"kind": "adaptive_softmax", "cutoffs": cutoffs, "div_val": div_val}})
    with pytest.raises(UserError, match=message):
        config.model.architecture(WORDS, "sf")
    model = network(AdaptiveSoftmax((20,), 1))
    wrong = AdaptiveSoftmax(tuple(cutoffs), div_val)
    dataclasses.replace(model.architecture, d_model=32, head=wrong).save(tmp_path / "architecture.yaml")
    with pytest.raises(UserError, match=f"describes no architecture: model.head.{message}"):
        Architecture.load(tmp_path / "architecture.yaml")


def test_a_graph_of_an_adaptive_softmax_is_refused_before_work_starts():
    adaptive = {"kind": "adaptive_softmax", "cutoffs": [20], "div_val": 1}
    with pytest.raises(UserError, match="workload.execution: graph cannot capture model.head adaptive_softmax"):
        experiment(model={"head": adaptive}, workload={"execution": "graph"})
    with pytest.raises(UserError, match="profile_blocks.executions: graph cannot capture"):
        experiment(model={"head": adaptive}, profile_blocks={"executions": ["graph"]})


NEW_HEAD = '''
from dataclasses import dataclass
from typing import ClassVar

from planer.heads.softmax import Softmax


@dataclass(frozen=True)
class Sharp(Softmax):
    """A softmax with a temperature."""

    temperature: float
    kind: ClassVar[str] = "sharp"

    def logits(self, head, hidden):
        return super().logits(head, hidden) / self.temperature
'''


def test_one_file_adds_a_head(tmp_path, monkeypatch):
    (tmp_path / "sharp.py").write_text(NEW_HEAD)
    monkeypatch.setattr(planer.heads, "__path__", [*planer.heads.__path__, str(tmp_path)])
    heads.cache_clear()
    try:
        spec = HeadSpec.from_values({"kind": "sharp", "temperature": 0.5}, "model.head")
        model, plain, (hidden, words) = network(spec), network(Softmax()), hidden_and_words()
        torch.testing.assert_close(model.logits(hidden), 2 * plain.logits(hidden))
        torch.testing.assert_close(
            model.nll(hidden, words).exp(), 1 / model.log_probs(hidden).exp().gather(-1, words[..., None])[..., 0]
        )
    finally:
        heads.cache_clear()


@pytest.fixture(scope="module")
def text() -> tuple[np.ndarray, np.ndarray, int]:
    """Training text, validation text, and the number of words; rare words are <unk>."""
    files = [real(f"wikitext-103-{split}.tokens") for split in ("test", "valid")]
    splits = [[w for line in file.open() for w in (*line.split(), "<eos>")][:60_000] for file in files]
    counts = Counter(splits[0])
    words = {word: number for number, (word, count) in enumerate(counts.most_common()) if count > 2}
    train, valid = (np.array([words.get(w, words["<unk>"]) for w in split], np.uint16) for split in splits)
    return train, valid[:10_000], len(words)


@pytest.fixture(scope="module")
def config():
    adamw = {"name": "adamw", "lr": 0.01, "lr_min": 0.001, "clip": 1.0}
    head = {"kind": "adaptive_softmax", "cutoffs": [400, 1200], "div_val": 2}
    return experiment(model={"head": head}, retrain={"batch": 8, "steps": 60, "optimizer": adamw}, distill={"batch": 8})


@pytest.fixture(scope="module")
def baseline(text, config, tmp_path_factory):
    """A trained network, its history, and its metrics."""
    train, valid, words = text
    recipe = Recipe(config.retrain, Texts(words, train, valid), Runtime(seed=1))
    record = Record(Checkpoint(tmp_path_factory.mktemp("baseline"), "baseline"))
    return recipe.train(config.model.architecture(words, config.patterns.baseline), record)


def test_a_network_of_words_learns_the_frequencies_of_words(text, baseline):
    (train, valid, words), (_, history, metrics) = text, baseline
    frequencies = (np.bincount(train, minlength=words) + 1) / (len(train) + words)
    assert history["nll"].iloc[0] > 6.5
    assert metrics["valid_nll"] < 1.02 * -np.log(frequencies[valid]).mean()


def test_the_loss_of_a_text_equals_its_log_probabilities(text, baseline, config):
    model, _, metrics = baseline
    (_, valid, _), protocol = text, Protocol(16, config.retrain.tgt_len, config.retrain.mem_len)
    nll, tokens = mean_nll(model, valid, protocol, Runtime())
    assert from_nll(nll, tokens)["ppl"] == pytest.approx(math.exp(metrics["valid_nll"]))
    inputs = torch.from_numpy(valid[:65].astype(np.int64))[None]
    with torch.inference_mode():
        hidden = model(inputs[:, :-1], mem_len=64).hidden
        expected = -model.log_probs(hidden).gather(-1, inputs[:, 1:, None])[..., 0]
        torch.testing.assert_close(model.nll(hidden, inputs[:, 1:]), expected)


def test_a_student_learns_from_an_adaptive_softmax(text, baseline, config, tmp_path):
    """Equally from a live teacher and from its logits on disk."""
    (train, valid, words), stage = text, config.distill
    smaller = config.model.architecture(words, "sff")
    histories = []
    write_cache(tmp_path / "logits.safetensors", baseline[0], train, stage, Runtime())
    for cache in (None, tmp_path / "logits.safetensors"):
        student = Student(baseline[0], stage, Texts(words, train, valid), Runtime(seed=1), cache=cache)
        histories.append(student.train(smaller, Record(Checkpoint(tmp_path / str(bool(cache)), "student")))[1])
    assert histories[0]["divergence"].iloc[-1] < histories[0]["divergence"].iloc[0]
    pd.testing.assert_frame_equal(*histories)
