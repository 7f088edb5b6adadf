"""The lists of packages name the same versions, which are compatible."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from toy import ROOT

ENVS = ROOT / "envs"


def pins(lines):
    """Versions by normalised package name."""
    matches = [re.fullmatch(r"([\w.-]+)==([\w.+]+)", line.strip()) for line in lines]
    return {canonicalize_name(match[1]): match[2] for match in matches if match}


def locked():
    return pins((ENVS / "requirements.lock").read_text().splitlines())


def required(package):
    """Requirements of an installed package on this machine, without extras."""
    every = map(Requirement, importlib.metadata.requires(package) or ())
    return [one for one in every if one.marker is None or one.marker.evaluate({"extra": ""})]


def test_direct_requirements_and_the_conda_environment_agree_with_the_lock():
    lock = locked()
    direct = pins((ENVS / "requirements.in").read_text().splitlines())
    packages = yaml.safe_load((ENVS / "torch.yaml").read_text())["dependencies"][-1]["pip"]
    conda = pins(packages)
    assert len(conda) == len(packages)
    assert len(lock) > len(direct) > len(conda) > 10
    assert conda.items() <= direct.items() <= lock.items()


def test_the_lock_has_only_names_and_public_versions():
    lines = (ENVS / "requirements.lock").read_text().splitlines()[1:]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)


def test_the_lock_has_no_libraries_of_cuda():
    """A machine without a GPU would install gigabytes; torch requires those that its build needs."""
    assert not [name for name in locked() if name.startswith(("cuda-", "nvidia-"))]


def test_locked_packages_satisfy_each_other():
    """Only installed packages are checked, in any version."""
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


def test_triton_has_the_version_that_torch_requires():
    wanted = [one for one in required("torch") if one.name == "triton"]
    if not wanted:
        pytest.skip("this build of torch does not require Triton")
    assert wanted[0].specifier.contains(locked()["triton"])


def test_the_lock_satisfies_the_requirements_of_the_library():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    section = (ENVS / "requirements.in").read_text().partition("# The library")[2].partition("# The workflow")[0]
    lock, library = locked(), map(Requirement, project["dependencies"])
    asked = {one.name: one.specifier for one in library}
    assert asked.keys() | {"triton"} == pins(section.splitlines()).keys()
    extras = [Requirement(one) for group in project["optional-dependencies"].values() for one in group]
    asked |= {one.name: one.specifier for one in extras}
    assert all(specifier.contains(lock[name]) for name, specifier in asked.items())
