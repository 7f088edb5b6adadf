"""The messages of failed jobs, made from Snakemake's log records."""

from __future__ import annotations

import logging

import pytest

from planer.workflow import failures
from planer.workflow.failures import STATUS, Failures

LINE = "planer: demo/par retrain: train has 3 tokens"


@pytest.fixture
def seen(monkeypatch, tmp_path):
    """A filter of log records, with its functions for the end of the process in ``endings``."""
    monkeypatch.chdir(tmp_path)
    endings = []
    monkeypatch.setattr(failures.atexit, "register", endings.append)
    seen = Failures()
    seen.endings = endings
    return seen


def record(message: str, **fields) -> logging.LogRecord:
    made = logging.LogRecord("snakemake.logging", logging.ERROR, "", 0, message, None, None)
    vars(made).update(fields)
    return made


def job_error(seen, tmp_path, jobid: int, text: str) -> logging.LogRecord:
    log = tmp_path / f"{jobid}.log"
    log.write_text(text)
    made = record("Error in rule retrain", event="job_error", jobid=jobid, rule_name="retrain", log=[log.name])
    assert seen.filter(made)
    return made


def last_lines(seen, capsys) -> list[str]:
    for ending in seen.endings:
        ending()
    return capsys.readouterr().err.splitlines()


def test_a_mistake_of_the_user_is_the_last_line(seen, tmp_path, capsys):
    assert not seen.filter(record(f"RuleException:\n... returned non-zero exit status {STATUS}.", event="error"))
    made = job_error(seen, tmp_path, 3, f"step 1\n{LINE}\n")
    assert made.event is None, "Snakemake prints only the message"
    assert made.getMessage() == "Job 3 (retrain) has ended by a mistake: 3.log"
    assert last_lines(seen, capsys) == [LINE]


def test_several_mistakes_have_one_line_each(seen, tmp_path, capsys):
    other = LINE.replace("par", "sandwich")
    for jobid, line in ((1, LINE), (2, other), (1, LINE), (4, LINE)):
        job_error(seen, tmp_path, jobid, line)
    assert last_lines(seen, capsys) == [LINE, other]


def test_another_failure_is_reported_by_snakemake_with_its_log_at_the_end(seen, tmp_path, capsys):
    assert seen.filter(record("RuleException:\n... returned non-zero exit status 1.", event="error"))
    made = job_error(seen, tmp_path, 5, f"{LINE}\nTraceback (most recent call last):\nKeyError: 3\n")
    assert made.event == "job_error"
    assert last_lines(seen, capsys) == ["planer: retrain failed; see 5.log"]


def test_an_interrupted_job(seen, tmp_path, capsys):
    job_error(seen, tmp_path, 5, "step 1\nTraceback (most recent call last):\nKeyboardInterrupt\n")
    assert last_lines(seen, capsys) == ["planer: retrain was interrupted; run the same command again"]


def test_a_failure_without_a_log(seen, capsys):
    assert seen.filter(record("Error", event="job_error", jobid=1, rule_name="search", log=["logs/none.log"]))
    assert last_lines(seen, capsys) == ["planer: search failed before its log began; see above"]


def test_a_successful_later_attempt_removes_the_line(seen, tmp_path, capsys):
    job_error(seen, tmp_path, 5, "out of memory")
    seen.filter(record("Finished", event="job_finished", job_id=5))
    assert last_lines(seen, capsys) == []


def test_a_mistake_found_by_a_rule_or_an_input_function_is_one_line(seen, capsys):
    text = 'UserError in file "rules/common.smk", line 9:\nodd.py is no Python module\n  File "odd.py"'
    assert not seen.filter(record(text, event="error"))
    text = "InputFunctionException in rule compare:\nError:\n  UserError: config: unknown key sede\nWildcards:\n"
    assert not seen.filter(record(text, event="error"))
    assert last_lines(seen, capsys) == ["planer: odd.py is no Python module", "planer: config: unknown key sede"]


def test_other_records_pass(seen):
    assert seen.filter(record("Job 1: searching", event="job_info"))
    assert seen.filter(record("Building DAG of jobs..."))
    assert not seen.endings
