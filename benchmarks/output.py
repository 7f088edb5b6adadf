"""What benchmarks write: tables on standard output, results in benchmarks/results/<device>-<date>.json."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import torch

from planer.files import write_json

RESULTS = Path(__file__).parent / "results"


def table(title: str, head: list[str], lines: list[list[str]]) -> None:
    """Print a table; columns as wide as they need to be."""
    print(f"\n{title}")
    widths = [max(len(row[i]) for row in (head, *lines) if i < len(row)) for i in range(len(head))]
    for row in (head, *lines):
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False)).rstrip())


def write_results(folder: Path, device: str, content: dict, suffix: str = "") -> None:
    """Write results under the device's name and the date, and say where."""
    date = datetime.date.today().isoformat()
    path = folder / f"{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}{suffix}-{date}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"device": device, "torch": torch.__version__, "date": date, **content})
    print(f"written: {path}")
