"""Triton kernels of layers that are executed in part."""
