"""Kernels in Triton, for CUDA devices.  Imported only when one runs: everything else works without Triton."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

AVAILABLE = find_spec("triton") is not None
"""Whether Triton is installed."""

DTYPES = torch.float32, torch.float16, torch.bfloat16


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why kernels cannot run on tensors of this kind, or None.  On a CPU only Triton's interpreter runs them."""
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "needs a CUDA device"
    if dtype not in DTYPES:
        return "needs float32, float16 or bfloat16"
    return None if AVAILABLE else "needs Triton"
