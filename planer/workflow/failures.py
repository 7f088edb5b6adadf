"""Reports of failed jobs: the last lines on the screen say what went wrong and where to look.

Snakemake reports a failed job in fifteen lines, log included, and prints a summary after them.  A job that fails by a
user's mistake (``UserError``) explains it in the last line of its log.  This filter of Snakemake's log removes the
report of such a job and prints its line when the process ends.  Other failures are reported by Snakemake, and the path
of the log is repeated at the end.  Ctrl-C reaches the running jobs too; the line at the end says that they were
interrupted.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import sys
from pathlib import Path

MISTAKE = "planer: "
"""How the line about a user's mistake begins."""
STATUS = 65
"""Exit status of a job that a user's mistake has ended (EX_DATAERR in sysexits.h)."""


class Failures(logging.Filter):
    """Collects failures from the records of Snakemake's log (snakemake_interface_logger_plugins.common.LogEvent)."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: dict[object, str] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether Snakemake is to print the record; that of a job's mistake is shortened."""
        event = getattr(record, "event", None)
        if event == "error":
            return self._exception(record.getMessage())
        if event == "job_error":
            self._job(record)
        elif event == "job_finished":
            self._lines.pop(record.job_id, None)  # a later attempt has succeeded
        return True

    def _exception(self, text: str) -> bool:
        """A mistake that Snakemake itself ran into (a rule or an input function raised it), or the exit status of a
        job."""
        if found := re.search(r"^\s*(?:\S+\.)?UserError(?: in file .*)?:\s+(.+)", text, re.MULTILINE):
            self._keep(text, f"{MISTAKE}{found[1]}")
        return not found and f"returned non-zero exit status {STATUS}." not in text

    def _job(self, record: logging.LogRecord) -> None:
        logs = " ".join(record.log)
        if line := next(filter(None, map(_mistake, record.log)), ""):
            record.event, record.msg = None, f"Job {record.jobid} ({record.rule_name}) has ended by a mistake: {logs}"
        self._keep(record.jobid, line or f"{MISTAKE}{record.rule_name} {_end(record.log)}")

    def _keep(self, key: object, line: str) -> None:
        if not self._lines:
            atexit.register(self._show)
        self._lines[key] = line

    def _show(self) -> None:
        for line in dict.fromkeys(self._lines.values()):
            print(line, file=sys.stderr, flush=True)


def _mistake(log: str) -> str:
    """The last line of a log, if it is a user's mistake."""
    line = _last_line(log)
    return line if line.startswith(MISTAKE) else ""


def _end(logs: list[str]) -> str:
    """How a job ended that no user's mistake has ended."""
    if any(_last_line(log) == KeyboardInterrupt.__name__ for log in logs):
        return "was interrupted; run the same command again"
    where = f"; see {' '.join(logs)}" if all(map(os.path.exists, logs)) else " before its log began; see above"
    return f"failed{where}"


def _last_line(log: str) -> str:
    try:
        lines = Path(log).read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""


FAILURES = Failures()
"""One for the process, so that a Snakefile that is read twice adds one filter."""
