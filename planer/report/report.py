"""report.html: the results of an experiment on one self-contained page, and its figures as files."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from planer.config.variant import parse_variant
from planer.evaluation.comparison import compare, headline
from planer.evaluation.controls import CONTROLS
from planer.evaluation.summary import summary_line
from planer.files import write_text
from planer.latency.additivity import IDLE_BAR, missed
from planer.report.control_tables import control_table, shallow_finding
from planer.report.drawing import inline, to_svg
from planer.report.figures import UNITS
from planer.report.page import cell, count, environment, milliseconds, section, table
from planer.report.search_tables import path_tables, proxy_training_tables, search_tables
from planer.report.sweep_tables import sweep_table
from planer.report.verdict import rules, verdict

FIGURES = {
    "quality_latency": "Test quality against measured latency, one point per network",
    "architectures": "The blocks of every network, from embedding to head",
    "search_health": "Entropy, share on skip, latency loss, argmax flips and latency over epochs, one row per search",
    "choices": "Architecture weights and replace-one scores of every option at every position, one row per search",
    "updates": "Training steps of every option and tokens of every expert by position, one row per search",
    "block_latencies": "Latency of every block, with cached and with recomputed attention",
    "routings": "Latency of mixtures of experts under even and uneven loads, beside a feed-forward layer",
    "estimated_measured": "Estimated against measured latency",
    "expert_balance": "Load of every expert during training, one row per network with mixtures of experts",
    "starts": "Validation loss over training steps, from the trained baseline and from random weights",
    "dynamic_k": "Test quality over executed FLOPs and over latency, one line per network",
    "pareto": "Networks for many latency targets, chosen with one supernet and by separate searches",
}
"""Figures and their text alternatives."""

FILES = {
    "architecture.yaml": "the blocks, and how they were chosen",
    "retrain/model.safetensors": "the trained dense network",
    "sparsify/model.safetensors": "the same network after sparsification",
    "routers/model.safetensors": "the same network split into experts, with their routers",
    "eval.json": "every number of this page about the network",
}
"""Files in a network's folder for users."""

AGREEMENT = {
    "pearson_r": ("Pearson r", "{:.4f}"),
    "mape": ("mean error", "{:.1%}"),
    "max_ape": ("largest error", "{:.1%}"),
    "bias": ("bias", "{:+.1%}"),
}
"""Names and formats of the numbers of additivity.json in the report."""


def write_report(
    path: str | Path,
    folder: str | Path,
    evaluations: Sequence[dict],
    additivity: dict,
    figures: Mapping[str, Figure],
    analyses: Sequence[dict] = (),
) -> None:
    """Write the page to path and each figure as folder/<name>.svg.

    evaluations: contents of eval.json, in the order wanted.  additivity: contents of additivity.json.  figures: by the
    names of FIGURES; a missing one is left out.  analyses: sections on several searches.  The
    same arguments give the same bytes.
    """
    drawings = {name: to_svg(figure) for name, figure in figures.items()}
    for name, svg in drawings.items():
        write_text(Path(folder) / f"{name}.svg", svg)
    write_text(path, render(evaluations, additivity, drawings, analyses))


def render(
    evaluations: Sequence[dict], additivity: dict, figures: Mapping[str, str], analyses: Sequence[dict] = ()
) -> str:
    """The page as text; figures are SVG documents by name."""
    first, verdicts = evaluations[0], [verdict(evaluation, evaluations) for evaluation in evaluations]
    parts = [*_network_sections(evaluations), *_measured_sections(evaluations, additivity), *analyses]
    parts.append(_provenance(evaluations))
    return (
        environment()
        .get_template("report.html.jinja")
        .render(
            experiment=first["experiment"],
            setting=_setting(first),
            verdicts=verdicts,
            remedies=[(found.variant, remedy) for found in verdicts for remedy in found.remedies],
            rules=rules(first),
            summaries=[(evaluation["variant"], summary_line(evaluation)) for evaluation in evaluations],
            controls=control_table(evaluations),
            shallow=shallow_finding(evaluations),
            files=_files(evaluations),
            summary=_summary(evaluations),
            summary_note=_summary_note(first),
            sections=[part for part in parts if part["tables"] or part["figure"] in figures],
            figures={name: inline(svg, name, html.escape(FIGURES[name])) for name, svg in figures.items()},
        )
    )


def _setting(evaluation: dict) -> str:
    row, provenance = headline(evaluation), evaluation["provenance"]
    if row["execution"] == "decode":
        how = f"one token per call, context of {row['mem_len']}, decode engine"
    else:
        how = f"{row['tgt_len']} tokens per call, memory of {row['mem_len']}, {row['attention']} attention, "
        how += f"{row['execution']} execution"
    return f"{provenance['device']}, {provenance['dtype']}. Workload: batch {row['batch']}, {how}."


def _files(evaluations: Sequence[dict]) -> dict:
    """Files of a network's folder and how to load it, for the first network that is neither baseline nor control."""
    wanted = (e for e in evaluations if parse_variant(e["variant"]).method not in CONTROLS)
    shown = next(wanted, evaluations[0])
    folder = f"results/{shown['experiment']}/{shown['variant']}"
    chosen = shown["conversion"]["chosen"]
    return {
        "folder": folder,
        "names": FILES,
        "python": f"""\
import planer
network = planer.load("{folder}/{"routers" if chosen else "retrain"}")
print(network.architecture.pattern, network.architecture.params())""",
        "tau": chosen["tau"] if chosen else 0,
    }


def _summary(evaluations: Sequence[dict]) -> dict:
    networks = compare(evaluations)
    unit = networks["unit"].iloc[0]
    columns = {
        "network": ("variant", str),
        "blocks": ("pattern", str),
        f"test {unit}": ("test", "{:.3f}".format),
        f"valid {unit}": ("valid", "{:.3f}".format),
        f"test {unit}, E-train": ("test_train_protocol", "{:.3f}".format),
        "ms": ("latency_ms", milliseconds),
        "speed-up": ("speed_up", "{:.2f}".format),
        "requested": ("target_requested", "{:g}".format),
        "measured": ("target_measured", "{:.3f}".format),
        "params": ("params", count),
        "active": ("active_params", count),
        "FLOPs/token": ("flops", count),
    }
    rows = [[cell(row[key], show) for key, show in columns.values()] for _, row in networks.iterrows()]
    marks = [parse_variant(evaluation["variant"]).method == "baseline" for evaluation in evaluations]
    return table(list(columns), rows, text=("network", "blocks"), marks=marks)


def _summary_note(evaluation: dict) -> str:
    final, train = (evaluation["quality"][name] for name in ("final", "train"))
    unit = evaluation["quality"]["unit"]
    return (
        f"Quality in {UNITS[unit]} ({unit}), lower is better: every token sees {final['mem_len'] + 1} positions "
        f"(E-final), or segments of {train['tgt_len']} with a memory of {train['mem_len']} as in training (E-train). "
        f"A bigram model scores {evaluation['reference']['bigram'][unit]:.3f} {unit} on the test split. "
        "Latency is the median of one call, measured alternately with the baseline in one process. Requested and "
        "measured are fractions of the baseline's latency. Active parameters are those used for one token."
    )


def _network_sections(evaluations: Sequence[dict]) -> list[dict]:
    """The networks, and how they were found."""
    return [
        section(
            "Quality against latency",
            "Down and to the left is better. Dashed lines mark the baseline.",
            "quality_latency",
        ),
        section(
            "Architectures",
            "Blocks from the embedding (left) to the head (right). s4 is attention with four heads, f a feed-forward "
            "layer, m2 a mixture of experts with two experts per token; grey is skipped. The height of attention "
            "is its number of heads.",
            "architectures",
        ),
        section(
            "Search",
            "How every network was chosen. The chosen network's latency is estimated by the latency table and measured "
            "before training. Slack is the part of the target that the estimate leaves unused. The search cost is its "
            "time over that of one training of the baseline. Where proxy training decided between candidates, all of "
            "them are listed. Below, health over epochs: a working search lowers the entropy of its architecture "
            "weights, does not choose skip everywhere, and ends near its budget (dashed).",
            "search_health",
            *search_tables(evaluations),
            *proxy_training_tables(evaluations),
            *path_tables(evaluations),
        ),
        section(
            "Results of the search",
            "Left, the probabilities by the architecture weights; right, how much the supernet's loss falls (blue) or "
            "rises (orange) when one option is switched in the incumbent of the last round, 0 where it keeps its "
            "option. That round may have found a better incumbent, which has no scores. Rings mark the chosen network.",
            "choices",
        ),
        section(
            "Training of the supernet",
            "Options and experts with few updates cannot be judged: 1 is an even share. Attention options can share "
            "their heads and mixtures of experts their experts, which several options then train. With fair sampling "
            "all kinds are sampled equally often, skip half as often.",
            "updates",
        ),
    ]


def _measured_sections(evaluations: Sequence[dict], additivity: dict) -> list[dict]:
    """Measurements of blocks, trainings and thresholds."""
    return [
        section(
            "Latency of the blocks",
            "The latency table that the search reads. Cached attention keeps keys and values of the memory, recomputed "
            "attention projects the memory's hidden states in every call.",
            "block_latencies",
        ),
        section(
            "Latency of mixtures of experts by load",
            "The search assumes balanced experts. Skewed loads are like those of a trained router, 1 / (rank + 1). At "
            "worst all tokens go to the same experts. Dashed, the feed-forward layer.",
            "routings",
        ),
        section(
            "Estimated against measured latency",
            "The sum of table entries against the whole network's measured latency, for random networks of the design "
            "space and for the networks of this report. Sums are scaled to the present speed of the device: for "
            f"the random networks by {additivity['slowdown']:.3f}, the change of stacks of equal blocks since the "
            f"table was measured; for the others by the baseline's. {_bar_sentence(additivity)}",
            "estimated_measured",
            _additivity_table(additivity),
        ),
        section(
            "Balance of the experts",
            "Left, the load-balancing loss, 1 for equal loads in a layer; right, each expert's share of "
            "its layer's assignments.",
            "expert_balance",
        ),
        section(
            "Starts of training",
            "Search and training from the trained baseline, which is also the teacher, and from random weights.",
            "starts",
        ),
        section(
            "Dynamic k",
            "Feed-forward layers, and attention projections where MLPs replaced them, split into experts; each token "
            "runs those whose predicted norm reaches tau times the largest one. FLOPs are relative to the same layers "
            "before conversion and contain the routers. The chosen threshold (shaded) is the one with the fewest FLOPs "
            "whose validation nll is at most "
            f"{evaluations[0]['tolerance']:.1%} above the better of the dense network before sparsification and the "
            "network split into experts at tau = 0. All rows were measured alternately.",
            "dynamic_k",
            *map(sweep_table, evaluations),
        ),
    ]


def _additivity_table(additivity: dict) -> dict:
    measured, bar = [str(additivity["n"])], ["wanted"]
    for name, (_, show) in AGREEMENT.items():
        text = show.format(additivity[name])
        if name in additivity["intervals"]:
            text += " ({} to {})".format(*(show.format(end) for end in additivity["intervals"][name]))
        measured.append(text)
        relation = "at least" if name == "pearson_r" else "at most"
        bar.append(f"{relation} {show.format(additivity['bar'][name])}" if name in additivity["bar"] else "")
    return table(["networks", *(title for title, _ in AGREEMENT.values())], [measured, bar])


def _bar_sentence(additivity: dict) -> str:
    """Whether the bars are met, and which of them are looser than those of an idle device."""
    bar, short = additivity["bar"], missed(additivity, additivity["bar"])
    text = f"Missed: {', '.join(AGREEMENT[name][0] for name in short)}." if short else "All bars are met."
    loosened = [
        f"{AGREEMENT[name][0]} {AGREEMENT[name][1].format(bar[name])} instead of "
        f"{AGREEMENT[name][1].format(IDLE_BAR[name])}"
        for name in missed(bar, IDLE_BAR)
    ]
    return text + (f" Bars were loosened: {', '.join(loosened)}." if loosened else "")


def _provenance(evaluations: Sequence[dict]) -> dict:
    columns = ["network", "commit", "config", "seed", "device", "dtype", "versions", "wall time of the stages"]
    rows = []
    for evaluation in evaluations:
        source = evaluation["provenance"]
        versions = ", ".join(f"{name} {version}" for name, version in source["versions"].items())
        seconds = ", ".join(f"{stage} {value:.0f} s" for stage, value in source["wall_seconds"].items())
        known = [
            source["git_commit"][:12],
            source["config_hash"],
            str(source["seed"]),
            source["device"],
            source["dtype"],
        ]
        rows.append([evaluation["variant"], *known, versions, seconds])
    return section("Provenance", "Where the numbers come from.", "", table(columns, rows, text=columns))
