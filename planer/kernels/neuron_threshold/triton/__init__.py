"""Triton kernels of neuron_threshold."""
