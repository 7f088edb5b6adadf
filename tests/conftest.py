"""The order of all tests."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that run Snakemake take longest and come first: idle processes then have short tests left to take over."""
    items.sort(key=lambda item: item.get_closest_marker("workflow") is None)
