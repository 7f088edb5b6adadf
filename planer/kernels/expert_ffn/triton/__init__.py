"""Triton kernels of the experts."""
