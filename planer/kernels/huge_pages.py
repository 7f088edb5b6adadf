"""Huge pages for weights: a processor finds 2 MiB of them by one translation of an address instead of 512."""

from __future__ import annotations

import ctypes
import sys

from torch import Tensor

SIZE = 2**21
"""Bytes of a huge page of x86-64, and of arm64 with pages of 4 KiB."""
COLLAPSE = 25
"""MADV_COLLAPSE of Linux 6.1: move the pages of a range together now, whatever the system's setting."""


def into_huge_pages(tensor: Tensor) -> Tensor:
    """The same tensor, its memory in huge pages where the system can do that; its address and values stay.

    What shares its first or last huge page moves too.  Small tensors stay where they are.  On a GPU, on other systems
    than Linux from 6.1 on, and without free huge pages nothing happens.
    """
    if tensor.device.type == "cpu" and sys.platform == "linux" and tensor.nbytes >= SIZE:
        begin, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        for first in range(begin // SIZE * SIZE, end, SIZE):
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(SIZE), COLLAPSE)
    return tensor
