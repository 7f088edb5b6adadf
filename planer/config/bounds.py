"""Bounds of the numbers in a configuration.

They allow every experiment that a machine of today can run.  They refuse values that would only exhaust its memory.
"""

from __future__ import annotations

from typing import Annotated

from planer.parsing import Range

Count = Annotated[int, Range(1, 1_000)]
"""Heads, experts, networks, repeats."""
Rounds = Annotated[int, Range(1, 100_000)]
"""Repeats of a measurement or of an iteration."""
Batch = Annotated[int, Range(1, 1_000_000)]
"""Streams side by side."""
Length = Annotated[int, Range(1, 65_536)]
"""Tokens per call."""
Memory = Annotated[int, Range(0, 1_000_000)]
"""Remembered positions."""
Width = Annotated[int, Range(1, 65_536)]
"""Neurons of a layer."""
Steps = Annotated[int, Range(1, 100_000_000)]
"""Optimiser steps."""
StepsOrNone = Annotated[int, Range(0, 100_000_000)]
"""Optimiser steps, where 0 has a meaning."""
Share = Annotated[float, Range(0, 1, below=True)]
"""A part of a whole; also dropout and the decay of a moment."""
PositiveShare = Annotated[float, Range(0, 1, above=True, below=True)]
"""A part of a whole that is not empty."""
Weight = Annotated[float, Range(0, 1_000_000)]
"""Factor of a loss term, or a norm."""
Positive = Annotated[float, Range(0, 1_000_000, above=True)]
"""A factor, temperature or bar that divides or scales."""
Target = Annotated[float, Range(0.001, 1)]
"""Wanted latency over the baseline's."""
