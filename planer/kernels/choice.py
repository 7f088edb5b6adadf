"""Which backend ``auto`` is: the fastest in a table of measurements of the device at hand, and nothing at run time.

A table is a file planer/kernels/tables/<device>.json, written by ``python -m planer.kernels.tune``.  Each of its rows
gives, for one operation on one kind of input, backends from the fastest to the slowest; a call takes the row nearest
to it in tokens, expert size and executed share.  The choice follows from the call alone, so that a run repeats bit by
bit; between two tables results differ by rounding.
"""

from __future__ import annotations

import json
import logging
import math
import re
from functools import cache
from pathlib import Path

import torch

from planer.kernels import tables

FOLDER = Path(tables.__file__).parent

DEFAULTS = {
    ("expert_ffn", "cpu"): ("cpp", "loop"),
    ("expert_ffn", "cuda"): ("grouped_mm", "loop"),
    ("dynamic_ffn", "cpu"): ("cpp", "masked_dense"),
    ("dynamic_ffn", "cuda"): ("masked_dense",),
}
"""Backends where no table has a row for such a call: right everywhere, and never far from the fastest."""

log = logging.getLogger(__name__)


def order(operation: str, device: torch.device, dtype: torch.dtype, mode: str, **sizes: float) -> tuple[str, ...]:
    """Backends for a call, the best first; the caller takes the first that can run it.

    operation: expert_ffn or dynamic_ffn.  mode: inference or training.  sizes: tokens; expert_size, in neurons; share,
    the executed part of all (token, expert) pairs, left out where asking for it would make a GPU wait.
    """
    return _order(operation, device_class(device), device.type, dtype, mode, tuple(sorted(sizes.items())))


def device_class(device: torch.device) -> str:
    """What tables are named after: a GPU's name, or the widest vector instructions of a CPU that PyTorch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {torch.backends.cpu.get_cpu_capability()}"


def table_path(device_name: str, folder: Path = FOLDER) -> Path:
    """Where the table of a class of devices is."""
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', device_name.lower())}.json"


@cache
def _order(
    operation: str, name: str, kind: str, dtype: torch.dtype, mode: str, sizes: tuple[tuple[str, float], ...]
) -> tuple[str, ...]:
    row = nearest(_table(table_path(name)), operation, str(dtype).removeprefix("torch."), mode, dict(sizes))
    result = tuple(row["backends"]) if row else DEFAULTS[operation, kind]
    asked = ", ".join(f"{key} {value:.4g}" for key, value in sizes)
    log.info("%s: %s, %s, %s on %s: %s", operation, asked, dtype, mode, name, " then ".join(result))
    return result


@cache
def _table(path: Path) -> list[dict]:
    return json.loads(path.read_text())["rows"] if path.exists() else []


def nearest(rows: list[dict], operation: str, dtype: str, mode: str, sizes: dict[str, float]) -> dict | None:
    """The row of this operation, dtype and mode whose sizes are least apart, in powers of two; None without any.

    A size that the call or the row does not name does not count.
    """

    def distance(row: dict) -> float:
        named = sizes.keys() & row.keys()
        return sum(abs(math.log2(max(sizes[key], 1e-4) / max(row[key], 1e-4))) for key in named)

    same = (row for row in rows if (row["operation"], row["dtype"], row["mode"]) == (operation, dtype, mode))
    return min(same, key=distance, default=None)
