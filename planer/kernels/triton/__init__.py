"""Kernels in Triton, for CUDA devices.  Imported only when one runs: everything else works without Triton."""

from functools import cache
from importlib.util import find_spec


@cache
def available() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None
