"""MLflow's pages on this machine, opened at the networks of every experiment."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from planer.errors import UserError
from planer.workflow.tracking.address import store_uri
from planer.workflow.tracking.store import Store, opened
from planer.workflow.tracking.sync import sync
from planer.workflow.tracking.view import page

HOST = "127.0.0.1"


def serve(results: Path, port: int) -> int:
    """Start MLflow's server on the loopback interface and print the addresses to open; wait until it ends.

    Returns its exit status.  A store that is a server already is only named.  Raises UserError when the port is taken.
    """
    server = f"http://{HOST}:{port}"
    with opened(results, 60) as store:
        for trouble in sync(results, store).troubles:
            print(f"warning: {trouble}", file=sys.stderr)
        if store.remote:
            server = store.name
        addresses = pages(store, server)
    if store.remote:
        print("\n".join(addresses), flush=True)
        return 0
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(
                f"port {port} of {HOST}: {error.strerror}; choose another: make ui PORT={port + 1}"
            ) from error
    print("Starting MLflow, about 15 s", flush=True)
    # All end like Ctrl-C, even where SIGINT was ignored at the start: the server must not outlive this process.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    child = _start(results, port)
    try:
        if _answers(child, port):
            print("\n".join(addresses), flush=True)
        return child.wait()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        child.wait()


def pages(store: Store, server: str) -> list[str]:
    """One line for every experiment with networks: the table, and the chart."""
    lines = []
    for experiment in store.client.search_experiments(order_by=["name ASC"]):
        if experiment.name in ("Default", "data"):
            continue
        identifier = experiment.experiment_id
        lines.append(f"{experiment.name}: table  {page(server, identifier)}")
        lines.append(f"{experiment.name}: chart  {page(server, identifier, chart=True)}")
    return lines or [f"no runs yet: {server}"]


def _start(results: Path, port: int) -> subprocess.Popen:
    """The server, in a process group of its own: it starts others.  The store's address may hold a password, so that
    it is not among the arguments, which everybody on the machine can read."""
    environment = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": store_uri(results),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 12 s and 475 MB instead of 23 s and 3 GB, with one worker
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "PYTHONWARNINGS": "ignore",
    }
    arguments = ["--no-serve-artifacts", "--default-artifact-root", str(results / "mlartifacts")]
    arguments += ["--host", HOST, "--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level=warning"]
    return subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def _answers(child: subprocess.Popen, port: int) -> bool:
    """Wait until the server takes connections; False when it ends before."""
    while child.poll() is None:
        with suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return True
        time.sleep(0.2)
    return False
