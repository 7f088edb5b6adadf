"""The verdict on one network: latency target met, quality kept, dynamic k faster; and remedies where it is not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from planer.config.variant import Variant, parse_variant
from planer.evaluation.comparison import chosen_row, headline
from planer.evaluation.controls import CONTROLS, compare_with_controls
from planer.latency.relative import TOLERANCE as TARGET_TOLERANCE
from planer.latency.relative import too_slow
from planer.paired import CONFIDENCE
from planer.report.control_tables import interval
from planer.report.page import milliseconds

TARGET_STEP = 0.1
"""The next larger target is larger by this share of the baseline's latency."""

DISTURBED = 1.5
"""A latency whose p90 is above this multiple of its p10 was disturbed by other processes: medians of an idle device
are within a few percent of each other."""

CORRECTIONS = 3
"""The default of candidates.corrections, for an experiment that sets it to 0."""


@dataclass(frozen=True)
class Remedy:
    """A command for a user to try."""

    text: str
    command: str


@dataclass(frozen=True)
class Judgement:
    """One question about a network, answered."""

    word: str
    """The answer in one or two words: ``met``, ``lost``, ``not faster``, ..."""
    good: bool | None
    """Whether the answer is good for the user; None where the question does not apply."""
    text: str
    """The numbers behind the answer."""
    remedy: Remedy | None = None


@dataclass(frozen=True)
class Verdict:
    """All questions about one network."""

    variant: str
    target: Judgement
    quality: Judgement
    dynamic_k: Judgement

    @property
    def remedies(self) -> list[Remedy]:
        """Remedies in the order of the questions, each once."""
        remedies = (judgement.remedy for judgement in (self.target, self.quality, self.dynamic_k))
        return list(dict.fromkeys(filter(None, remedies)))


def verdict(evaluation: dict, evaluations: Sequence[dict] = ()) -> Verdict:
    """The verdict on the network of an eval.json, whose quality is compared with controls among the evaluations.

    Controls get no remedies.
    """
    quality = _quality(evaluation, evaluations)
    found = Verdict(evaluation["variant"], _target(evaluation), quality, _dynamic_k(evaluation))
    method = parse_variant(found.variant).method
    if method == "baseline" or method not in CONTROLS:
        return found
    plain = (Judgement(j.word, j.good, j.text) for j in (found.target, found.quality, found.dynamic_k))
    return Verdict(found.variant, *plain)


def rules(evaluation: dict) -> str:
    """Definitions of the verdicts' words, with their limits."""
    tolerance = f"{evaluation['tolerance']:.1%}"
    return (
        f"Target met: the measured latency is at most {TARGET_TOLERANCE:.0%} above the requested share of the "
        f"baseline's. Quality kept: the test nll is at most {tolerance} above the baseline's. Dynamic k: the threshold "
        f"tau with the fewest FLOPs whose validation nll is at most {tolerance} above the better of the dense network "
        "and the network split into experts at tau = 0. Faster: its median latency is below that of the dense network, "
        "measured alternately on this device. Disturbed: a latency's p90 is above "
        f"{DISTURBED:g} times its p10."
    )


def _target(evaluation: dict) -> Judgement:
    variant, row = parse_variant(evaluation["variant"]), headline(evaluation)
    if variant.method == "baseline":
        return Judgement("reference", None, f"{milliseconds(row['median_ms'])} ms per call")
    if variant.target is None:
        return Judgement("no target", None, f"{1 / row['speed_up']:.3f} of the baseline's latency measured")
    requested, measured = (evaluation["target"][name] for name in ("requested", "measured"))
    text = f"{requested:g} of the baseline's latency requested, {measured:.3f} measured"
    calls = {"attention": row["attention"], "execution": row["execution"]}
    baseline = next(other for other in evaluation["baseline"]["latency"] if other.items() >= calls.items())
    again = _again(evaluation, row, baseline)
    if again:
        text += ", disturbed"
    if not too_slow(measured, requested):
        return Judgement("met", True, text)
    return Judgement("missed", False, text, again or _faster(evaluation, variant, requested, measured))


def _again(evaluation: dict, *latencies: dict) -> Remedy | None:
    """Advice to measure again, where one of the latencies was disturbed."""
    if all(latency["p90_ms"] <= DISTURBED * latency["p10_ms"] for latency in latencies):
        return None
    return Remedy("measure again on an idle machine", _command(evaluation) + " --forcerun evaluate")


def _faster(evaluation: dict, variant: Variant, requested: float, measured: float) -> Remedy | None:
    """Measured candidates where they were not measured; else a target that corrects the deviation from the table."""
    if not evaluation["target"]["rounds"]:
        text = "measure candidates before training, and propose others for those that are too slow"
        return Remedy(text, _command(evaluation, config=f"candidates={{corrections: {CORRECTIONS}}}"))
    smaller = math.floor(100 * requested**2 / measured) / 100
    if smaller <= 0:
        return None
    text = f"ask for a smaller share, {smaller:g}, which corrects the miss"
    return Remedy(text, _command(evaluation, replace(variant, target=smaller).name))


def _quality(evaluation: dict, evaluations: Sequence[dict]) -> Judgement:
    variant = parse_variant(evaluation["variant"])
    unit, known = evaluation["quality"]["unit"], evaluation["baseline"]["quality"]
    test = evaluation["quality"]["final"]["test"]
    if variant.method == "baseline":
        return Judgement("reference", None, f"{test[unit]:.3f} {unit} on the test split")
    if known is None:
        text = f"{test[unit]:.3f} {unit}; the baseline was not evaluated"
        return Judgement("unknown", None, text, Remedy("evaluate the baseline", _command(evaluation, variant.baseline)))
    reference = known["final"]["test"]
    change = test["nll"] / reference["nll"] - 1
    beside_baseline, *others = compare_with_controls(evaluation, evaluations)
    text = f"{test[unit]:.3f} {unit}, {_nll(change, 'the baseline')} ({reference[unit]:.3f})"
    kept = change <= evaluation["tolerance"]
    if not kept:
        text += f", {test[unit] - reference[unit]:+.3f} {unit}"
    text += f"; {CONFIDENCE:.0%} interval {interval(beside_baseline.paired)}"
    text = "; ".join([text, *(found.phrase for found in others)])
    return Judgement("kept", True, text) if kept else Judgement("lost", False, text, _better(evaluation, variant))


def _better(evaluation: dict, variant: Variant) -> Remedy:
    """From the trained baseline; then with more latency; then with longer training."""
    if variant.scratch:
        name = replace(variant, scratch=False).name
        return Remedy("start from the trained baseline, with the baseline as teacher", _command(evaluation, name))
    if variant.target is not None and variant.target < 1:
        larger = min(1.0, round(variant.target + TARGET_STEP, 2))
        text = f"allow more latency, {larger:g} of the baseline's"
        return Remedy(text, _command(evaluation, replace(variant, target=larger).name))
    text = f"train longer: raise distill.steps in config/experiments/{evaluation['experiment']}.yaml"
    return Remedy(text, _command(evaluation, variant.name))


def _dynamic_k(evaluation: dict) -> Judgement:
    conversion = evaluation["conversion"]
    if not conversion["converted_layers"]:
        return Judgement("nothing to convert", None, conversion["reason"] or "")
    row, chosen = chosen_row(evaluation), conversion["chosen"]
    if chosen is None:
        text, remedy = _no_threshold(evaluation)
        return Judgement("no threshold", False, text, remedy)
    share = 1 / chosen["speed_up_over_dense"]
    text = (
        f"tau = {chosen['tau']:g}: {share:.2f} of the dense network's latency, {row['converted_flops_ratio']:.0%} of "
        f"the FLOPs of the converted layers; {_nll(chosen['nll_over_dense'] - 1, 'the dense network')}, "
        f"{_nll(chosen['nll_over_tau0'] - 1, 'at tau = 0')}"
    )
    again = _again(evaluation, row["latency"], conversion["dense_latency"])
    if again:
        return Judgement("not certain", None, f"{text}; disturbed", again)
    if chosen["speed_up_over_dense"] > 1:
        return Judgement("faster", True, text)
    return Judgement("not faster on this device", False, text, _larger_experts(evaluation))


def _no_threshold(evaluation: dict) -> tuple[str, Remedy | None]:
    """Why no threshold keeps the quality: sparsification alone lost it, or every threshold is too large."""
    dense, rows = evaluation["quality"]["final"]["valid"]["nll"], evaluation["dynamic_k"]
    tolerance, without = evaluation["tolerance"], rows[0]["valid"]["nll"]
    if without > (1 + tolerance) * dense:
        text = f"sparsification alone costs {without / dense - 1:.1%} of the dense network's validation nll"
        advice = f"lower sparsify.weight or raise sparsify.steps in config/experiments/{evaluation['experiment']}.yaml"
        return text, Remedy(advice, _command(evaluation))
    above = [row for row in rows if row["tau"] > 0]
    if not above:
        smaller, text = [0.05, 0.1], "evaluate.taus has no threshold above 0"
    else:
        best = min(above, key=lambda row: row["valid"]["nll"])
        loss = best["valid"]["nll"] / min(dense, without) - 1
        smaller = [float(f"{above[0]['tau'] * part:.3g}") for part in (0.25, 0.5)]
        text = f"no tau above 0 is within {tolerance:.1%}; the best, tau = {best['tau']:g}, costs {loss:.1%}"
    values = ", ".join(map(str, smaller))
    return text, Remedy("evaluate smaller thresholds", _command(evaluation, config=f"evaluate={{taus: [{values}]}}"))


def _larger_experts(evaluation: dict) -> Remedy | None:
    """Experts of twice the size, since routing costs time per expert; None where a layer would have fewer than two."""
    conversion = evaluation["conversion"]
    if any(number % 2 or number < 4 for number in conversion["num_experts"]):
        return None
    size = 2 * max(conversion["expert_size"])
    text = f"split into experts of {size} neurons: half as many cost less to route"
    return Remedy(text, _command(evaluation, config=f"cluster_experts={{expert_size: {size}}}"))


def _nll(change: float, reference: str) -> str:
    """A change of nll against a reference, as a share of it, in words."""
    if abs(change) < 0.0005:
        return f"the same nll as {reference}"
    return f"{abs(change):.1%} {'less' if change < 0 else 'more'} nll than {reference}"


def _command(evaluation: dict, variant: str = "", config: str = "") -> str:
    """The command that evaluates a variant, by default that of the evaluation, with one key of the configuration
    changed."""
    path = f"results/{evaluation['experiment']}/{variant or evaluation['variant']}/eval.json"
    return f"snakemake --cores 2 {path}" + (f' --config "{config}"' if config else "")
