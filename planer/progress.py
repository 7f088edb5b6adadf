"""Progress with rate and time left: a bar on a terminal, or plain lines in a log.

Users rarely look at a job's log, so its lines also go to the console, less often (``show_on``).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import TextIO, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

LINE_SECONDS = 10.0
"""Least time between plain lines, so that the log of a day of training stays readable."""
CONSOLE_SECONDS = 30.0
"""The same for the console, over all bars of a process."""


class _Console:
    """A second stream for lines, beside the log."""

    def __init__(self, stream: TextIO, label: str) -> None:
        self._stream, self._label = stream, label
        self._last_line = time.monotonic()

    def due(self) -> bool:
        """Whether CONSOLE_SECONDS have passed since the last line."""
        return time.monotonic() - self._last_line >= CONSOLE_SECONDS

    def show(self, line: str) -> None:
        """Print a line, without the stage at its start, which the label already has."""
        self._last_line = time.monotonic()
        stage = self._label.split()[-1]
        with suppress(OSError):  # a closed terminal must not end a training
            print(f"{self._label}: {line.removeprefix(f'{stage}: ')}", file=self._stream, flush=True)


_console: _Console | None = None


def show_on(stream: TextIO, label: str) -> None:
    """Show further progress on this stream too, after the label, such as ``demo/target_0.5 retrain``."""
    global _console
    _console = _Console(stream, label)


def tell(line: str) -> None:
    """Print a line on the console at once, if there is one."""
    if _console is not None:
        _console.show(line)


class Progress:
    """Counts steps towards total and shows rate, time left and named numbers such as the loss.

    start: the first step of a resumed run; earlier steps count as done but not for the rate.  Without a terminal, lines
    go to stderr at most every LINE_SECONDS; shorter work prints nothing.
    """

    def __init__(self, total: int, description: str, start: int = 0) -> None:
        self.total, self.description, self.start, self.done = total, description, start, start
        self._began = self._last_line = time.monotonic()
        self._shown = ""
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=start, desc=description, file=sys.stderr, dynamic_ncols=True)

    def advance(self, **shown: float) -> None:
        """Count one step.  shown: numbers to print beside it; without any, the last ones stay."""
        self.done += 1
        if shown:
            self._shown = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
        if self._bar is not None:
            self._bar.set_postfix_str(self._shown, refresh=False)
            self._bar.update()
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._print_line()
        if _console is not None and _console.due():
            _console.show(self.line(time.monotonic() - self._began))

    def close(self) -> None:
        """Close the bar, or print a last line where there were lines."""
        if self._bar is not None:
            self._bar.close()
        elif self._last_line > self._began:
            self._print_line()

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        print(self.line(self._last_line - self._began), file=sys.stderr, flush=True)

    def line(self, seconds: float) -> str:
        """The plain line after these seconds: ``retrain: step 120/600, 3.1 it/s, 2 min 34 s left, loss 1.234``."""
        steps = self.done - self.start
        parts = [f"step {self.done}/{self.total}"]
        if steps and seconds > 0:
            rate = steps / seconds
            parts.append(f"{rate:.1f} it/s" if rate >= 1 else f"{1 / rate:.1f} s/it")
            if self.done < self.total:
                parts.append(f"{duration((self.total - self.done) / rate)} left")
        return f"{self.description}: " + ", ".join(parts + [self._shown] * bool(self._shown))

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def progress(items: Collection[Item], description: str) -> Iterator[Item]:
    """Yield the items and show the progress of the loop over them."""
    with Progress(len(items), description) as bar:
        for item in items:
            yield item
            bar.advance()


def duration(seconds: float) -> str:
    """Seconds in the two largest units that matter: ``45 s``, ``2 min 34 s``, ``3 h 20 min``, ``2 d 4 h``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
