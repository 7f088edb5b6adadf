"""A network as an MLflow model."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from planer.__main__ import main
from planer.serving.pyfunc import TextModel
from planer.serving.register import model_parts, signature
from tests.ports import free_ports
from tests.serving.conftest import PATIENCE

PARAMS = {"max_tokens": 9, "temperature": 0.9, "top_k": 40, "top_p": 0.9, "seed": 4}
SAMPLING = {"tokens": 9, "temperature": 0.9, "top_k": 40, "top_p": 0.9, "seed": 4}


@pytest.fixture(scope="module")
def saved(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("mlflow") / "model"
    with model_parts(folder) as parts:
        mlflow.pyfunc.save_model(path, signature=signature(), **parts)
    return path


def test_a_saved_network_writes_the_same_text(saved, continuation):
    model = mlflow.pyfunc.load_model(str(saved))
    texts = model.predict(pd.DataFrame({"prompt": ["ab", "c"]}), params=PARAMS)
    assert texts["text"].tolist() == [continuation("ab", **SAMPLING), continuation("c", **SAMPLING)]
    (text,) = model.predict([{"prompt": "ab"}])["text"]
    assert text == continuation("ab")
    assert model.metadata.signature.params.to_dict()[0]["name"] == "max_tokens"


def test_a_network_answers_one_thread_at_a_time(network, continuation):
    """MLflow's server calls a model from several."""
    inside, most = 0, 0

    class Watched:
        surroundings, encode = network.surroundings, network.encode

        def stream(self, ids, **sampling):
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            time.sleep(0.05)
            yield from network.stream(ids, **sampling)
            inside -= 1

    model = TextModel(Watched())
    prompts = ["ab", "c", "d"]
    with ThreadPoolExecutor(3) as threads:
        answers = threads.map(lambda prompt: model.predict(pd.DataFrame({"prompt": [prompt]}), PARAMS), prompts)
    assert [answer["text"][0] for answer in answers] == [continuation(prompt, **SAMPLING) for prompt in prompts]
    assert most == 1


@pytest.mark.parametrize(
    ("prompt", "params", "reason"),
    [("é", {}, "the prompt's byte 0xc3"), ("a", {"max_tokens": 0}, "tokens is 0; it must be from 1 to 1,000,000")],
)
def test_a_mistake_in_a_prediction_is_one_line(saved, prompt, params, reason):
    with pytest.raises(MlflowException, match=reason) as error:
        mlflow.pyfunc.load_model(str(saved)).predict(pd.DataFrame({"prompt": [prompt]}), params=params)
    assert "\n" not in error.value.message


def test_a_saved_network_has_no_pickle_and_contains_planer(saved):
    files = [path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()]
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pt", ".pyc"))]
    assert {"data/network/model.safetensors", "code/planer/serving/pyfunc.py"} <= set(files)
    requirements = (saved / "requirements.txt").read_text()
    assert "torch==" in requirements and "+" not in requirements


def test_mlflow_serves_a_saved_network(saved, continuation, tmp_path):
    """From another folder, so that planer comes from the model; with the packages of this environment."""
    (port,) = free_ports(1)
    command = ["models", "serve", "-m", str(saved), "--env-manager", "local", "--host", "127.0.0.1"]
    command += ["--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # MLflow looks for uvicorn there
    environment["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    process = subprocess.Popen([sys.executable, "-m", "mlflow", *command], cwd=tmp_path, env=environment)
    try:
        for _ in range(6000):
            assert process.poll() is None
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.1)
        body = {"dataframe_split": {"columns": ["prompt"], "data": [["ab"]]}, "params": PARAMS}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            assert json.load(answer) == {"predictions": [{"text": continuation("ab", **SAMPLING)}]}
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A results folder, whose store MLflow uses until the test ends."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    yield
    mlflow.set_tracking_uri(None)


def test_each_registration_is_a_new_version(folder, store, continuation, capsys):
    for version in (1, 2):
        main(["register", str(folder), "tiny"])
        assert f"registered models:/tiny/{version}; " in capsys.readouterr().out
    model = mlflow.pyfunc.load_model("models:/tiny/2")
    assert model.predict(pd.DataFrame({"prompt": ["ab"]}), params=PARAMS)["text"][0] == continuation("ab", **SAMPLING)


@pytest.mark.parametrize(
    ("name", "results", "uri", "reason"),
    [
        ("a/b", "results", "", "the model's name is 'a/b'; allowed: letters, digits and ._+- after the first"),
        ("tiny", "none", "", "no folder none; run in the folder of a workflow, or name its results with --results"),
        ("tiny", "results", "none", "MLFLOW_TRACKING_URI=none switches MLflow off"),
    ],
)
def test_a_mistake_in_register_is_one_line(folder, store, monkeypatch, name, results, uri, reason):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(SystemExit) as end:
        main(["register", str(folder), name, "--results", results])
    assert end.value.code.startswith(f"planer: {reason}") and "\n" not in end.value.code
