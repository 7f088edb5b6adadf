"""Progress lines in a log and on a console, with a fake clock."""

import io
import os
import sys

import pytest

from planer import progress as module
from planer.progress import Progress, duration, progress, show_on, tell


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test advances; stderr is no terminal."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    return now


def test_a_line_every_ten_seconds_and_one_at_the_end(clock, capsys):
    with Progress(600, "retrain") as bar:
        for _ in range(600):
            clock[0] += 0.25
            bar.advance(loss=1.23449)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "retrain: step 40/600, 4.0 it/s, 2 min 20 s left, loss 1.234"
    assert len(lines) == 15 + 1
    assert lines[-1] == "retrain: step 600/600, 4.0 it/s, loss 1.234"


def test_resumed_steps_do_not_count_towards_the_rate(clock, capsys):
    with Progress(100, "search", start=90) as bar:
        for _ in range(3):
            clock[0] += 5.0
            bar.advance()
    assert "search: step 92/100, 5.0 s/it, 40 s left" in capsys.readouterr().err


def test_short_work_is_silent(clock, capsys):
    assert list(progress(range(5), "fast")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(3, "retrain", start=1) as bar:
        bar.advance(loss=2.5)
        bar.advance(loss=2.25)
    shown = capsys.readouterr().err
    assert "retrain" in shown and "3/3" in shown and "loss 2.25" in shown


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (154, "2 min 34 s"),
        (12_000, "3 h 20 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.fixture
def console(clock, monkeypatch):
    """The stream on which the user sees progress."""
    stream = io.StringIO()
    monkeypatch.setattr(module, "_console", None)
    show_on(stream, "demo/target_0.5 retrain")
    return stream


def test_the_console_gets_a_line_every_thirty_seconds(clock, console, capsys):
    for _ in range(2):
        with Progress(600, "retrain") as bar:
            for _ in range(100):
                clock[0] += 0.4
                bar.advance(loss=1.23449)
    first, second = console.getvalue().splitlines()
    assert first == "demo/target_0.5 retrain: step 75/600, 2.5 it/s, 3 min 30 s left, loss 1.234"
    assert second == "demo/target_0.5 retrain: step 50/600, 2.5 it/s, 3 min 40 s left, loss 1.234"
    assert len(capsys.readouterr().err.splitlines()) > 2, "the log has more lines"


def test_the_current_work_is_named_after_the_stage(clock, console):
    for _ in progress(range(3), "measuring, 1 of 2"):
        clock[0] += 31.0
    assert console.getvalue().startswith(
        "demo/target_0.5 retrain: measuring, 1 of 2: step 1/3, 31.0 s/it, 1 min 2 s left"
    )


def test_the_end_is_printed_at_once(clock, console):
    tell("done in 3 s")
    assert console.getvalue() == "demo/target_0.5 retrain: done in 3 s\n"


def test_a_closed_console_does_not_end_the_work(clock, console):
    console.close()
    show_on(open(os.open(os.devnull, os.O_RDONLY), "w"), "demo retrain")  # noqa: SIM115
    for _ in progress(range(2), "retrain"):
        clock[0] += 31.0
