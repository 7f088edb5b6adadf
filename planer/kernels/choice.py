"""Which backend ``auto`` is: the fastest in a table of measurements of the device at hand; nothing is timed in a run.

A table is a file planer/kernels/<operation>/<device>.json, written by ``python -m planer.kernels.tune``.  Each of its
rows gives, for one kind of input, backends from the fastest to the slowest; a call takes the row nearest to it in
tokens, expert size and executed share.  The choice follows from the call alone, so that a run repeats bit by bit;
between two tables results differ by rounding.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch

from planer.errors import Damaged
from planer.files import read_json

FOLDER = Path(__file__).parent

DEFAULTS = {
    ("expert_ffn", "cpu"): ("cpp", "loop"),
    ("expert_ffn", "cuda"): ("grouped_mm", "loop"),
    ("dynamic_ffn", "cpu"): ("cpp", "masked_dense"),
    ("dynamic_ffn", "cuda"): ("masked_dense",),
    ("neuron_threshold", "cpu"): ("fused", "masked_dense"),
    ("neuron_threshold", "cuda"): ("masked_dense",),
}
"""Backends where no table has a row for such a call: right everywhere, and never far from the fastest."""

KEYS = {"dtype", "mode", "tokens", "expert_size", "share", "backends"}
"""What every row of a table has."""

MIN_SHARE = 2**-12
"""Smaller shares count as this."""

log = logging.getLogger(__name__)


@cache
def order(
    operation: str,
    device: torch.device,
    dtype: torch.dtype,
    mode: str,
    tokens: int,
    expert_size: int,
    share: float | None,
) -> tuple[str, ...]:
    """Backends for a call, the best first; the caller takes the first that can run it.  Logged once a kind of call.

    operation: expert_ffn, dynamic_ffn or neuron_threshold.  mode: inference or training.  expert_size: neurons.  share:
    executed part of all (token, expert) pairs, or None where it is not known, or not without making a GPU wait.
    """
    name = device_class(device)
    rows = _rows(table_path(operation, name))
    row = nearest(rows, str(dtype).removeprefix("torch."), mode, tokens, expert_size, share)
    result = tuple(row["backends"]) if row else DEFAULTS[operation, device.type]
    executed = "" if share is None else f", {share:.3g} of the experts"
    call = f"{operation}, {mode}, {tokens} tokens, experts of {expert_size}{executed}, {dtype}, {name}"
    log.info("%s: %s%s", call, " then ".join(result), "" if row else " (no table)")
    return result


def is_measured(operation: str, device: torch.device) -> bool:
    """Whether times decided the backends for a device: false where its table says that it was not measured."""
    path = table_path(operation, device_class(device))
    return not path.exists() or read_json(path).get("measured") is not False


def nearest(
    rows: Iterable[dict], dtype: str, mode: str, tokens: int, expert_size: int, share: float | None
) -> dict | None:
    """The row of this dtype and mode whose sizes are least apart, in powers of two; None without any."""

    def distance(row: dict) -> float:
        sizes = [(tokens, row["tokens"]), (expert_size, row["expert_size"])]
        if share is not None and row["share"] is not None:
            sizes.append((max(share, MIN_SHARE), row["share"]))
        return sum(abs(math.log2(max(ours, MIN_SHARE) / theirs)) for ours, theirs in sizes)

    same = (row for row in rows if (row["dtype"], row["mode"]) == (dtype, mode))
    return min(same, key=distance, default=None)


def bucket(share: float) -> float:
    """The nearest power of the square root of two, so that shares that hardly differ make one kind of call."""
    return 2 ** (round(2 * math.log2(max(share, MIN_SHARE))) / 2)


def device_class(device: torch.device) -> str:
    """What tables are named after: a GPU's name, or the widest vector instructions of a CPU that PyTorch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {torch.backends.cpu.get_cpu_capability()}"


def table_path(operation: str, name: str) -> Path:
    """Where the table of an operation for a class of devices is."""
    return FOLDER / operation / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.json"


@cache
def _rows(path: Path) -> list[dict]:
    if not path.exists():
        return []
    try:
        rows = read_json(path).get("rows")
        if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= KEYS for row in rows):
            raise Damaged(path, f"lists no rows with {', '.join(sorted(KEYS))}")
    except Damaged as error:
        raise Damaged(path, error.problem, "make it anew: python -m planer.kernels.tune") from error
    return rows
