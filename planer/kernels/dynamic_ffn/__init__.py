"""A dense layer of which each token executes its own experts: the function, its backends and their tables."""

from planer.kernels.dynamic_ffn.function import BACKENDS, dynamic_ffn, unsupported
from planer.kernels.dynamic_ffn.reference import dynamic_ffn_reference

__all__ = ["BACKENDS", "dynamic_ffn", "dynamic_ffn_reference", "unsupported"]
