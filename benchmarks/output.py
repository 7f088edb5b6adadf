"""What benchmarks have in common: their command lines, tables on standard output, and results in
benchmarks/results/<device>-<date>.json."""

from __future__ import annotations

import argparse
import datetime
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from planer.errors import UserError
from planer.files import write_json

RESULTS = Path(__file__).parent / "results"


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not (text.isascii() and text.isdigit() and 0 < int(text[:10]) < 10**9):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 to 999,999,999")
    return int(text)


def start(main: Callable[[], None]) -> None:
    """Run a benchmark.  A user's mistake ends it with one line."""
    try:
        main()
    except UserError as error:
        sys.exit(f"planer: {error}")
    except KeyboardInterrupt:
        sys.exit("planer: interrupted")


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
