"""Measure the figures of the README anew: python benchmarks/claims.py, make claims, make claims NAME=demo.

benchmarks/claims/<name>.yaml lists what one table claims: the commands that make its files, the figures in them, and
the bars.  Every table is printed and written to benchmarks/results/<processor>-claims-<name>-<date>.json.  A missed bar
is printed as MISSED beside the control.  The exit status is 1 only if a command failed.

Snakemake decides what to run: networks that are finished and whose code and settings are unchanged are not trained
again.  `snakemake --cores 2 --forcerun evaluate <files>` measures them anew; without results/<experiment> all is made
anew.  The latency figures need a machine without other work.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import figures
from benchmarks.output import RESULTS, start, table, write_results
from planer.config.paths import assets_home
from planer.config.strict_yaml import read_experiment
from planer.data.corpora import find_local
from planer.errors import UserError
from planer.files import read_json
from planer.git import git_commit
from planer.parsing import Items, build, merge, show
from planer.runtime import device_name, resolve_device

CLAIMS = ROOT / "benchmarks/claims"
SCRATCH = Path("scratch/claims")
"""Where commands that are not Snakemake's leave their files."""
OPTIONAL = {"device": "auto", "corpus": "", "asset": ""}


@dataclass(frozen=True)
class Row:
    """Runs of one thing with several seeds."""

    runs: Annotated[tuple[str, ...], Items(1, 100)]
    """What ``{run}`` in the table's ``file`` stands for."""
    figures: dict[str, str]
    """Bars by the figure's name."""
    control: str
    """The row that is printed beside this one, with as many runs; or nothing."""


@dataclass(frozen=True)
class Table:
    """The claims of one table."""

    title: str
    device: str
    """What it needs: auto (anything), cpu or cuda."""
    corpus: str
    """What it needs, or nothing."""
    asset: str
    """Folder of ``make assets`` that it needs, or nothing."""
    commands: tuple[tuple[str, ...], ...]
    """Argument lists, without a shell.  ``{files}`` stands for the files of all runs."""
    file: str
    """JSON of a run; a pattern with * must match one file."""
    figures: dict[str, str]
    """By name; see benchmarks/figures.py."""
    rows: dict[str, Row]

    def __post_init__(self) -> None:
        for text in self.figures.values():
            figures.check_figure(text)
        for name, row in self.rows.items():
            self._check(f"row {name}", row)

    def _check(self, what: str, row: Row) -> None:
        """Raise UserError unless a row fits the others."""
        control = self.rows.get(row.control)
        if row.control and (control is None or len(control.runs) != len(row.runs)):
            raise UserError(f"{what}: control {show(row.control)} must be a row of as many runs")
        for figure, bar in row.figures.items():
            if figure not in self.figures:
                raise UserError(f"{what}: unknown figure {show(figure)}; allowed: {', '.join(self.figures)}")
            figures.check_bar(bar)
            if "control" in bar and control is None:
                raise UserError(f"{what}: the bar {show(bar)} needs a control")

    def path(self, run: str) -> str:
        return self.file.replace("{run}", run)

    @property
    def files(self) -> list[str]:
        return list(dict.fromkeys(self.path(run) for row in self.rows.values() for run in row.runs))


def read_table(name: str, files: Mapping[str, Path]) -> Table:
    """Read a table's claims, after those of the table that it names under ``base``, if any.

    files: of all tables by name.  Raises UserError naming the file and the key.
    """
    try:
        values = merge(OPTIONAL, *read_experiment(name, files))
        rows = values.get("rows")
        if isinstance(rows, dict):
            values["rows"] = {
                row: {"control": ""} | what if isinstance(what, dict) else what for row, what in rows.items()
            }
        return build(Table, values)
    except UserError as error:
        raise UserError(f"{files[name]}: {error}") from error


def reason_to_skip(claims: Table) -> str:
    """What this machine lacks, or nothing."""
    prepared = Path("results/data", claims.corpus, "manifest.json")
    try:
        resolve_device(claims.device)
        if claims.corpus and not prepared.exists() and find_local(claims.corpus) is None:
            return f"the corpus {claims.corpus} is not on this machine; set PLANER_DATA to the folder that holds it"
        if claims.asset and not (assets_home() / claims.asset).is_dir():
            return f"there is no folder {assets_home() / claims.asset}; make assets fetches it"
    except UserError as error:
        return str(error)
    return ""


def run(command: tuple[str, ...], files: list[str]) -> dict:
    """Run a command with the programs of this Python's environment; what came of it."""
    expanded = [argument for word in command for argument in (files if word == "{files}" else [word])]
    print(f"$ {shlex.join(expanded)}", flush=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    started = time.monotonic()
    try:
        status = wait(subprocess.Popen(expanded, env={**os.environ, "PATH": path}))
    except OSError as error:
        print(f"cannot start {command[0]}: {error.strerror}")
        status = 127
    return {"command": expanded, "status": status, "seconds": time.monotonic() - started}


def wait(process: subprocess.Popen) -> int:
    """Exit status of a command.  Ctrl-C reaches it too: Snakemake then has time to stop its jobs and to unlock."""
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise


def content(path: str) -> dict:
    """A run's file.  Raises UserError unless there is one, whole."""
    if "*" not in path:
        return read_json(path)
    found = sorted(Path().glob(path))
    if len(found) != 1:
        raise UserError(f"{path} matches {len(found)} files, not 1; see the output of the command above")
    return read_json(found[0])


def judged(claims: Table) -> list[dict]:
    """One entry a figure of a row: its value over the runs, its bar, its control's value, and whether it is reached."""

    def over(row: Row, figure: str) -> figures.Measured:
        return figures.measured(claims.figures[figure], [content(claims.path(run)) for run in row.runs])

    entries = []
    for name, row in claims.rows.items():
        control = claims.rows.get(row.control)
        for figure, bar in row.figures.items():
            entry = {"row": name, "figure": figure, "runs": row.runs, "bar": bar, "control": row.control}
            try:
                own, other = over(row, figure), over(control, figure) if control else None
                limit = figures.limit_of(bar, own, other)
                entry |= {"measured": own, "control_measured": other, "limit": limit}
                entry["reached"] = None if limit is None else figures.is_reached(bar, own.value, limit)
            except UserError as error:
                entry["problem"] = str(error)
            entries.append(entry)
    return entries


def line(entry: dict) -> list[str]:
    """An entry for the printed table."""
    runs = len(entry["runs"])
    head = [entry["row"] if runs == 1 else f"{entry['row']}, {runs} runs", entry["figure"]]
    if "problem" in entry:
        return [*head, "not measured", "", "", entry["problem"]]
    bar = "" if entry["bar"] == "no bar" else entry["bar"]
    bar += f" ({entry['limit']:.4g})" if "control" in bar else ""
    verdict = {None: "", True: "reached", False: "MISSED"}[entry["reached"]]
    beside = f"{entry['control']}: {entry['control_measured']}" if entry["control"] else ""
    return [*head, str(entry["measured"]), bar, verdict, beside]


def measure(name: str, claims: Table) -> bool:
    """Run a table's commands, print and write its figures.  Returns whether all commands succeeded."""
    print(f"\n{name}: {claims.title}", flush=True)
    shutil.rmtree(SCRATCH / name, ignore_errors=True)
    before = os.getloadavg()[0]
    runs = [run(command, claims.files) for command in claims.commands]
    failed = [entry for entry in runs if entry["status"]]
    entries = judged(claims)
    title = f"{claims.title} (load average before: {before:.2f})"
    table(title, ["", "figure", "measured", "bar", "", "control"], [line(entry) for entry in entries])
    for entry in failed:
        print(f"FAILED with status {entry['status']}: {shlex.join(entry['command'])}; figures above may be older")
    found = {"title": claims.title, "git_commit": git_commit(), "load_before": before, "commands": runs}
    found["rows"] = [{key: plain(value) for key, value in entry.items()} for entry in entries]
    write_results(RESULTS, device_name(resolve_device(claims.device)), found, f"-claims-{name}")
    return not failed


def plain(value: object) -> object:
    """A value for JSON."""
    return vars(value) if isinstance(value, figures.Measured) else value


def show_claims(name: str, claims: Table, reason: str) -> None:
    """Print a table's figures and bars."""
    lines = [[row, figure, bar] for row, claimed in claims.rows.items() for figure, bar in claimed.figures.items()]
    table(f"{name}: {claims.title}{f' (skipped: {reason})' if reason else ''}", ["", "figure", "bar"], lines)


def main() -> None:
    paths = {path.stem: path for path in sorted(CLAIMS.glob("*.yaml"))}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help=f"one table: {', '.join(paths)} (default: all)")
    parser.add_argument("--list", action="store_true", help="list the tables, their figures and bars, and run nothing")
    options = parser.parse_args()
    if options.name and options.name not in paths:
        raise UserError(f"unknown claims {show(options.name)}; allowed: {', '.join(paths)}")
    succeeded = True
    chosen = {name: read_table(name, paths) for name in ([options.name] if options.name else paths)}
    for name, claims in chosen.items():
        reason = reason_to_skip(claims)
        if options.list:
            show_claims(name, claims, reason)
        elif reason:
            print(f"\n{name}: skipped: {reason}")
        else:
            succeeded = measure(name, claims) and succeeded
    sys.exit(0 if succeeded else 1)


if __name__ == "__main__":
    start(main)
