"""Routing: which token meets which expert, and in what order experts take their tokens."""

from planer.kernels.routing.gate import linear_fp32, route
from planer.kernels.routing.pairs import Pairs, threshold, top_k
from planer.kernels.routing.plan import Plan, plan, plan_reference

__all__ = ["Pairs", "Plan", "linear_fp32", "plan", "plan_reference", "route", "threshold", "top_k"]
