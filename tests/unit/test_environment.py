"""What jobs inherit: a home folder and a user's name where there are none, the library's path, how threads wait."""

from __future__ import annotations

import getpass
import os
import pwd

import pytest

from planer.workflow.environment import SPINS, prepare_environment, provide_home


@pytest.fixture
def nobody(monkeypatch):
    """A user that the machine does not know."""

    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/")


def test_a_home_that_can_be_written_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    provide_home(tmp_path / "other")
    assert os.environ["HOME"] == str(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("home", ["/no/such/folder", "relative"])
def test_a_home_that_cannot_be_written_is_replaced(tmp_path, monkeypatch, home):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", home)
    provide_home("scratch/home")
    assert os.environ["HOME"] == str(tmp_path / "scratch/home")
    assert (tmp_path / "scratch/home").is_dir()


def test_a_home_for_reading_only_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: path != str(tmp_path) or not mode & os.W_OK)  # root writes all
    provide_home(tmp_path / "home")
    assert os.environ["HOME"] == str(tmp_path / "home")


def test_no_home_and_no_name(tmp_path, monkeypatch, nobody):
    monkeypatch.delenv("HOME")
    provide_home(tmp_path / "home")
    assert os.path.expanduser("~") == str(tmp_path / "home")
    assert getpass.getuser() == str(os.getuid())


def test_a_name_that_is_known_stays(tmp_path, monkeypatch, nobody):
    monkeypatch.setenv("USER", "someone")
    provide_home(tmp_path / "home")
    assert getpass.getuser() == "someone"


def prepared(tmp_path, monkeypatch, **given):
    """The environment that jobs get where these variables are given."""
    for name in ("PYTHONPATH", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that the test's end takes back what is set below
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    prepare_environment(tmp_path, tmp_path / "home")
    return os.environ


def test_jobs_import_the_checkout_and_their_threads_wait_briefly(tmp_path, monkeypatch):
    found = prepared(tmp_path, monkeypatch, PYTHONPATH="/elsewhere")
    assert found["PYTHONPATH"].split(os.pathsep) == [str(tmp_path), "/elsewhere"]
    assert found["GOMP_SPINCOUNT"] == SPINS


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "7")])
def test_a_users_choice_of_waiting_stays(tmp_path, monkeypatch, name, value):
    found = prepared(tmp_path, monkeypatch, **{name: value})
    assert found[name] == value
    assert found.get("GOMP_SPINCOUNT", value) == value
