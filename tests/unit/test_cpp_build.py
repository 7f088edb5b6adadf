"""The C++ operators are built once; without a compiler there is one warning and no error."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from planer.files import write_json
from planer.kernels.cpp import build
from planer.models import LanguageModel, save
from planer.specs import Architecture, FeedForward
from tests.unit.toy import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A fake compiler: it takes 0.3 s, records its calls, and fails where the file ``broken`` exists."""
    path = tmp_path / "c++"
    path.write_text(
        f"""#!/bin/sh
[ "$1" = --version ] && exec echo "a compiler"
echo called >> {tmp_path}/calls
sleep 0.3
[ -e {tmp_path}/broken ] && {{ echo "kernel.cpp:7: error: no such thing" >&2; exit 1; }}
while [ "$1" != -o ]; do shift; done
echo built > "$2"
"""
    )
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    return tmp_path


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_processes_at_the_same_time_build_once(compiler):
    command = [sys.executable, "-c", "from planer.kernels.cpp import build; print(build._library())"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(3)]
    paths = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(paths) == 1 and Path(paths.pop()).read_text() == "built\n"
    assert (compiler / "calls").read_text() == "called\n"


def test_the_files_of_a_killed_build_do_not_block_the_next(compiler):
    path = build._library()
    path.rename(path.with_name(f".{path.name}.1.tmp"))
    assert path.with_suffix(".lock").exists()
    assert build._library() == path and path.exists()


@pytest.mark.parametrize("change", ["SOURCES", "HEADERS", "instructions", "version"])
def test_changed_sources_or_processor_or_torch_are_built_again(compiler, monkeypatch, change, tmp_path):
    before = build._library()
    if change in ("SOURCES", "HEADERS"):
        (tmp_path / "other").write_text("")
        monkeypatch.setattr(build, change, [tmp_path / "other"])
    elif change == "instructions":
        monkeypatch.setattr(build, "_processor", lambda: "another")
    else:
        monkeypatch.setattr(build.torch, "__version__", "9.9")
    assert build._library() != before


def test_the_command_line_says_that_it_builds(compiler, tmp_path):
    save(LanguageModel(Architecture(2, 4, (FeedForward(4),))), tmp_path / "net")
    write_json(tmp_path / "net/vocab.json", ["a", "b"])
    command = [sys.executable, "-m", "planer", "generate", str(tmp_path / "net"), "a", "--tokens", "2"]
    done = subprocess.run([*command, "--device", "cpu"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("building C++ kernels for this machine, about a minute: ")


def test_no_compiler_is_one_warning(compiler, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "/no/such/compiler")
    assert not build.available.__wrapped__()
    assert warnings(caplog) == [
        "no C++ kernels, PyTorch's take their place: there is no C++ compiler /no/such/compiler; install one or set CXX"
    ]


def test_a_failing_compiler_is_one_warning(compiler, caplog):
    (compiler / "broken").touch()
    assert not build.available.__wrapped__()
    (line,) = warnings(caplog)
    assert "failed with status 1: kernel.cpp:7: error: no such thing" in line and "\n" not in line
    assert not list((compiler / "cache").glob("*.so"))


def test_a_file_that_is_no_library_is_one_warning(compiler, caplog):
    assert not build.available.__wrapped__()
    assert len(warnings(caplog)) == 1


def test_no_home_folder_is_one_warning(compiler, monkeypatch, caplog):
    monkeypatch.chdir(compiler)
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert not build.available.__wrapped__()
    (line,) = warnings(caplog)
    assert line.endswith("there is no home folder to keep them in; set TORCH_EXTENSIONS_DIR")
    assert not (compiler / "~").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_cannot_be_written_is_one_warning(compiler, monkeypatch, caplog):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/proc/nowhere")
    assert not build.available.__wrapped__()
    assert len(warnings(caplog)) == 1
