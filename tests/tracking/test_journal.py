"""Journals, which jobs write for MLflow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from planer.errors import UserError
from planer.git import git_commit
from planer.workflow import tracking
from planer.workflow.tracking.journal import ENDS_BYTES, KEPT, TERMINATING, Journal, fingerprint, journals

ROOT = Path(__file__).parents[2]


def track(results, stage="retrain", **options):
    settings = {"experiment": "demo", "variant": "target_0.5", "params": {"seed": 1}} | options
    return tracking.track(results=results, stage=stage, **settings)


def job(results, body):
    """A process that runs a job; ``body`` uses the variable run."""
    script = f"""
        import os, signal, sys, time
        sys.path.insert(0, {str(ROOT)!r})
        from planer.workflow import tracking
        with tracking.track(experiment="demo", variant="target_0.5", stage="retrain", params={{"seed": 1}},
                            results={str(results)!r}) as run:
            {body}
    """
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE)


def records(results):
    """Records of the only journal."""
    (path,) = journals(results)
    return Journal(path).read()[0]


def kinds(results):
    return [
        next(kind for kind in ("start", "series", "results", "artifacts", "end") if kind in r) for r in records(results)
    ]


def test_a_journal_holds_params_tags_series_results_and_files(tmp_path, capsys):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    params = {"config": {"retrain": {"lr": 0.5, "betas": [0.9, 0.999]}}, "note": "x"}
    with track(tmp_path, params=params, tags={"device": "cpu"}) as run:
        run.row({"step": 10, "loss": 0.1, "phase": "alpha", "layer": {"load": 3}})
        run.metrics({"valid": {"nll": 1.5, "ppl": float("inf")}, "why": "text"})
        run.artifact(weights)
    start, row, results, artifacts, end = records(tmp_path)
    assert start["start"]["name"] == "target_0.5/retrain"
    assert start["start"]["params"] == {"config.retrain.lr": "0.5", "config.retrain.betas": "[0.9, 0.999]", "note": "x"}
    tags = start["start"]["tags"]
    expected = {"experiment": "demo", "variant": "target_0.5", "stage": "retrain", "device": "cpu"}
    assert expected.items() <= tags.items() and {"python", "torch", "planer"} <= tags.keys()
    assert tags["git_commit"] == git_commit()
    assert row["series"] == {"loss": 0.1, "layer.load": 3.0} and row["step"] == 10
    assert results["results"] == {"valid.nll": 1.5, "valid.ppl": float("inf")} and results["step"] == 10
    assert artifacts["artifacts"] == [[str(weights), fingerprint(weights)]]
    assert end["end"] == "FINISHED" and start["time"] <= end["time"]
    assert capsys.readouterr().err == ""


def test_a_job_imports_neither_mlflow_nor_torch():
    code = "import sys, planer.workflow.tracking; sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_killed_job_continues_its_journal(tmp_path):
    body = 'run.row({"step": 10, "loss": 3}); run.row({"step": 20, "loss": 2}); os.kill(os.getpid(), signal.SIGTERM)'
    assert job(tmp_path, body).wait() == 128 + signal.SIGTERM
    assert records(tmp_path)[-1]["end"] == "KILLED"
    with track(tmp_path) as run:
        run.row({"step": 20, "loss": 2})
        run.row({"step": 30, "loss": 1})
    assert kinds(tmp_path) == ["start", "series", "series", "end", "start", "series", "end"]
    assert [record["series"]["loss"] for record in records(tmp_path) if "series" in record] == [3, 2, 1]
    with track(tmp_path):
        pass
    assert len(journals(tmp_path)) == 2  # the first has finished: this is another run


def test_other_params_start_another_journal(tmp_path):
    with pytest.raises(UserError), track(tmp_path):
        raise UserError("loss is nan at step 3")
    assert records(tmp_path)[-1]["error"] == "UserError: loss is nan at step 3"
    with track(tmp_path, params={"seed": 2}):
        pass
    assert len(journals(tmp_path)) == 2


def test_a_half_written_line_is_dropped(tmp_path):
    process = job(tmp_path, 'run.row({"step": 1, "loss": 1}); print("here", flush=True); time.sleep(600)')
    process.stdout.readline()
    (path,) = journals(tmp_path)
    assert Journal(path).alive()
    process.kill()
    process.wait()
    assert not Journal(path).alive()
    with open(path, "a") as file:
        file.write('{"time": 1, "ser')
    with track(tmp_path) as run:
        run.row({"step": 2, "loss": 2})
    assert kinds(tmp_path) == ["start", "series", "start", "series", "end"]


def test_old_journals_are_deleted(tmp_path):
    for seed in range(2 * KEPT):
        with track(tmp_path, params={"seed": seed}):
            pass
    left = sorted(journals(tmp_path))
    assert len(left) == KEPT
    assert Journal(left[-1]).read()[0][0]["start"]["params"] == {"seed": str(2 * KEPT - 1)}


def test_a_fingerprint_depends_on_contents_and_not_on_dates(tmp_path):
    path, same = tmp_path / "weights", tmp_path / "copy"
    path.write_bytes(b"a" * 3 * ENDS_BYTES)
    same.write_bytes(path.read_bytes())
    os.utime(same, (1, 1))
    known = fingerprint(path)
    assert known == fingerprint(same) is not None
    for content in (
        b"b" + b"a" * (3 * ENDS_BYTES - 1),
        b"a" * (3 * ENDS_BYTES - 1) + b"b",
        b"a" * (3 * ENDS_BYTES - 1),
    ):
        path.write_bytes(content)
        assert fingerprint(path) != known
    assert fingerprint(tmp_path / "missing") is None
    folder = fingerprint(tmp_path)
    (tmp_path / ".snakemake_timestamp").touch()
    assert fingerprint(tmp_path) == folder
    (tmp_path / "new").touch()
    assert fingerprint(tmp_path) != folder


@pytest.mark.parametrize("content", [b"{", b"[1]\n", b"\xff\n", b"nothing\n"])
def test_a_damaged_journal_does_not_fail_the_job(tmp_path, content, capsys):
    with track(tmp_path, params={"seed": 1}):
        pass
    (path,) = journals(tmp_path)
    path.write_bytes(content)
    with track(tmp_path, params={"seed": 1}) as run:
        run.row({"step": 1, "loss": 1})
    assert len(journals(tmp_path)) == 2
    assert capsys.readouterr().err == ""


def test_a_folder_that_cannot_be_written_is_one_line_of_warning(tmp_path, capsys):
    (tmp_path / ".tracking").write_text("a file")
    with track(tmp_path) as run:
        run.row({"step": 1, "loss": 1})
        run.metrics({"nll": 1.0})
        run.artifact(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: MLflow will not get all of retrain (")


def test_only_a_bad_row_is_lost(tmp_path, capsys):
    class Odd(float):
        def __float__(self):
            raise ArithmeticError("odd")

    with track(tmp_path) as run:
        run.row({"step": 1, "loss": Odd(1.0)})
        run.row({"step": 2, "loss": 2.0})
    assert "(ArithmeticError: odd)" in capsys.readouterr().err
    assert kinds(tmp_path) == ["start", "series", "end"]


def test_none_switches_mlflow_off(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "none")
    monkeypatch.delattr(subprocess, "Popen")
    tracking.start(tmp_path)
    with track(tmp_path) as run:
        run.row({"step": 1, "loss": 1.0})
        run.metrics({"nll": 1.0})
        run.artifact(tmp_path)
    tracking.finish(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", TERMINATING)
def test_a_signal_ends_a_job_as_an_exception(tmp_path, number):
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as end, track(tmp_path):
            assert signal.getsignal(number) is not signal.SIG_DFL  # it would end the tests
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert end.value.code == 128 + number and records(tmp_path)[-1]["end"] == "KILLED"


@pytest.mark.parametrize("number", TERMINATING)
@pytest.mark.parametrize("ignored", [False, True])
def test_a_handler_of_a_signal_keeps_it(tmp_path, number, ignored):
    caught = []
    before = signal.signal(number, signal.SIG_IGN if ignored else lambda number, frame: caught.append(number))
    try:
        with track(tmp_path):
            os.kill(os.getpid(), number)
        assert caught == ([] if ignored else [number])
    finally:
        signal.signal(number, before)
    assert records(tmp_path)[-1]["end"] == "FINISHED"
