"""Distributions that weights start from, where it is not the normal one of ``init_std``.

A module names them: its attribute ``initial`` maps names of its own parameters to functions of this file.  Each fills
an empty tensor from a generator and returns the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

Draw = Callable[["Tensor", "Generator"], "Tensor"]


def fan_in_uniform(empty: Tensor, generator: Generator) -> Tensor:
    """Uniform within 1 / sqrt(inputs) for a weight [outputs, inputs], as PyTorch's linear layers."""
    return empty.uniform_(-1, 1, generator=generator) / math.sqrt(empty.shape[1])


def glorot_uniform(empty: Tensor, generator: Generator) -> Tensor:
    """Uniform within sqrt(6 / (inputs + outputs)) for a matrix (Glorot and Bengio 2010)."""
    bound = math.sqrt(6 / sum(empty.shape))
    return empty.uniform_(-bound, bound, generator=generator)


def normal(std: float) -> Draw:
    """Normal around 0."""
    return lambda empty, generator: empty.normal_(0.0, std, generator=generator)


def scaled(draw: Draw, factor: float) -> Draw:
    """A draw times a number."""
    return lambda empty, generator: draw(empty, generator) * factor
