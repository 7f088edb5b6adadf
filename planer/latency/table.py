"""The latency table: the cost of every block on one device for one workload.

One row per (option, attention, routing, batch, execution).  A network's estimated latency is that of embedding and head
plus the sum of its blocks, with balanced routing, in the workload's execution mode.  Options without attention cost the
same in both attention modes; they are measured once and listed under both.  Rows of the execution ``decode`` are calls
of one token by the decode engine, with cached attention and balanced routing.  The table's identity (device, software,
threads, shapes) is in the Parquet file's metadata, because the numbers hold for nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from planer.config import ATTENTIONS, ModelConfig, WorkloadConfig
from planer.config.latency import DECODE
from planer.errors import Damaged, UserError, remake
from planer.files import parse_json, read_parquet, write_parquet
from planer.latency.routings import ROUTINGS
from planer.runtime import Runtime, device_name
from planer.specs import EMBEDDING_AND_HEAD, Architecture, kinds

COLUMNS = {
    "option": "text",
    "device": "text",
    "dtype": "text",
    "batch": "integer",
    "tgt_len": "integer",
    "mem_len": "integer",
    "attention": "text",
    "execution": "text",
    "routing": "text",
    "median_ms": "number",
    "p10_ms": "number",
    "p90_ms": "number",
    "n": "integer",
}
"""Names and types."""
MAX_MS = 1e7
"""Largest plausible cost: three hours."""


@dataclass
class LatencyTable:
    """Costs in ms, their identity, and notes on the measurement."""

    rows: pd.DataFrame
    """COLUMNS.  Options are blocks, of which ``skip`` is 0 by construction, and EMBEDDING_AND_HEAD.  Routing is
    ``balanced``; mixtures of experts have further rows with other routings (``planer.latency.routings``)."""
    identity: dict
    """Result of ``identity`` where the table was measured."""
    notes: dict
    """Copies per stack and their times (``stacks_ms``), rounds, drift of the control stack, spread; not compared.
    They are those of the target's workload; ``others`` lists those of other batch sizes and execution modes."""
    path: str = "the latency table"
    """Its file, for messages."""

    def __post_init__(self) -> None:
        self._costs = {
            (row.option, row.attention, row.batch, row.execution): float(row.median_ms)
            for row in self.rows[self.rows["routing"] == ROUTINGS[0]].itertuples()
        }

    @property
    def headline_rows(self) -> pd.DataFrame:
        """The rows of the target's workload under balanced routing: one per option and attention mode."""
        rows = self.workload_rows
        return rows[rows["routing"] == ROUTINGS[0]]

    @property
    def workload_rows(self) -> pd.DataFrame:
        """The rows of the target's workload under every routing."""
        same = (self.rows["execution"] == self.identity["execution"]) & (self.rows["batch"] == self.identity["batch"])
        return self.rows[same]

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read what save() wrote.

        Raises UserError when the file is missing, damaged or changed, or holds no complete table of plausible costs.
        """
        rows, metadata = read_parquet(path, COLUMNS)
        sides = parse_json(path, metadata.get("identity", ""), "latency_identity")
        notes = parse_json(path, metadata.get("notes", ""), "latency_notes")
        if problem := _problem(rows, sides):
            raise Damaged(path, problem)
        return cls(rows, sides, notes, str(path))

    def save(self, path: str | Path) -> None:
        """Write Parquet, identity and notes in its metadata."""
        metadata = {"identity": json.dumps(self.identity), "notes": json.dumps(self.notes)}
        write_parquet(path, self.rows[list(COLUMNS)], metadata)

    def check(self, identity: dict) -> None:
        """Raise UserError, naming both sides, unless the table was measured under this identity."""
        different = [key for key in identity | self.identity if identity.get(key) != self.identity.get(key)]
        if different:
            sides = (self.identity, identity)
            there, here = (", ".join(f"{key} {side.get(key, 'unknown')}" for key in different) for side in sides)
            raise UserError(f"{self.path} was measured with {there}, but this run has {here}; {remake(self.path)}")

    def lookup(self, option: str, attention: str, batch: int | None = None, execution: str | None = None) -> float:
        """Cost in ms of an option, or of EMBEDDING_AND_HEAD, under cached or recomputed attention.

        batch, execution: those of the target's workload by default.  Raises UserError when this was not measured.
        """
        calls = batch or self.identity["batch"], execution or self.identity["execution"]
        if (option, attention, *calls) not in self._costs:
            batches = sorted({size for *_, size, mode in self._costs if mode == calls[1]})
            if calls[0] not in batches:
                sizes = ", ".join(map(str, batches)) or "none"
                raise UserError(
                    f"{self.path} has no batch {calls[0]} with {calls[1]} execution; it has: {sizes}; "
                    "profile_blocks.batches adds more"
                )
            names = ", ".join(name for name, *setting in self._costs if setting == [attention, *calls])
            raise UserError(f"{self.path} has no {option!r} with {attention} attention; it has: {names or 'nothing'}")
        return self._costs[option, attention, *calls]

    def estimate(
        self, architecture: Architecture, attention: str, batch: int | None = None, execution: str | None = None
    ) -> float:
        """Latency in ms of a network: the exact sum of embedding, head and blocks, independent of their order.

        batch, execution: as in ``lookup``.  Raises UserError when the network's shapes or these calls were not
        measured.
        """
        shapes = {key: getattr(architecture, key) for key in ("vocab_size", "d_model", "norm")}
        shapes |= {"head": architecture.head.label}
        for block in architecture.blocks:
            shapes |= block.shapes()
        for key, value in shapes.items():
            if self.identity[key] != value:
                raise UserError(
                    f"{self.path} was measured for {key} {self.identity[key]}, but the network has {value}; "
                    "use the table of the network's experiment"
                )
        names = (EMBEDDING_AND_HEAD, *(block.name for block in architecture.blocks))
        return math.fsum(self.lookup(name, attention, batch, execution) for name in names)


def identity(runtime: Runtime, workload: WorkloadConfig, model: ModelConfig, vocab_size: int) -> dict:
    """Everything besides the block that a latency depends on: device, software, threads, type and shapes.

    batch, tgt_len, mem_len and execution are those of the target's workload; ``other`` is the other one, if there is.
    """
    target, *others = workload.measured
    shapes = ("d_model", "num_heads", "d_inner", "num_experts", "norm")
    return {
        "device": device_name(runtime.device),
        "driver": _driver(runtime.device),
        "torch": torch.__version__,
        "triton": _triton_version(),
        "threads": torch.get_num_threads(),
        "dtype": str(runtime.dtype).removeprefix("torch."),
        "batch": target.batch,
        "tgt_len": target.tgt_len,
        "mem_len": target.mem_len,
        "execution": target.execution,
        **{key: getattr(model, key) for key in shapes},
        "vocab_size": vocab_size,
        "head": model.head.label,
        **({"blocks": json.dumps(model.blocks, sort_keys=True)} if model.blocks else {}),
        **({"other": json.dumps(dataclasses.asdict(others[0]), sort_keys=True)} if others else {}),
    }


def _driver(device: torch.device) -> str:
    """Version of NVIDIA's kernel driver; ``none`` on a CPU."""
    if device.type != "cuda":
        return "none"
    try:
        match = re.search(r"\d+\.\d+(\.\d+)?", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        match = None
    return match[0] if match else "unknown"


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "none"
    return triton.__version__


def free_options() -> list[str]:
    """Options that do nothing, whose latency is 0."""
    return [name for name, kind in kinds().items() if kind.identity]


def _problem(rows: pd.DataFrame, sides: Mapping) -> str | None:
    """What is wrong with a table's rows; None when they are complete, plausible and fit the identity."""
    workloads = ["batch", "execution"]
    keys = [*workloads, "option", "attention", "routing"]
    alike = rows[(rows["execution"] == DECODE) == (sides["execution"] == DECODE)]
    for column, part in {"device": rows, "dtype": rows, "tgt_len": alike, "mem_len": alike}.items():
        if not (part[column] == sides[column]).all():
            return f"contradicts itself: its rows are of another {column} than its identity"
    for column, allowed in {"attention": ATTENTIONS, "routing": ROUTINGS}.items():
        if unknown := set(rows[column]) - set(allowed):
            return f"has the {column} {min(unknown)[:80]!r}; allowed: {', '.join(allowed)}"
    always_free = free_options()
    for row in rows.itertuples():
        free, ms = row.option in always_free, row.median_ms
        if ms != 0 if free else not 0 < ms < MAX_MS:
            return f"says that {row.option[:80]} costs {ms:g} ms; it must be {'0' if free else 'above 0'}"
        if not row.p10_ms <= ms <= row.p90_ms or row.n < 1:
            return f"has quantiles of {row.option[:80]} that are out of order, or none"
    if rows.duplicated(keys).any():
        return f"has two rows of {rows[rows.duplicated(keys)]['option'].iloc[0][:80]}"
    found = {workload: set(zip(*part[keys[2:]].values.T, strict=True)) for workload, part in rows.groupby(workloads)}
    headline = found.setdefault((sides["batch"], sides["execution"]), set())
    options = {option for option, _, _ in headline} | {EMBEDDING_AND_HEAD, *always_free}
    uneven = {option for part in found.values() for option, _, routing in part if routing != ROUTINGS[0]}
    for (batch, execution), part in found.items():
        decodes = execution == DECODE
        wanted = {(o, a, ROUTINGS[0]) for o in options for a in (ATTENTIONS[:1] if decodes else ATTENTIONS)}
        wanted |= set() if decodes else {(o, a, r) for o in uneven for a in ATTENTIONS for r in ROUTINGS}
        if wanted - part:
            return f"lacks rows for batch {batch}, {execution}, such as {', '.join(min(wanted - part))[:80]}"
    return None
