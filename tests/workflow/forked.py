"""Runs scripts of rules without Snakemake, each in a child of one process that has the libraries loaded.

So no run imports the libraries again, which takes seconds.  Commands are lines of JSON on standard input, and answers
are lines of JSON on standard output.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import sys
import time
import traceback
from pathlib import Path

from tests.workflow.preloaded import ROOT, load

SECONDS = 1800
"""A script that takes longer is killed.  It would take a few seconds on an idle machine."""
MEMORY = 16 * 2**30
"""Limit of a script's address space in bytes, of which PyTorch and its threads take a part."""


def main() -> None:
    """Serve until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    load()
    for line in sys.stdin:
        answers.write(json.dumps(_answer(json.loads(line))) + "\n")
        answers.flush()


def _answer(job: dict) -> dict:
    """The script's exit status, console output and log."""
    console, log = Path(job["folder"], "console.txt"), Path(job["folder"], "log.txt")
    log.write_text("")
    child = os.fork()
    if not child:
        os._exit(_run(job, console))
    began = time.monotonic()
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() - began > SECONDS:
            os.kill(child, 9)
        time.sleep(0.002)
    text = [path.read_text(errors="replace") for path in (console, log)]
    return {"status": os.waitstatus_to_exitcode(ended[1]), "console": text[0], "log": text[1]}


def _run(job: dict, console: Path) -> int:
    """The script's exit status, 2 for an exception, whose traceback is on the console."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.chdir(job["folder"])
    handle = os.open(console, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    if job.get("killed"):
        _die_after_the_first_checkpoint()
    try:
        runpy.run_path(str(ROOT / job["script"]), {"snakemake": _snakemake(job)}, "__main__")
        return 0
    except SystemExit as end:
        return end.code
    except BaseException:  # noqa: BLE001 (its traceback is on the console)
        os.write(2, traceback.format_exc().encode())
        return 2


def _die_after_the_first_checkpoint() -> None:
    from planer.training.checkpoint import Checkpoint

    save = Checkpoint.save

    def save_and_die(*arguments) -> None:
        save(*arguments)
        os._exit(9)

    Checkpoint.save = save_and_die


def _snakemake(job: dict) -> object:
    """The object that Snakemake gives to a script."""
    from snakemake.iocontainers import InputFiles, Log, OutputFiles, Params, ResourceList, Snakemake, Wildcards

    files = InputFiles()
    for name, value in job["input"].items():
        begin = len(files)
        files.extend([value] if isinstance(value, str) else value)
        files._set_name(name, begin, end=None if isinstance(value, str) else len(files))
    named = (
        kind(fromdict=job[key]) for kind, key in ((OutputFiles, "output"), (Params, "params"), (Wildcards, "wildcards"))
    )
    return Snakemake(files, *named, 1, ResourceList(), Log(["log.txt"]), {}, job["rule"], None)


if __name__ == "__main__":
    main()
