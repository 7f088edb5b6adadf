"""What a trained network is, in lines for people: for ``python -m planer info`` and for model cards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from planer.config.thresholds import row_at
from planer.models.network import Surroundings, read_architecture, surroundings_of


def describe(folder: str | Path, vocab: str | Path | None = None) -> Iterator[tuple[str, str]]:
    """Names and values.  Weights are not read.  Raises UserError as ``planer.load``."""
    architecture = read_architecture(folder)
    around = surroundings_of(folder, architecture.vocab_size, vocab)
    yield "blocks", f"{architecture.pattern} ({len(architecture.blocks)})"
    yield "parameters", f"{architecture.params():,}, of which one token uses {architecture.active_params():,}"
    yield "d_model", f"{architecture.d_model}"
    yield "tokens", _vocabulary(architecture.vocab_size, around)
    if taus := {block.tau for block in architecture.blocks if hasattr(block, "tau")}:
        yield "tau", ", ".join(f"{tau:g}" for tau in sorted(taus))
    yield "memory", f"{around.mem_len:,} tokens" + ("" if around.evaluation else " (no eval.json says otherwise)")
    if around.evaluation:
        yield from figures(around.evaluation)


def _vocabulary(size: int, around: Surroundings) -> str:
    found = around.vocabulary
    return f"{size:,} {found.kind}, {found.source}" if found else f"{size:,}, no vocab.json found"


def figures(evaluation: Mapping) -> Iterator[tuple[str, str]]:
    """Measured figures of an eval.json: quality, speed, the thresholds' best."""
    quality, unit = evaluation["quality"], evaluation["quality"]["unit"]
    device = evaluation["provenance"]["device"]
    yield "variant", f"{evaluation['experiment']}/{evaluation['variant']}"
    for split in ("valid", "test"):
        yield split, f"{quality['final'][split][unit]:.4g} {unit} (dense, mem_len {quality['final']['mem_len']:,})"
    yield "speed", _beside(evaluation["summary"]["dense"], device)
    for row in evaluation["latency"]:
        if row["execution"] == "decode":
            yield "decoding", f"{row['tokens_per_second']:,.0f} tokens per second, batch {row['batch']}, on {device}"
    if converted := evaluation["summary"]["converted"]:
        chosen = row_at(evaluation["dynamic_k"], converted["tau"])
        yield "converted", f"test {chosen['test'][unit]:.4g} {unit} at tau {converted['tau']:g}"
        yield "its speed", _beside(converted, device)


def _beside(entry: Mapping, device: str) -> str:
    share = "" if entry["nll_ratio"] is None else f" at {entry['nll_ratio']:.1%} of its test nll"
    return f"{entry['speed_up']:.2f} times the baseline's{share}, on {device}"
