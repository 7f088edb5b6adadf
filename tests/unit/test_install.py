"""Refusals of make before it installs anything, and the files that ``pip install .`` installs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from packaging.specifiers import SpecifierSet
from toy import ROOT

pytestmark = pytest.mark.slow


def make(*arguments, makefile=ROOT / "Makefile", **environment):
    """Run make in the Makefile's folder, without the variables of an outer make."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=makefile.parent,
        env=inherited | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def python(tmp_path):
    """A fake Python of any version: for -m it prints 'installing' and fails."""

    def version(*numbers):
        path = tmp_path / "python"
        path.write_text(
            f"""#!/bin/sh
[ "$1" = -m ] && {{ echo installing; exit 9; }}
exec {sys.executable} -c "import sys; sys.version_info = {numbers}; $2"
"""
        )
        path.chmod(0o755)
        return path

    return version


@pytest.mark.parametrize("version", [(2, 7), (3, 10), (3, 11), (3, 12), (3, 13), (3, 14), (4, 0)])
def test_make_refuses_other_versions_of_python_in_one_line(python, tmp_path, version):
    supported = SpecifierSet(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"])
    result = make("venv", f"PYTHON={python(*version)}", f"VENV={tmp_path / 'venv'}")
    assert result.returncode != 0
    if supported.contains(".".join(map(str, version))):
        assert "installing" in result.stdout
    else:
        line, failed = result.stdout.splitlines()
        assert line == "planer needs Python 3.11, 3.12 or 3.13: make PYTHON=/path/of/one"
        assert failed.startswith("make: ***")


def test_make_without_python_is_one_line(tmp_path):
    result = make("venv", "PYTHON=", f"VENV={tmp_path / 'venv'}")
    assert result.stdout.startswith("planer needs Python 3.11, 3.12 or 3.13: make PYTHON=/path/of/one\n")


@pytest.mark.parametrize("target", ["help", "venv", "demo"])
def test_make_refuses_a_path_with_a_space_in_one_line(tmp_path, target):
    folder = tmp_path / "my documents"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    result = make(target, makefile=folder / "Makefile")
    assert result.returncode != 0
    (line,) = result.stdout.splitlines()
    assert "Snakemake cannot work in a path with spaces" in line and str(folder) in line
    assert os.listdir(folder) == ["Makefile"]


def test_make_provides_a_home_folder_where_there_is_none(tmp_path):
    rule = "include Makefile\nhome:\n\t@echo $$HOME\n"
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "own").write_text(rule)
    homes = {
        home: make("-f", "own", "home", makefile=tmp_path / "own", HOME=home).stdout.strip()
        for home in ("/no/such/folder", "", str(tmp_path))
    }
    assert homes[str(tmp_path)] == str(tmp_path)
    assert homes[""] == homes["/no/such/folder"] == str(tmp_path / "scratch/home")


def test_the_wheel_has_every_file_of_the_library_and_works(tmp_path):
    pytest.importorskip("setuptools")
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    shutil.copytree(ROOT / "planer", source / "planer", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", source)
    files = {path.relative_to(source).as_posix() for path in (source / "planer").rglob("*") if path.is_file()}
    build = "from setuptools.build_meta import build_wheel; build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == files
        archive.extractall(elsewhere)
    code = (
        "import sys, planer; assert 'torch' not in sys.modules;"
        "import torch, planer.models as m; from planer.specs import Architecture, FeedForward;"
        "from planer.kernels import choice, dynamic_ffn, expert_ffn; from planer.kernels.cpp import build;"
        "from planer.git import git_commit;"
        "from planer.files import SCHEMAS; assert list(SCHEMAS.glob('*.json'));"
        "assert build.SOURCES and list(choice.FOLDER.glob('*/*.json')) and git_commit() == 'unknown';"
        "m.save(m.LanguageModel(Architecture(11, 8, (FeedForward(16),))), 'saved');"
        "network = planer.load('saved');"
        "assert network(torch.zeros(1, 3, dtype=torch.int64), mem_len=0).hidden.shape == (1, 3, 8), m.__file__;"
        "print(m.__file__)"
    )
    environment = os.environ | {"PYTHONPATH": str(elsewhere)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(elsewhere / "planer/models/__init__.py")
