"""The lists of packages name the same versions, which go together and which Python itself can run."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
ENVS = ROOT / "envs"


def pins(lines):
    """Version by package, names as pip normalises them."""
    matches = [re.fullmatch(r"([\w.-]+)==([\w.+]+)", line.strip()) for line in lines]
    return {canonicalize_name(match[1]): match[2] for match in matches if match}


def locked():
    return pins((ENVS / "requirements.lock").read_text().splitlines())


def required(package):
    """What an installed package asks for on this machine, without extras."""
    every = map(Requirement, importlib.metadata.requires(package) or ())
    return [one for one in every if one.marker is None or one.marker.evaluate({"extra": ""})]


def test_direct_dependencies_and_the_conda_environment_agree_with_the_lock():
    lock = locked()
    direct = pins((ENVS / "requirements.in").read_text().splitlines())
    packages = yaml.safe_load((ENVS / "torch.yaml").read_text())["dependencies"][-1]["pip"]
    conda = pins(packages)
    assert len(conda) == len(packages)
    assert len(lock) > len(direct) > len(conda) > 10
    assert conda.items() <= direct.items() <= lock.items()


def test_the_lock_names_no_local_build_and_no_place():
    lines = (ENVS / "requirements.lock").read_text().splitlines()[1:]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)


def test_the_lock_names_no_library_for_gpus_alone():
    """A machine without one would install gigabytes; torch itself asks for those that its build needs."""
    assert not [name for name in locked() if name.startswith(("cuda-", "nvidia-"))]


def test_locked_packages_satisfy_each_other():
    """As far as they are installed here, in whatever version."""
    lock = locked()
    for package in lock:
        try:
            wanted = required(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        for one in wanted:
            name = canonicalize_name(one.name)
            assert name in lock or name in ("pip", "setuptools") or name.startswith(("cuda-", "nvidia-")), one
            assert name not in lock or one.specifier.contains(lock[name]), f"{package} asks for {one}"


def test_triton_is_the_one_that_torch_asks_for():
    wanted = [one for one in required("torch") if one.name == "triton"]
    if not wanted:
        pytest.skip("this build of torch asks for no Triton")
    assert wanted[0].specifier.contains(locked()["triton"])


def test_the_library_asks_for_what_the_lock_has():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    section = (ENVS / "requirements.in").read_text().partition("# The library")[2].partition("# The workflow")[0]
    lock, library = locked(), map(Requirement, project["dependencies"])
    asked = {one.name: one.specifier for one in library}
    assert asked.keys() | {"triton"} == pins(section.splitlines()).keys()
    extras = [Requirement(one) for group in project["optional-dependencies"].values() for one in group]
    asked |= {one.name: one.specifier for one in extras}
    assert all(specifier.contains(lock[name]) for name, specifier in asked.items())
