"""The verdict on one network: latency target met, quality kept, dynamic k faster; and what to try where it is not."""

from __future__ import annotations

import math
from dataclasses import dataclass

from planer.evaluation.comparison import chosen_row, headline
from planer.search.closed_loop import TOLERANCE as TARGET_TOLERANCE
from planer.search.closed_loop import too_slow
from planer.variant import Variant, parse_variant

TARGET_STEP = 0.1
"""The next larger target is larger by this share of the baseline's latency."""


@dataclass(frozen=True)
class Remedy:
    """What a user can try."""

    text: str
    command: str


@dataclass(frozen=True)
class Judgement:
    """One question about a network, answered."""

    word: str
    """The answer in one or two words: ``met``, ``lost``, ``not faster``, ..."""
    good: bool | None
    """Whether the answer is what a user wants; None where the question does not apply."""
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
        """What to try, in the order of the questions."""
        return [j.remedy for j in (self.target, self.quality, self.dynamic_k) if j.remedy is not None]


def verdict(evaluation: dict) -> Verdict:
    """The verdict on the network of an eval.json.  A random control gets no remedies: it is there to be compared."""
    found = Verdict(evaluation["variant"], _target(evaluation), _quality(evaluation), _dynamic_k(evaluation))
    if parse_variant(found.variant).arm != "random":
        return found
    plain = (Judgement(j.word, j.good, j.text) for j in (found.target, found.quality, found.dynamic_k))
    return Verdict(found.variant, *plain)


def rules(evaluation: dict) -> str:
    """What the words of the verdicts mean, with the limits that apply."""
    tolerance = f"{evaluation['tolerance']:.1%}"
    return (
        f"Target met: the measured latency is at most {TARGET_TOLERANCE:.0%} above the requested share of the "
        f"baseline's. Quality kept: the test nll is at most {tolerance} above the baseline's. Dynamic k: the threshold "
        f"tau with the fewest FLOPs whose validation nll is at most {tolerance} above the better of two: the dense "
        "network, and the same network split into experts at tau = 0. Faster: its median latency is below that of the "
        "dense network, measured in turn on this device."
    )


def _target(evaluation: dict) -> Judgement:
    variant, row = parse_variant(evaluation["variant"]), headline(evaluation)
    if variant.name == "baseline":
        return Judgement("reference", None, f"{row['median_ms']:.3g} ms per call")
    if variant.target is None:
        return Judgement("no target", None, f"{1 / row['speed_up']:.3f} of the baseline's latency measured")
    requested, measured = (evaluation["target"][name] for name in ("requested", "measured"))
    text = f"{requested:g} of the baseline's latency requested, {measured:.3f} measured"
    if not too_slow(measured, requested):
        return Judgement("met", True, text)
    return Judgement("missed", False, text, _faster(evaluation, variant, requested, measured))


def _faster(evaluation: dict, variant: Variant, requested: float, measured: float) -> Remedy | None:
    """The target that would measure what was requested, if the device deviates from its table by as much again."""
    smaller = math.floor(100 * requested**2 / measured) / 100
    if smaller <= 0:
        return None
    text = f"ask for a smaller share, {smaller:g}, which makes up for the miss"
    return Remedy(text, _command(evaluation, _name(variant, smaller, variant.start)))


def _quality(evaluation: dict) -> Judgement:
    unit, known = evaluation["quality"]["unit"], evaluation["baseline"]["quality"]
    test = evaluation["quality"]["final"]["test"]
    if evaluation["variant"] == "baseline":
        return Judgement("reference", None, f"{test[unit]:.3f} {unit} on the test split")
    if known is None:
        text = f"{test[unit]:.3f} {unit}; the baseline was not evaluated"
        return Judgement("unknown", None, text, Remedy("evaluate the baseline", _command(evaluation, "baseline")))
    reference = known["final"]["test"]
    change = test["nll"] / reference["nll"] - 1
    text = f"{test[unit]:.3f} {unit}, baseline {reference[unit]:.3f}: {nll_change(change)}"
    if change <= evaluation["tolerance"]:
        return Judgement("kept", True, text)
    text += f", {test[unit] - reference[unit]:+.3f} {unit}"
    return Judgement("lost", False, text, _better(evaluation, parse_variant(evaluation["variant"])))


def _better(evaluation: dict, variant: Variant) -> Remedy:
    """With the baseline as its teacher; then with more latency; then with longer training."""
    if variant.start != "distill":
        name = _name(variant, variant.target, "distill")
        return Remedy("train the same network with the baseline as its teacher", _command(evaluation, name))
    if variant.target is not None and variant.target < 1:
        larger = min(1.0, round(variant.target + TARGET_STEP, 2))
        text = f"allow more latency, {larger:g} of the baseline's"
        return Remedy(text, _command(evaluation, _name(variant, larger, variant.start)))
    text = f"train all networks longer: raise retrain.steps in config/experiments/{evaluation['experiment']}.yaml"
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
        f"the FLOPs of the converted layers; {nll_change(chosen['nll_over_dense'] - 1)} than the dense network, "
        f"{nll_change(chosen['nll_over_tau0'] - 1)} than at tau = 0"
    )
    if chosen["speed_up_over_dense"] > 1:
        return Judgement("faster", True, text)
    return Judgement("not faster on this device", False, text, _larger_experts(evaluation))


def _no_threshold(evaluation: dict) -> tuple[str, Remedy | None]:
    """Why no threshold keeps the quality: sparsification alone lost it, or every threshold is too large."""
    dense, rows = evaluation["quality"]["final"]["valid"]["nll"], evaluation["dynamic_k"]
    tolerance, without = evaluation["tolerance"], rows[0]["valid"]["nll"]
    if without > (1 + tolerance) * dense:
        text = f"sparsification alone costs {without / dense - 1:.1%} of the dense network's validation nll"
        what = f"lower sparsify.weight or raise sparsify.steps in config/experiments/{evaluation['experiment']}.yaml"
        return text, Remedy(what, _command(evaluation, evaluation["variant"]))
    above = [row for row in rows if row["tau"] > 0]
    if not above:
        smaller, text = [0.05, 0.1], "evaluate.taus has no threshold above 0"
    else:
        best = min(above, key=lambda row: row["valid"]["nll"])
        loss = best["valid"]["nll"] / min(dense, without) - 1
        smaller = [float(f"{above[0]['tau'] * part:.3g}") for part in (0.25, 0.5)]
        text = f"no tau above 0 is within {tolerance:.1%}; the best, tau = {best['tau']:g}, costs {loss:.1%}"
    values = ", ".join(map(str, smaller))
    return text, Remedy("evaluate smaller thresholds", _command(evaluation, None, f"evaluate={{taus: [{values}]}}"))


def _larger_experts(evaluation: dict) -> Remedy | None:
    """Routing costs time per expert: experts of twice the size.  None where those do not divide a layer into two."""
    conversion = evaluation["conversion"]
    if any(number % 2 or number < 4 for number in conversion["num_experts"]):
        return None
    size = 2 * max(conversion["expert_size"])
    text = f"split into experts of {size} neurons: half as many cost less to route"
    return Remedy(text, _command(evaluation, None, f"cluster_experts={{expert_size: {size}}}"))


def nll_change(change: float) -> str:
    """A change of nll, as a share of it, in words."""
    return f"{abs(change):.1%} {'less' if change < 0 else 'more'} nll"


def _name(variant: Variant, target: float | None, start: str) -> str:
    """The name of the same kind of variant for another target or another start of training."""
    parts = [variant.arm if target is None else f"{variant.arm}_{target:g}"]
    parts += [f"_{variant.number}"] if variant.number else []
    parts += [f"-{start}"] if start != "scratch" else []
    return "".join([*parts, f"-seed{variant.repeat}" if variant.repeat else ""])


def _command(evaluation: dict, variant: str | None, config: str = "") -> str:
    """The command that evaluates a variant, this one by default, with one key of the configuration changed."""
    path = f"results/{evaluation['experiment']}/{variant or evaluation['variant']}/eval.json"
    return f"snakemake --cores 2 {path}" + (f' --config "{config}"' if config else "")
