"""A layer that computes only neurons over a threshold: the function, its backends and their tables."""

from planer.kernels.neuron_threshold.function import BACKENDS, SCORES, neuron_threshold, saves_time, unsupported
from planer.kernels.neuron_threshold.reference import neuron_threshold_reference

__all__ = ["BACKENDS", "SCORES", "neuron_threshold", "neuron_threshold_reference", "saves_time", "unsupported"]
