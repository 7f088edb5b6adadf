"""The commit that results name is that of planer's code."""

from __future__ import annotations

import re
import subprocess

import pytest

from planer import git as module


def git(folder, *arguments):
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the code without git inside another repository, which has a commit."""
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "other")
    (tmp_path / "copy/planer").mkdir(parents=True)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "copy/planer/git.py"))
    return tmp_path / "copy"


def test_the_commit_of_an_outer_repository_is_not_used(copy):
    assert module.git_commit() == "unknown"
    git(copy, "init", "-q")
    assert module.git_commit() == "unknown"
    git(copy, "commit", "-q", "--allow-empty", "-m", "own")
    assert re.fullmatch("[0-9a-f]{40}", module.git_commit())
    (copy / "file").touch()
    git(copy, "add", ".")
    assert re.fullmatch("[0-9a-f]{40}-dirty", module.git_commit())


def test_no_commit_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert module.git_commit() == "unknown"
