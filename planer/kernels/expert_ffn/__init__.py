"""Feed-forward experts on routed tokens, forward and backward: the function, its backends and their tables."""

from planer.kernels.expert_ffn.function import BACKENDS, expert_ffn, unsupported
from planer.kernels.expert_ffn.reference import expert_ffn_reference

__all__ = ["BACKENDS", "expert_ffn", "expert_ffn_reference", "unsupported"]
