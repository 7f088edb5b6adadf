"""Blocks and heads for one token on a CPU, a call of a C++ operator each: ``torch.ops.planer_cpp.decode_<kind>``.

They are there once ``planer.kernels.cpp.build.available()`` is true.  What they compute, planer/blocks and planer/heads
say; these are the definitions that the tests compare them with.  All take tokens [B, D] in single precision.
"""

from planer.kernels.sparse_decode.weights import WEIGHTS, panels, rows

__all__ = ["WEIGHTS", "panels", "rows"]
