"""Triton kernels of the gate and the plan."""
