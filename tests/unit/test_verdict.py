"""The verdict on made-up evaluations: its answers, its numbers and the command that it suggests."""

from __future__ import annotations

import math

import pytest
from made_up import chosen, evaluation, spread

from planer.config.variant import parse_variant
from planer.report.verdict import rules, verdict

COMMAND = "snakemake --cores 2 results/demo/"


def network(variant: str = "target_0.5", nll: float = 1.6, share: float = 0.5, pattern: str = "s4fim1s2ifi") -> dict:
    """An evaluation.  The baseline has 1.6 nats."""
    return evaluation(variant, pattern, nll, share, parse_variant(variant).target)


def swept(nlls: tuple[float, ...], ms: float = 4.0) -> dict:
    """A network with this validation nll at tau = 0, 0.1, 0.2, ...; dense, it has 1.58 nats and takes 5 ms."""
    values = network()
    values["dynamic_k"] = values["dynamic_k"][: len(nlls)]
    for number, (row, nll) in enumerate(zip(values["dynamic_k"], nlls, strict=True)):
        row |= {"tau": number / 10, "valid": row["valid"] | {"nll": nll}, "latency": spread(ms)}
    dense = values["quality"]["final"] | {"latency": values["conversion"]["dense_latency"]}
    values["conversion"]["chosen"] = chosen(values["dynamic_k"], dense, values["tolerance"])
    return values


@pytest.mark.parametrize(
    ("share", "word"), [(0.4, "met"), (0.5, "met"), (0.51, "met"), (0.511, "missed"), (0.6, "missed")]
)
def test_a_target_is_met_up_to_2_percent_above_the_request(share, word):
    found = verdict(network(share=share)).target
    assert (found.word, found.good) == (word, word == "met")
    assert found.text == f"0.5 of the baseline's latency requested, {share:.3f} measured"
    assert (found.remedy is None) == found.good


@pytest.mark.parametrize(
    ("variant", "share", "suggested"),
    [
        ("target_0.5", 0.6, "target_0.41"),
        ("target_0.5-scratch-seed2", 0.511, "target_0.48-scratch-seed2"),
        ("lts_1", 1.25, "lts_0.8"),
    ],
)
def test_a_missed_target_suggests_a_smaller_share(variant, share, suggested):
    assert verdict(network(variant, share=share)).target.remedy.command == f"{COMMAND}{suggested}/eval.json"
    assert parse_variant(suggested).target < parse_variant(variant).target


def test_a_target_missed_without_the_closed_loop_suggests_it():
    values = network(share=0.6)
    values["target"]["rounds"] = []
    command = f'{COMMAND}target_0.5/eval.json --config "candidates={{corrections: 3}}"'
    assert verdict(values).target.remedy.command == command


@pytest.mark.parametrize("share", [0.5, 0.6])
@pytest.mark.parametrize("disturbed", ["network", "baseline"])
def test_a_disturbed_measurement_is_named_and_a_repetition_suggested(share, disturbed):
    values = network(share=share)
    row = (values if disturbed == "network" else values["baseline"])["latency"][0]
    row["p90_ms"] = 1.51 * row["p10_ms"]
    found = verdict(values).target
    assert found.text.endswith("measured, disturbed")
    again = f"{COMMAND}target_0.5/eval.json --forcerun evaluate"
    assert (found.remedy and found.remedy.command) == (None if share == 0.5 else again)


def test_a_disturbed_measurement_of_a_threshold_is_named():
    values = swept((1.58, 1.59), ms=6.0)
    values["dynamic_k"][1]["latency"]["p90_ms"] = 20.0
    found = verdict(values).dynamic_k
    assert (found.word, found.good) == ("not certain", None)
    assert found.text.endswith("; disturbed") and found.remedy.command.endswith("--forcerun evaluate")
    values["target"]["measured"], values["latency"][0]["p90_ms"] = 0.6, 20.0
    assert verdict(values).remedies == [found.remedy], "equal remedies are given once"


def test_a_target_that_cannot_be_met_has_no_remedy():
    assert verdict(network("target_0.05", share=0.9)).target.remedy is None


@pytest.mark.parametrize(
    ("nll", "word", "text"),
    [
        (1.5, "kept", "6.2% less nll than the baseline (2.308)"),
        (1.6004, "kept", "the same nll as the baseline (2.308)"),
        (1.615, "kept", "0.9% more nll than the baseline (2.308)"),
        (1.617, "lost", "1.1% more nll than the baseline (2.308), +0.025 bpc"),
        (1.76, "lost", "10.0% more nll than the baseline (2.308), +0.231 bpc"),
    ],
)
def test_quality_within_the_tolerance_is_kept(nll, word, text):
    found = verdict(network(nll=nll)).quality
    assert (found.word, found.good, found.remedy is None) == (word, word == "kept", word == "kept")
    shown, interval = found.text.split("; ")
    assert shown == f"{nll / math.log(2):.3f} bpc, {text}"
    low, high = (float(end.rstrip("%")) for end in interval.removeprefix("95% interval ").split(" to "))
    assert low <= 100 * (nll / 1.6 - 1) + 0.05 and high >= 100 * (nll / 1.6 - 1) - 0.05 and high - low < 1
    strict = network(nll=nll) | {"tolerance": 0.0}
    assert verdict(strict).quality.good == (nll < 1.6)


@pytest.mark.parametrize(
    ("variant", "suggested"),
    [
        ("target_0.5-scratch", "target_0.5"),
        ("par-scratch-seed1", "par-seed1"),
        ("target_0.5", "target_0.6"),
        ("isoparam_0.95-seed3", "isoparam_1-seed3"),
        ("par", "par"),
        ("target_1", "target_1"),
        ("keep_0.01", "keep_0.01"),
    ],
)
def test_the_remedy_of_lost_quality(variant, suggested):
    remedy = verdict(network(variant, nll=1.8)).quality.remedy
    assert remedy.command == f"{COMMAND}{suggested}/eval.json"
    assert parse_variant(suggested).name == suggested
    assert (variant == suggested) == ("raise distill.steps in config/experiments/demo.yaml" in remedy.text)


def test_quality_is_compared_with_the_controls_of_the_report():
    """Networks with these nlls, whose target, start and seed are those of target_0.5."""
    controls = {"continued": 1.57, "shallow_0.5": 1.6, "random_0.5_1": 1.7, "random_0.5_2": 1.701}
    text = verdict(network(nll=1.6), [network(name, nll) for name, nll in controls.items()]).quality.text
    assert text.endswith(
        "; worse than the baseline trained on; not told apart from the shallow control; better than random networks"
    )


def test_quality_without_a_baseline_is_unknown():
    values = network()
    values["baseline"]["quality"] = None
    found = verdict(values).quality
    assert found.good is None and found.remedy.command == f"{COMMAND}baseline/eval.json"
    repeat = verdict(values | {"variant": "target_0.5-seed1"}).quality
    assert repeat.remedy.command == f"{COMMAND}baseline-seed1/eval.json"


def test_dynamic_k_is_faster_if_below_the_latency_of_the_dense_network():
    faster = verdict(swept((1.58, 1.59), ms=4.9)).dynamic_k
    assert (faster.word, faster.good, faster.remedy) == ("faster", True, None)
    assert faster.text.startswith("tau = 0.1: 0.98 of the dense network's latency")
    for ms in (5.0, 6.0):
        slower = verdict(swept((1.58, 1.59), ms=ms)).dynamic_k
        assert (slower.word, slower.good) == ("not faster on this device", False)
        assert slower.remedy.command == f'{COMMAND}target_0.5/eval.json --config "cluster_experts={{expert_size: 16}}"'


def test_dynamic_k_gives_the_loss_against_the_dense_network_and_tau_0():
    values = swept((1.5, 1.51))
    row, dense = values["dynamic_k"][1], values["quality"]["final"]["test"]["nll"]
    row["test"]["nll"], values["dynamic_k"][0]["test"]["nll"] = 1.02 * dense, 0.98 * dense
    values["conversion"]["chosen"] |= {"nll_over_dense": 1.02, "nll_over_tau0": 1.02 / 0.98}
    text = verdict(values).dynamic_k.text
    assert text.endswith("2.0% more nll than the dense network, 4.1% more nll than at tau = 0")


@pytest.mark.parametrize(
    ("nlls", "text", "remedy"),
    [
        ((1.7, 1.71), "sparsification alone costs 7.6%", "lower sparsify.weight or raise sparsify.steps"),
        ((1.5, 1.54, 1.6), "no tau above 0 is within 1.0%; the best, tau = 0.1, costs 2.7%", "{taus: [0.025, 0.05]}"),
        ((1.58,), "evaluate.taus has no threshold above 0", "evaluate={taus: [0.05, 0.1]}"),
    ],
)  # fmt: skip
def test_the_reason_for_no_threshold(nlls, text, remedy):
    found = verdict(swept(nlls)).dynamic_k
    assert (found.word, found.good) == ("no threshold", False)
    assert found.text.startswith(text)
    assert remedy in f"{found.remedy.text} {found.remedy.command}"


def test_a_network_without_dense_layers_has_nothing_to_convert():
    found = verdict(network(pattern="s1iim1iiim2")).dynamic_k
    assert (found.word, found.good, found.remedy) == ("nothing to convert", None, None)
    assert "no dense feed-forward layer" in found.text


def test_the_baseline_is_the_reference():
    for name in ("baseline", "baseline-seed1"):
        found = verdict(network(name, share=1.0))
        assert (found.target.word, found.quality.word) == ("reference", "reference")
    assert verdict(network("par", share=0.72)).target.word == "no target"


@pytest.mark.parametrize("control", ["random_0.5_1", "shallow_0.5-seed1"])
def test_a_control_has_no_remedy(control):
    found = verdict(network(control, nll=1.9, share=0.7))
    assert (found.target.word, found.quality.word) == ("missed", "lost")
    assert found.remedies == []
    assert len(verdict(network("target_0.5", nll=1.9, share=0.7)).remedies) >= 2


def test_the_rules_name_the_limits():
    assert "at most 2% above the requested share" in rules(network())
    assert "test nll is at most 3.0% above" in rules(network() | {"tolerance": 0.03})
