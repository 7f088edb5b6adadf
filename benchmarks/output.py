"""What benchmarks have in common: their command lines, experiments, tables on standard output, and results in
benchmarks/results/<device>-<date>.json."""

from __future__ import annotations

import argparse
import datetime
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from planer.config import Experiment
from planer.config.strict_yaml import read_yaml
from planer.errors import UserError
from planer.files import write_json
from planer.parsing import build, merge

RESULTS = Path(__file__).parent / "results"
CONFIG = Path(__file__).parents[1] / "config"


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not (text.isascii() and text.isdigit() and 0 < int(text[:10]) < 10**9):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 to 999,999,999")
    return int(text)


def command_line(description: str) -> argparse.ArgumentParser:
    """A benchmark's options: --results; it adds its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder (default: %(default)s)")
    return parser


def shipped_experiment(name: str) -> Experiment:
    """The configuration of config/experiments/<name>.yaml.  Raises UserError where it cannot be read."""
    files = (CONFIG / "config.yaml", CONFIG / f"experiments/{name}.yaml")
    return build(Experiment, merge(*map(read_yaml, files)))


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


def section_option(parser: argparse.ArgumentParser, sections: Sequence[str]) -> None:
    """Add the option --sections."""
    parser.add_argument("--sections", nargs="+", choices=sections, default=list(sections), help="default: all")


def section_suffix(chosen: Sequence[str], sections: Sequence[str]) -> str:
    """For the file's name: nothing when all sections ran."""
    named = [name for name in sections if name in chosen]
    return "" if len(named) == len(sections) else f"-{'-'.join(named)}"


def slug(text: str) -> str:
    """A text for a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def write_results(folder: Path, device: str, content: dict, suffix: str = "") -> None:
    """Write results under the device's name and the date, and say where."""
    date = datetime.date.today().isoformat()
    path = folder / f"{slug(device)}{suffix}-{date}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"device": device, "torch": torch.__version__, "date": date, **content})
    print(f"written: {path}")
