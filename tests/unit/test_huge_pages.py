"""Memory of tensors in huge pages."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace

import pytest
import torch

from planer.kernels.huge_pages import COLLAPSE, SIZE, into_huge_pages


@pytest.mark.parametrize("count", [0, 1, SIZE // 4 - 1, SIZE // 4, 3 * SIZE // 4 + 5])
def test_a_tensor_keeps_its_address_and_values(count):
    tensor = torch.arange(count + 3, dtype=torch.float32)[3:]
    address = tensor.data_ptr()
    assert into_huge_pages(tensor) is tensor and tensor.data_ptr() == address
    assert torch.equal(tensor, torch.arange(3, count + 3, dtype=torch.float32))


@pytest.fixture
def asked(monkeypatch) -> list[tuple[int, int, int]]:
    """Calls of madvise, which does nothing."""
    found = []

    def madvise(address, length, advice):
        found.append((address.value, length.value, advice))

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(madvise=madvise))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such a call")
def test_every_page_that_holds_a_part_of_a_tensor_is_asked_for(asked):
    tensor = torch.empty(5 * SIZE // 4)
    into_huge_pages(tensor)
    starts = [address for address, _, _ in asked]
    assert {call[1:] for call in asked} == {(SIZE, COLLAPSE)} and not any(address % SIZE for address in starts)
    assert starts == list(range(starts[0], starts[-1] + 1, SIZE))
    assert starts[0] <= tensor.data_ptr() and tensor.data_ptr() + tensor.nbytes <= starts[-1] + SIZE


def test_small_tensors_and_other_systems_are_left_alone(asked, monkeypatch):
    into_huge_pages(torch.empty(SIZE // 4 - 1))
    monkeypatch.setattr(sys, "platform", "darwin")
    into_huge_pages(torch.empty(SIZE))
    assert not asked
