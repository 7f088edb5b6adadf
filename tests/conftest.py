"""The order of the tests, the settings of Hypothesis, and floats as the standard has them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import pytest

with contextlib.suppress(ImportError):  # the environment of the GPU tests does not need Hypothesis
    from hypothesis import HealthCheck, settings

    # No example has a time limit, because a busy machine would exceed it. The examples are the same in every run.
    settings.register_profile("planer", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("planer")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that run Snakemake come first: they take longest, and short tests at the end keep all processes busy."""
    items.sort(key=lambda item: item.get_closest_marker("workflow") is None)


@pytest.fixture(autouse=True)
def standard_floats() -> Iterator[None]:
    """Commands that a test calls in this process have denormals flushed; Hypothesis refuses to run then."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_flush_denormal(False)
