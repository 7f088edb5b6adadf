"""How long a dry run takes beside one of Snakemake alone: python benchmarks/dry_run.py; two minutes.

`snakemake -n results/demo/target_0.5/eval.json` of this project is timed against a Snakefile that has as many rules and
plans as many jobs, but computes nothing.  Both run in turn; times are medians of processor and wall-clock seconds.
Other work on the machine changes the wall-clock times more than the processor times: the bar is on the latter.
Results go to benchmarks/results/<processor>-dry-run-<date>.json and, as a table, to standard output.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.output import command_line, positive, start, table, write_results
from planer.runtime import device_name, resolve_device

TARGET = "results/demo/target_0.5/eval.json"
BAR = 1.3
"""Most that a dry run may take, in dry runs of Snakemake alone."""


def bare_snakefile(rules: int, jobs: int) -> str:
    """A Snakefile with this many rules, whose first rule needs the other jobs, this many with its own job."""
    needed = [f"{1 + number % (rules - 1)}/{number}" for number in range(jobs - 1)]
    first = f"rule r0:\n    input: {needed}\n    output: 'done'\n    shell: 'touch {{output}}'\n"
    others = (f"rule r{i}:\n    output: '{i}/{{name}}'\n    shell: 'touch {{output}}'\n" for i in range(1, rules))
    return "\n".join([first, *others])


def dry_run(folder: Path, target: str) -> tuple[float, float, int]:
    """Processor seconds, wall-clock seconds and planned jobs of a dry run in a folder."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--snakefile", str(folder / "Snakefile"), target]
    # Where this variable is set, every run would compile planer's modules anew, but no other packages.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began, before = time.perf_counter(), os.times()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    wall, after = time.perf_counter() - began, os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return spent, wall, int(re.search(r"^total +(\d+)$", done.stdout + done.stderr, re.MULTILINE)[1])


def measure(rounds: int) -> dict:
    """Medians of both dry runs in turn, after one of each to fill caches."""
    rules = sum(len(re.findall(r"^rule \w", path.read_text(), re.MULTILINE)) for path in (ROOT / "rules").glob("*.smk"))
    rules += 1  # Snakefile has rule all
    with tempfile.TemporaryDirectory() as folder:
        *_, jobs = dry_run(ROOT, TARGET)
        Path(folder, "Snakefile").write_text(bare_snakefile(rules, jobs))
        sides = {"planer": (ROOT, TARGET), "bare": (Path(folder), "done")}
        times: dict[str, list] = {name: [] for name in sides}
        for number in range(rounds + 1):
            for name, side in sides.items():
                *seconds, planned = dry_run(*side)
                assert planned == jobs, f"{name} plans {planned} jobs, not {jobs}"
                if number:
                    times[name].append(seconds)
    rows = {
        name: dict(zip(("cpu_s", "wall_s"), map(statistics.median, zip(*runs, strict=True)), strict=True))
        for name, runs in times.items()
    }
    return {"rules": rules, "jobs": jobs, "rounds": rounds, "rows": rows, "bar": BAR} | {
        f"{kind}_ratio": rows["planer"][f"{kind}_s"] / rows["bare"][f"{kind}_s"] for kind in ("cpu", "wall")
    }


def main() -> None:
    parser = command_line(__doc__.partition(":")[0])
    parser.add_argument("--rounds", type=positive, default=10, help="dry runs of each (default: %(default)s)")
    options = parser.parse_args()
    found = measure(options.rounds)
    lines = [[name, f"{row['cpu_s']:.2f}", f"{row['wall_s']:.2f}"] for name, row in found["rows"].items()]
    lines.append(["ratio", f"{found['cpu_ratio']:.2f}", f"{found['wall_ratio']:.2f}"])
    table(f"Dry run, {found['rules']} rules, {found['jobs']} jobs", ["", "processor s", "wall s"], lines)
    print(f"at most {BAR}: {'reached' if found['cpu_ratio'] <= BAR else 'MISSED'}")
    write_results(options.results, device_name(resolve_device("cpu")), found, suffix="-dry-run")


if __name__ == "__main__":
    start(main)
