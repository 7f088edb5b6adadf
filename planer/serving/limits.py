"""How much one server takes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from planer.parsing import Range, with_defaults


@dataclass(frozen=True)
class Limits:
    """Bounds of one server.  What exceeds one is refused with an error that names it."""

    request_bytes: Annotated[int, Range(1_000, 100_000_000)] = 262_144
    """Bytes of a request's body."""
    prompt_tokens: Annotated[int, Range(1, 1_000_000)] = 8_192
    """Tokens of a prompt."""
    max_tokens: Annotated[int, Range(1, 1_000_000)] = 2_048
    """Tokens that one request may ask for."""
    active: Annotated[int, Range(1, 1_000)] = 4
    """Requests that generate side by side."""
    waiting: Annotated[int, Range(0, 10_000)] = 64
    """Requests that wait for their turn; the next one is refused."""
    seconds: Annotated[float, Range(0, 86_400, above=True)] = 120.0
    """Time from the arrival of a request to its last token."""
    grace: Annotated[float, Range(0, 3_600)] = 10.0
    """Seconds that active and waiting requests have to finish after SIGTERM or SIGINT."""
    threads: Annotated[int, Range(0, 1_024)] = 0
    """Threads of PyTorch; 0 takes its default, which OMP_NUM_THREADS sets."""

    @classmethod
    def of(cls, **options: float) -> Limits:
        """With the defaults for what is not given.  Raises UserError for an unknown option and numbers out of range."""
        return with_defaults(cls, options)
