"""The environment of jobs: home folder, user name, path of the library, and waiting of threads."""

from __future__ import annotations

import getpass
import os
import pwd

import pytest

from planer.workflow.environment import SPINS, prepare_environment, provide_home


def unset(monkeypatch, name: str) -> None:
    """Unset a variable; the end of the test restores it, also where it was not set and planer sets it."""
    monkeypatch.setenv(name, "")
    monkeypatch.delenv(name)


@pytest.fixture
def unknown_user(monkeypatch):
    """A user id without an entry on the machine."""

    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        unset(monkeypatch, name)
    monkeypatch.setenv("HOME", "/")


def test_a_writable_home_folder_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    provide_home(tmp_path / "other")
    assert os.environ["HOME"] == str(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("home", ["/no/such/folder", "relative"])
def test_a_missing_or_relative_home_folder_is_replaced(tmp_path, monkeypatch, home):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", home)
    provide_home("scratch/home")
    assert os.environ["HOME"] == str(tmp_path / "scratch/home")
    assert (tmp_path / "scratch/home").is_dir()


def test_a_read_only_home_folder_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(
        os, "access", lambda path, mode: path != str(tmp_path) or not mode & os.W_OK
    )  # root may write everywhere
    provide_home(tmp_path / "home")
    assert os.environ["HOME"] == str(tmp_path / "home")


def test_no_home_folder_and_no_user_name(tmp_path, monkeypatch, unknown_user):
    monkeypatch.delenv("HOME")
    provide_home(tmp_path / "home")
    assert os.path.expanduser("~") == str(tmp_path / "home")
    assert getpass.getuser() == str(os.getuid())


def test_a_user_name_stays(tmp_path, monkeypatch, unknown_user):
    monkeypatch.setenv("USER", "someone")
    provide_home(tmp_path / "home")
    assert getpass.getuser() == "someone"


def prepared(tmp_path, monkeypatch, **given):
    """The environment of jobs where only these variables are set."""
    for name in ("PYTHONPATH", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        unset(monkeypatch, name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    prepare_environment(tmp_path, tmp_path / "home")
    return os.environ


def test_jobs_import_the_checkout_and_threads_spin_briefly(tmp_path, monkeypatch):
    found = prepared(tmp_path, monkeypatch, PYTHONPATH="/elsewhere")
    assert found["PYTHONPATH"].split(os.pathsep) == [str(tmp_path), "/elsewhere"]
    assert found["GOMP_SPINCOUNT"] == SPINS


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "7")])
def test_a_wait_policy_of_the_user_stays(tmp_path, monkeypatch, name, value):
    found = prepared(tmp_path, monkeypatch, **{name: value})
    assert found[name] == value
    assert found.get("GOMP_SPINCOUNT", value) == value
