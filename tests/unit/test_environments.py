"""The three lists of packages name the same versions."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ENVS = Path(__file__).parents[2] / "envs"


def pins(lines):
    """Version by package, names as pip normalises them."""
    matches = [re.fullmatch(r"([\w.-]+)==([\w.+]+)", line.strip()) for line in lines]
    return {re.sub(r"[-_.]+", "-", match[1]).lower(): match[2] for match in matches if match}


def test_direct_dependencies_and_the_conda_environment_agree_with_the_lock():
    lock = pins((ENVS / "requirements.lock").read_text().splitlines())
    direct = pins((ENVS / "requirements.in").read_text().splitlines())
    packages = yaml.safe_load((ENVS / "torch.yaml").read_text())["dependencies"][-1]["pip"]
    conda = pins(packages)
    assert len(conda) == len(packages)
    assert len(lock) > len(direct) > len(conda) > 10
    assert conda.items() <= direct.items() <= lock.items()


def test_the_lock_names_no_local_build_and_no_place():
    lines = (ENVS / "requirements.lock").read_text().splitlines()[1:]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
