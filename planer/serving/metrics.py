"""Figures of a server in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = "planer_request_seconds"
BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
"""Upper bounds in seconds."""
FAMILIES = {
    "planer_requests_total": ("counter", "Requests answered, by route and HTTP status."),
    SECONDS: ("histogram", "Seconds from a request to the end of its answer, by route."),
    "planer_generations_total": ("counter", "Generations by the reason they ended for."),
    "planer_prompt_tokens_total": ("counter", "Tokens of prompts."),
    "planer_generated_tokens_total": ("counter", "Tokens written."),
    "planer_requests_active": ("gauge", "Requests that generate."),
    "planer_requests_waiting": ("gauge", "Requests that wait for their turn."),
}


class Metrics:
    """Counters since the start of the server; several threads may use them."""

    def __init__(self):
        self._lock = threading.Lock()
        self._samples: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))

    def add(self, family: str, amount: float = 1, **labels: str) -> None:
        """Increase a counter."""
        with self._lock:
            self._samples[family][_sample(family, labels)] += amount

    def observe(self, seconds: float, **labels: str) -> None:
        """Count a duration in every bucket that it fits."""
        with self._lock:
            samples = self._samples[SECONDS]
            for bound in BUCKETS:
                samples[_sample(f"{SECONDS}_bucket", labels | {"le": f"{bound:g}"})] += seconds <= bound
            samples[_sample(f"{SECONDS}_bucket", labels | {"le": "+Inf"})] += 1
            samples[_sample(f"{SECONDS}_sum", labels)] += seconds
            samples[_sample(f"{SECONDS}_count", labels)] += 1

    def text(self, gauges: Mapping[str, float]) -> str:
        """All figures.  gauges: the values of this moment by family."""
        lines = []
        with self._lock:
            for family, (kind, description) in FAMILIES.items():
                lines += [f"# HELP {family} {description}", f"# TYPE {family} {kind}"]
                samples = {family: gauges[family]} if family in gauges else self._samples[family]
                lines += [f"{sample} {value:.12g}" for sample, value in samples.items()]
        return "\n".join(lines) + "\n"


def _sample(name: str, labels: Mapping[str, str]) -> str:
    """A name with its labels.  No value holds a quote, a backslash or a line's end: they are routes and words."""
    listed = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return f"{name}{{{listed}}}" if labels else name
