"""The architecture of a pattern, and what architecture.yaml notes of every network."""

from __future__ import annotations

from types import SimpleNamespace

from planer.config.variant import Variant
from planer.latency.table import LatencyTable
from planer.specs import Architecture


def pattern_network(
    config: SimpleNamespace, variant: Variant, vocab_size: int, table: LatencyTable
) -> tuple[Architecture, dict]:
    """The architecture of a pattern, and its notes.  config: the sections model, patterns and workload."""
    network = config.model.architecture(vocab_size, config.patterns.of(variant.pattern))
    notes = {"chosen_by": "pattern", "target": None}
    return network, noted(config, variant, network, table, notes)


def noted(config: SimpleNamespace, variant: Variant, network: Architecture, table: LatencyTable, notes: dict) -> dict:
    """Notes with the network's latency by the table, as architecture.yaml keeps them."""
    attention = config.workload.target.attention
    baseline = config.model.architecture(network.vocab_size, config.patterns.baseline)
    estimated_ms, reference_ms = (table.estimate(one, attention) for one in (network, baseline))
    latency = {
        "attention": attention,
        "estimated_ms": estimated_ms,
        "baseline_ms": reference_ms,
        "estimated": estimated_ms / reference_ms,
    }
    return {"selection": {"variant": variant.name, **notes, **latency}}
