"""Command line of the MLflow mirror: ``python -m planer.workflow.tracking sync results``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from planer.errors import UserError
from planer.workflow.tracking.follow import follow
from planer.workflow.tracking.journal import FOLDER
from planer.workflow.tracking.secrets import plain

LOCK_SECONDS = 60
"""How long the command waits for another process that uses the store."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m planer.workflow.tracking", description=__doc__.partition(":")[0] + "."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    texts = {
        "sync": "bring everything that MLflow does not have yet into it; doing it again changes nothing",
        "ui": "start MLflow on this machine and print the addresses of the runs",
        "follow": "what a workflow starts beside itself: sync until standard input closes",
    }
    for name, text in texts.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.add_argument("results", nargs="?", default="results", type=Path, help="folder (default: results)")
        if name == "ui":
            command.add_argument("--port", type=_port, default=5000, help="1 to 65535; default: 5000")
    options = parser.parse_args(arguments)
    try:
        if options.command == "follow":
            follow(options.results)
            return 0
        if not options.results.is_dir():
            raise UserError(f"no folder {options.results}; run a workflow first, or name another folder")
        if options.command == "ui":
            from planer.workflow.tracking.ui import serve

            return serve(options.results, options.port)
        return _sync(options.results)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # of MLflow, too: its traceback would help nobody
        print(f"planer: {plain(error)}", file=sys.stderr)
    return 1


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; allowed: 1 to 65535")
    return int(text)


def _sync(results: Path) -> int:
    from planer.workflow.tracking.store import opened
    from planer.workflow.tracking.sync import sync

    if not (results / FOLDER).is_dir() and not any(results.glob("*/*/eval.json")):
        raise UserError(f"{results} holds neither journals ({FOLDER}) nor evaluations; name the folder of a workflow")
    with opened(results, LOCK_SECONDS) as store:
        outcome = sync(results, store, print)
        print(f"{len(outcome.updated)} runs updated, {outcome.current} up to date, in {store.name}")
    for trouble in outcome.troubles:
        print(f"planer: {trouble}", file=sys.stderr)
    return 1 if outcome.troubles else 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # taking MLflow's modules apart would take another half a second
