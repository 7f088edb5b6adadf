"""The verdict on the arms of a pretrained experiment, in words: quality kept, time saved, budgets won."""

from __future__ import annotations

from collections.abc import Sequence

from planer.config.pretrained import CONTINUED, DENSE
from planer.evaluation.arms.choice import budgets_won, curve, keeps
from planer.evaluation.arms.summary import call_of, chosen_row, same
from planer.paired import CONFIDENCE
from planer.pretrained.describe import selected
from planer.report.verdict import Judgement

DYNAMIC, BASELINE = ("dynamic_k", "top_k")
"""Selectors of the two methods that are compared: D2DMoE's, and MoEfication's."""
FASTER, SLOWER, NOT_TOLD = "faster", "slower", "not told apart"
MOEFICATION = "moefication"
"""How names of MoEfication's arms begin."""


def quality(evaluation: dict) -> Judgement:
    """Whether the arm keeps its reference's quality, and with which FLOPs."""
    task, dense, name = evaluation["task"], evaluation["reference"]["test"], evaluation["reference"]["variant"]
    metric = task["metric"]
    if evaluation["method"] == "dense":
        return Judgement(
            "reference", None, f"{task['title']} {evaluation['quality']['test'][metric]:.4g} on the test split"
        )
    row = chosen_row(evaluation)
    if row is None:
        trained = evaluation["quality"]["test"][metric]
        text = f"{task['title']} {trained:.4g} without skipping, {dense[metric]:.4g} for {name}"
        return Judgement("lost", False, f"no row keeps the validation quality; {text}")
    kept = keeps(row["test"][metric], dense[metric], task["better"], evaluation["tolerance"])
    text = (
        f"{label(row)}: {task['title']} {row['test'][metric]:.4g}, {interval(row['difference'])} against "
        f"{name}'s {dense[metric]:.4g}, at {row['network_ratio']:.0%} of the network's FLOPs and "
        f"{row['feed_forward_ratio']:.0%} of the converted layers'"
    )
    if not kept:
        return Judgement("lost", False, f"{text}; it was kept on the validation split")
    if row["network_ratio"] >= 1:
        return Judgement("kept, nothing saved", False, text)
    return Judgement("kept", True, text)


def time(evaluation: dict) -> Judgement:
    """Whether the chosen row of the arm is faster than the dense network, by batch and phase."""
    row = chosen_row(evaluation)
    if evaluation["method"] == "dense" or row is None:
        return Judgement("not compared", None, "")
    timed = [entry for entry in evaluation["latency"] if same(entry, row)]
    if not timed:
        return Judgement("not measured", None, f"{label(row)} was not timed")
    text = "; ".join(f"{call_of(entry)}: {speed_up(entry)}" for entry in timed)
    if timed[0]["dense_layers"]:
        text += f"; {timed[0]['dense_layers']} of {len(row['layers'])} layers ran densely"
    words = {_word(entry) for entry in timed}
    if len(words) == 1:
        (word,) = words
        return Judgement(word, {FASTER: True, SLOWER: False}.get(word), text)
    return Judgement("faster in part" if FASTER in words else "slower in part", False, text)


def _word(entry: dict) -> str:
    """On which side of 1 the interval of the speed-up lies."""
    if entry["low"] is None or entry["low"] <= 1 <= entry["high"]:
        return NOT_TOLD
    return FASTER if entry["low"] > 1 else SLOWER


def against_moefication(evaluations: Sequence[dict]) -> list[str]:
    """A sentence per pair of an arm with dynamic k and one of MoEfication."""
    baselines = [e for e in evaluations if e["variant"].startswith(MOEFICATION)]
    dynamic = [e for e in evaluations if e not in baselines and len(_curve(e, DYNAMIC)[0])]
    return [_compared(own, other) for own in dynamic for other in baselines]


def _compared(own: dict, other: dict) -> str:
    won, compared = budgets_won(_curve(own, DYNAMIC), _curve(other, BASELINE), own["task"]["better"])
    pair = f"dynamic k of {own['variant']}", f"top-k of {other['variant']}"
    if not compared:
        return f"The FLOPs of {pair[0]} and {pair[1]} do not overlap."
    share = "every one" if won == compared else f"{won}"
    return f"At {share} of {compared} FLOPs budgets {pair[0]} is better than {pair[1]}."


def _curve(evaluation: dict, selector: str):
    return curve(evaluation["rows"], evaluation["task"]["metric"], selector)


def rules(evaluation: dict) -> str:
    """Definitions of the verdict's words, with their limits."""
    return (
        f"The row of an arm is chosen on the validation split: the fewest FLOPs of the network among rows whose "
        f"{evaluation['task']['title']} is at most {evaluation['tolerance']:.1%} worse than its reference's: the "
        f"dense network that was trained as long, which is {CONTINUED} for arms that sparsification trained on, else "
        f"{DENSE}. Kept: the "
        f"same holds on the test split. Faster, slower: the {CONFIDENCE:.0%} interval of the speed-up lies above, or "
        "below, 1 for every batch and phase. Intervals of quality are of a paired bootstrap over test samples; they do "
        "not cover another training. FLOPs are per real token and contain routers and comparisons. Budgets are the "
        "FLOPs of MoEfication's rows; between its rows an arm's curve is a straight line."
    )


def label(row: dict) -> str:
    """A row's selector and value, behind its bound if it is one."""
    prefix = f"{row['bound']} " if row["bound"] else ""
    return f"{prefix}{selected(row['selector'], row['value'])}"


def speed_up(entry: dict) -> str:
    """How many times as fast as the dense network, with its interval."""
    text = f"{entry['speed_up']:.2f} times as fast"
    return text if entry["low"] is None else f"{text} [{entry['low']:.2f}, {entry['high']:.2f}]"


def interval(difference: dict) -> str:
    """A difference with its interval."""
    return f"{difference['value']:+.3g} [{difference['low']:+.3g}, {difference['high']:+.3g}]"
