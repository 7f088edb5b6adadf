"""eval.json: quality, latency and FLOPs of one variant beside the baseline's, over a range of dynamic-k thresholds."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from planer.config import Experiment, Workload
from planer.config.thresholds import row_at
from planer.config.variant import Variant, parse_variant
from planer.conversion.thresholds import nll_name, threshold_of
from planer.data.ngram import bigram_nll
from planer.data.texts import Texts
from planer.evaluation.dynamic_k import compare_threshold, sweep, timed_at
from planer.evaluation.flops import checked_flops
from planer.evaluation.inference import excerpts, latency_row
from planer.evaluation.quality import from_nll, in_unit, protocols, quality, unit_of
from planer.git import git_commit
from planer.latency.networks import random_model, timed_forward
from planer.latency.table import LatencyTable, identity
from planer.measure import by_round, measure_placed, summary
from planer.models import LanguageModel, load
from planer.runtime import Runtime
from planer.specs import Architecture
from planer.tasks.nll import Protocol

SCORED = ("valid", "test")
WARMUP = 3
"""Untimed rounds before a latency measurement."""
MAX_SECONDS = 120.0
"""A latency measurement stops after this long, at a whole round."""
SEARCH_BAR = 1.0
"""A search should take at most this many trainings of the baseline."""
SEARCH_STAGES = ("search", "choice", "teacher")
"""What finding a network takes: training the supernet; scores, measurements and proxy training; the teacher's
outputs."""


@dataclass(frozen=True)
class Subject:
    """A variant whose training has finished, and what its stages left."""

    experiment: str
    variant: str
    folders: tuple[Path, Path, Path]
    """Of the dense network, of the same after sparsification, and of the converted one with routers and threshold."""
    selection: Mapping
    """The notes of the variant's architecture.yaml."""
    stages: Mapping[str, Mapping]
    """Metrics of every stage by name, of which ``seconds`` and ``reason`` are used, and of ``routers`` the validation
    nll at every threshold."""


@dataclass(frozen=True)
class Baseline:
    """What a variant is compared with."""

    architecture: Architecture
    """Measured in turn with the variant under random weights, which for a dense network take as long as trained
    ones."""
    evaluation: Mapping | None
    """Its eval.json; None when there is none yet, or when the variant is the baseline."""
    seconds: float
    """Of its training."""


def evaluate(
    config: Experiment | SimpleNamespace,
    subject: Subject,
    baseline: Baseline,
    table: LatencyTable,
    texts: Texts,
    runtime: Runtime,
) -> dict:
    """Evaluate one variant; the result is valid against planer/schemas/eval.schema.json.

    config: the sections data, model, workload, retrain and evaluate are read.
    Raises UserError when a network is damaged, the latency table belongs to another device or workload, or a split is
    too short.
    """
    started, stages = time.perf_counter(), subject.stages
    named = parse_variant(subject.variant)
    is_baseline = named.method == "baseline"
    dense, sparse, converted = (load(folder, runtime.device) for folder in subject.folders)
    run = _Run(config, table, texts, runtime)
    origin = identity(runtime, config.workload, config.model, dense.architecture.vocab_size)
    table.check(origin)
    known, flops = run.quality(dense), run.flops(dense, baseline.architecture)
    baseline_quality = known if is_baseline else (baseline.evaluation or {}).get("quality")
    reference = dense if is_baseline else random_model(baseline.architecture, runtime)
    latency, baseline_latency = run.latency(dense, reference)
    networks = {"dense": dense, "sparsified": sparse}
    networks |= {} if is_baseline else {"baseline": reference}
    rows, conversion = run.conversion(networks, converted, known["final"], flops["closed_form"], stages)
    seconds = {name: metrics["seconds"] for name, metrics in stages.items() if "seconds" in metrics}
    reason = next((metrics["reason"] for metrics in stages.values() if "reason" in metrics), None)
    blocks = [{"kind": b.kind, "option": b.name, "symbol": b.symbol} for b in dense.architecture.blocks]
    return {
        "experiment": subject.experiment,
        "variant": subject.variant,
        "tolerance": config.evaluate.tolerance,
        "architecture": _size(dense.architecture) | {"blocks": blocks},
        "quality": known,
        "latency": latency,
        "target": _target(named, subject.selection, next(row for row in latency if row["headline"])),
        "selection": None if named.pattern else _selection(subject.selection),
        "search": _search_cost(seconds, baseline.seconds),
        "flops": flops,
        "dynamic_k": rows,
        "conversion": conversion | {"reason": None if conversion["converted_layers"] else reason},
        "summary": _summary(known, baseline_quality, rows, conversion),
        "reference": {"bigram": run.bigram(dense.architecture.vocab_size)},
        "baseline": _size(baseline.architecture) | {"quality": baseline_quality, "latency": baseline_latency},
        "provenance": _provenance(config, origin, runtime.seed, seconds | {"evaluate": time.perf_counter() - started}),
    }


@dataclass(frozen=True)
class _Run:
    """What every part of an evaluation needs."""

    config: Experiment | SimpleNamespace
    table: LatencyTable
    texts: Texts
    runtime: Runtime

    @property
    def unit(self) -> str:
        return unit_of(self.config.data)

    @property
    def protocols(self) -> dict[str, Protocol]:
        return protocols(self.config.evaluate, self.config.retrain)

    def scores(self, model: LanguageModel, protocol: Protocol, description: str) -> tuple[dict[str, dict], dict]:
        """Quality on the validation and the test split, and the segments of the test split."""
        texts = {split: getattr(self.texts, split) for split in SCORED}
        found = {
            split: quality(model, text, protocol, self.runtime, description=f"{description}, {split}")
            for split, text in texts.items()
        }
        return {split: in_unit(score, self.unit) for split, score in found.items()}, found["test"]["segments"]

    def quality(self, model: LanguageModel) -> dict:
        """Quality by both protocols, and the segments of the test split by the final one."""
        found = {name: (way, *self.scores(model, way, f"quality, {name}")) for name, way in self.protocols.items()}
        known = {name: dataclasses.asdict(way) | scores for name, (way, scores, _) in found.items()}
        return {"unit": self.unit, **known, "segments": found["final"][2]}

    def timed(self, model: LanguageModel, workload: Workload) -> Callable[[], object]:
        """An inference call of a model in this run's dtype, on test text: trained routers would treat other text
        differently."""
        text = excerpts(self.texts.test, workload)
        return timed_forward(model, workload, self.runtime, workload.attention, text)

    def in_turn(self, build: Callable[[], Mapping[str, Callable[[], object]]], what: str) -> dict[str, dict]:
        """Latencies of calls that take turns; ``build`` makes them, each time of other copies of the networks."""
        rounds, seed = self.config.evaluate.latency_rounds, self.runtime.derive(what)
        how = (rounds, WARMUP, seed, MAX_SECONDS, self.runtime.device, f"latency of {what}")
        samples = by_round(measure_placed(lambda number: build(), *how))
        return {name: summary(samples[name]) for name in samples}

    def latency(self, model: LanguageModel, baseline: LanguageModel) -> tuple[list[dict], list[dict]]:
        """Rows of the network and of the baseline, one per kind of calls and attention mode, measured in turn.

        Leaves both models in this run's dtype.
        """
        model, baseline = model.to(self.runtime.dtype), baseline.to(self.runtime.dtype)
        networks = {"network": model} if model is baseline else {"network": model, "baseline": baseline}
        modes = {
            f"{work.execution}/{mode}": dataclasses.replace(work, attention=mode)
            for work in self.config.workload.measured
            for mode in work.attentions
        }

        def calls() -> dict[str, Callable[[], object]]:
            placed = copy.deepcopy(networks)
            return {f"{key}/{name}": self.timed(placed[name], work) for key, work in modes.items() for name in placed}

        found, rows, baseline_rows = self.in_turn(calls, "network and baseline"), [], []
        for key, work in modes.items():
            own = found[f"{key}/network"] | {"table_ms": self._table_ms(model, work)}
            other = found.get(f"{key}/baseline", own) | {"table_ms": self._table_ms(baseline, work)}
            rows.append(latency_row(work, own, other, work == self.config.workload.target))
            baseline_rows.append({"attention": work.attention, "execution": work.execution} | other)
        return rows, baseline_rows

    def _table_ms(self, model: LanguageModel, work: Workload) -> float:
        return self.table.estimate(model.architecture, work.attention, work.batch, work.execution)

    def flops(self, model: LanguageModel, baseline: Architecture) -> dict:
        """FLOPs per token of the target's workload, and their ratio to the baseline's."""
        work = self.config.workload.target
        counted, formula = checked_flops(model, work)
        expected = baseline.flops(work.batch, work.tgt_len, work.mem_len, work.attention)
        return {
            "attention": work.attention,
            "counted": counted,
            "closed_form": formula,
            "baseline": expected,
            "baseline_ratio": formula / expected,
        }

    def conversion(
        self,
        networks: Mapping[str, LanguageModel],
        converted: LanguageModel,
        known: Mapping,
        flops: float,
        stages: Mapping[str, Mapping],
    ) -> tuple[list[dict], dict]:
        """The dynamic-k sweep, and how it compares with whole networks.

        networks: dense, sparsified, and baseline unless the dense network is the baseline.  known, flops: quality by
        the final protocol and FLOPs per token of the dense network.  stages: see evaluate.  Leaves all models in this
        run's dtype.
        """
        final = self.protocols["final"]
        before, _ = self.scores(networks["sparsified"], final, "sparsified")
        chosen = threshold_of(converted)
        taus = (*self.config.evaluate.taus, chosen)
        work = self.config.workload.target
        rows = list(sweep(converted, self.texts.test, taus, flops, final, self.runtime, work.reads))
        split = converted.to(self.runtime.dtype)
        whole = {name: model.to(self.runtime.dtype) for name, model in networks.items()}

        def calls() -> dict[str, Callable[[], object]]:
            placed, others = copy.deepcopy((split, whole))
            at_thresholds = timed_at(placed, self.timed(placed, work), [row["tau"] for row in rows])
            return at_thresholds | {name: self.timed(model, work) for name, model in others.items()}

        found = self.in_turn(calls, "thresholds")
        blocks = [(position, spec) for position, spec in enumerate(converted.architecture.blocks) if spec.dynamic]
        layers = [(position, layer) for position, spec in blocks for layer, _ in spec.layers().values()]

        def valid(tau: float) -> dict:
            """Measured by the routers stage, if there are routers."""
            if not layers:
                return before["valid"]
            return in_unit(from_nll(stages["routers"][nll_name(tau)], known["valid"]["tokens"]), self.unit)

        rows = [
            row
            | {"valid": valid(row["tau"]), "test": in_unit(row["test"], self.unit)}
            | {"latency": found[str(row["tau"])]}
            for row in rows
        ]
        return rows, {
            "converted_layers": len(layers),
            "blocks": [position for position, _ in layers],
            "num_experts": [layer.num_experts for _, layer in layers],
            "expert_size": [layer.expert_size for _, layer in layers],
            "baseline_latency": found.get("baseline", found["dense"]),
            "dense_latency": found["dense"],
            "sparsified": before,
            "sparsified_latency": found["sparsified"],
            "tau0_difference": rows[0]["test"]["nll"] - before["test"]["nll"],
            "chosen": compare_threshold(rows, chosen, {**known, "latency": found["dense"]}),
        }

    def bigram(self, vocab_size: int) -> dict:
        """What a smoothed bigram model scores on the test split."""
        nll = bigram_nll(self.texts.train, self.texts.test, vocab_size, self.texts.valid)
        return in_unit(from_nll(nll, len(self.texts.test) - 1), self.unit)


def _size(architecture: Architecture) -> dict:
    return {
        "pattern": architecture.pattern,
        "params": architecture.params(),
        "active_params": architecture.active_params(),
    }


def _target(variant: Variant, selection: Mapping, row: dict) -> dict | None:
    """Requested, estimated and measured latency over the baseline's, and what the closed loop measured before training.

    None for a variant without a target.
    """
    if variant.target is None:
        return None
    estimated = row["table_ms"] / row["baseline_table_ms"]
    return {
        "requested": variant.target,
        "estimated": estimated,
        "measured": row["median_ms"] / row["baseline_median_ms"],
        "slack": (variant.target - estimated) / variant.target,
        "rounds": [
            {name: entry[name] for name in ("budget", "estimated", "measured")}
            for entry in selection.get("closed_loop", [])
        ],
    }


def _selection(notes: Mapping) -> dict:
    """How the network was chosen."""
    options = notes.get("score_options", [])
    return {
        "chosen_by": notes["chosen_by"],
        "source": notes["source"],
        **{name: notes.get(name) for name in ("scored_by", "status", "gap")},
        "used": notes["used"],
        "incumbents": [
            {"blocks": [options[option] for option in entry["options"]], "supernet_nll": entry["supernet_nll"]}
            for entry in notes.get("rounds", [])
        ],
        "candidates": notes["candidates"],
        "path": notes.get("path", []),
    }


def _search_cost(seconds: Mapping[str, float], baseline_seconds: float) -> dict | None:
    """Seconds of the stages that found the network, over one training of the baseline; None where nothing chose it."""
    if "choice" not in seconds:
        return None
    stages = {name: seconds[name] for name in SEARCH_STAGES if name in seconds}
    total = sum(stages.values())
    ratio = total / baseline_seconds
    return {"stages": stages, "seconds": total, "baseline_seconds": baseline_seconds, "ratio": ratio, "bar": SEARCH_BAR}


def _summary(known: Mapping, baseline: Mapping | None, rows: list[dict], conversion: Mapping) -> dict:
    """Speed over the baseline's and nll over the baseline's, of the dense network and of the chosen threshold.

    known, baseline: quality of the network and of the baseline, the latter None where it was not evaluated.
    """

    def beside(latency: Mapping, nll: float) -> dict:
        return {
            "speed_up": conversion["baseline_latency"]["median_ms"] / latency["median_ms"],
            "nll_ratio": nll / baseline["final"]["test"]["nll"] if baseline else None,
        }

    chosen = conversion["chosen"]
    row = chosen and row_at(rows, chosen["tau"])
    return {
        "dense": beside(conversion["dense_latency"], known["final"]["test"]["nll"]),
        "converted": row and {"tau": row["tau"]} | beside(row["latency"], row["test"]["nll"]),
    }


def _provenance(config: Experiment | SimpleNamespace, origin: Mapping, seed: int, seconds: Mapping[str, float]) -> dict:
    """Where the numbers come from; origin: the identity of device, libraries and network."""
    return {
        "git_commit": git_commit(),
        "config_hash": config_hash(config),
        "device": origin["device"],
        "dtype": origin["dtype"],
        "versions": {"python": platform.python_version(), "numpy": np.__version__}
        | {name: origin[name] for name in ("torch", "triton", "driver")},
        "seed": seed,
        "wall_seconds": seconds,
    }


def config_hash(config: Experiment | SimpleNamespace) -> str:
    """16 hexadecimal digits that change with any value of the configuration."""
    text = json.dumps(vars(config), default=dataclasses.asdict, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
