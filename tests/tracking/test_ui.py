"""MLflow's page of runs, with the columns that compare the networks of an experiment."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from urllib.parse import parse_qs, urlparse

import pytest

from planer.files import write_json
from planer.workflow import tracking
from planer.workflow.tracking.__main__ import main
from planer.workflow.tracking.store import opened
from planer.workflow.tracking.sync import sync
from planer.workflow.tracking.ui import pages
from planer.workflow.tracking.view import KIND_TAG, VIEW_TAG, columns, view
from tests.ports import free_ports
from tests.tracking.records import evaluation

pytest.importorskip("mlflow")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two networks."""
    patch = pytest.MonkeyPatch()
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    results = tmp_path_factory.mktemp("ui") / "results"
    for variant in ("baseline", "target_0.5"):
        with tracking.track(experiment="demo", variant=variant, stage="retrain", params={}, results=results):
            pass
        write_json(results / f"demo/{variant}/eval.json", evaluation(searched=variant != "baseline"))
    yield results
    patch.undo()


@contextmanager
def served(results):
    """MLflow's pages, served by a thread of this process: MLflow's own server takes 15 s to start."""
    from werkzeug.serving import make_server

    patch = pytest.MonkeyPatch()
    patch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{results}/mlflow.db")
    patch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", str(results / "mlartifacts"))
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{results}/mlflow.db")  # MLflow sets it and does not unset it
    from mlflow.server import app

    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        patch.undo()


def test_the_address_opens_the_stored_view(results):
    with opened(results, 600) as store:
        assert sync(results, store).troubles == []
        table, chart = pages(store, "http://127.0.0.1:5000")
        experiment = store.client.get_experiment_by_name("demo")
    for line, mode in ((table, "TABLE"), (chart, "CHART")):
        address = urlparse(urlparse(line.split()[-1]).fragment)
        assert line.startswith("demo: ")
        assert address.path == f"/experiments/{experiment.experiment_id}/runs"
        expected = {"workflowType": "machine_learning", "viewStateShareKey": "planer", "compareRunsMode": mode}
        assert {name: value for name, (value,) in parse_qs(address.query).items()} == expected
    assert KIND_TAG.items() <= experiment.tags.items()
    state = json.loads(experiment.tags[VIEW_TAG])
    assert state["selectedColumns"] == ["tags.`pattern`", *(f"metrics.`{name}`" for name in columns("bpc"))]
    (plot,) = state["compareRunCharts"]
    assert plot["type"] == "SCATTER"
    assert (plot["yaxis"]["key"], plot["xaxis"]["key"]) == ("result/bpc_test", "result/speed_up")


@pytest.mark.parametrize("unit", ["bpc", "ppl"])
def test_quality_and_speed_up_sort_first(unit):
    everything = [*columns(unit), f"tau/{unit}_test", "tau/median_ms", "workload/median_ms"]
    assert sorted(everything)[:2] == [f"result/{unit}_test", "result/speed_up"]
    assert len(view(unit)) < 5000  # what MLflow keeps of a tag


@pytest.mark.skipif(not BROWSER, reason="no chromium on PATH")
def test_a_browser_shows_the_networks_and_their_figures(results, tmp_path):
    with opened(results, 600) as store, served(results) as server:
        sync(results, store)
        address = pages(store, server)[0].split()[-1]
        command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
        command += ["--virtual-time-budget=30000", "--window-size=2600,900", "--dump-dom", address]
        page = subprocess.run(command, capture_output=True, text=True, timeout=600).stdout
    text = re.sub(r"<[^>]*>", "\n", page)
    assert {"Model training", "baseline", "target_0.5"} <= set(text.split("\n")), text
    assert set(columns("bpc")) <= set(re.findall(r"[a-z]+/[a-z_]+", text))
    assert {"1.25", "1.6", "0.625", "0.5", "0.75"} <= set(text.split("\n"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_server_ends_with_the_command_and_has_the_store_in_its_environment(results, monkeypatch, capsys, number):
    """A fake server, which takes no 15 s to start and interrupts the command as Ctrl-C or kill do."""
    fake = (
        "import os, signal, socket, sys, time\n"
        "listening = socket.create_server(('127.0.0.1', int(sys.argv[sys.argv.index('--port') + 1])))\n"
        f"listening.accept(); os.kill(os.getppid(), {number:d}); time.sleep(600)"
    )
    started = []
    popen = subprocess.Popen

    def start(command, **options):
        started.append((command, options["env"], popen([sys.executable, "-c", fake, *command[1:]], **options)))
        return started[0][-1]

    (port,) = free_ports(1)
    monkeypatch.setattr(subprocess, "Popen", start)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        assert main(["ui", str(results), "--port", str(port)]) == 130
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)
    command, environment, process = started[0]
    assert process.poll() == -signal.SIGTERM
    assert command[command.index("--host") + 1] == "127.0.0.1"
    uri = f"sqlite:///{results}/mlflow.db"
    assert environment["MLFLOW_BACKEND_STORE_URI"] == uri and uri not in command


def test_a_port_in_use_is_one_line(results, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["ui", str(results), "--port", str(port)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"planer: port {port} of 127.0.0.1: Address already in use; choose another")
