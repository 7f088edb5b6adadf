"""Progress with rate and time left: a bar on a terminal, or now and then a plain line in a log.

A job's log is not what its user looks at, so that its lines also go to the console, more rarely (``show_on``).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import suppress
from typing import TextIO, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

LINE_SECONDS = 10.0
"""Plain lines are at least this far apart, so that a day of training stays a readable log."""
CONSOLE_SECONDS = 30.0
"""The same on the console, over all that a process does."""


class _Console:
    """Where lines for the user go beside the log."""

    def __init__(self, stream: TextIO, label: str) -> None:
        self._stream, self._label = stream, label
        self._last_line = time.monotonic()

    def due(self) -> bool:
        """Whether the last line is long enough ago."""
        return time.monotonic() - self._last_line >= CONSOLE_SECONDS

    def show(self, line: str) -> None:
        """Print a line.  The stage, which it may begin with, stands in the label already."""
        self._last_line = time.monotonic()
        stage = self._label.split()[-1]
        with suppress(OSError):  # a terminal that was closed ends no training
            print(f"{self._label}: {line.removeprefix(f'{stage}: ')}", file=self._stream, flush=True)


_console: _Console | None = None


def show_on(stream: TextIO, label: str) -> None:
    """From now on, show progress on this stream too, behind the label: ``demo/target_0.5 retrain``."""
    global _console
    _console = _Console(stream, label)


def tell(line: str) -> None:
    """Print a line on the console at once, where there is one."""
    if _console is not None:
        _console.show(line)


class Progress:
    """Counts steps towards total and shows rate, time left and named numbers such as the loss.

    total None means that the end is unknown; start is the step that a resumed run begins at, which counts as done
    but not towards the rate.  Without a terminal, lines go to stderr at most every LINE_SECONDS, and work that is
    over sooner prints nothing.
    """

    def __init__(self, total: int | None, description: str, start: int = 0) -> None:
        self.total, self.description, self.start, self.done = total, description, start, start
        self._began = self._last_line = time.monotonic()
        self._shown = ""
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=start, desc=description, file=sys.stderr, dynamic_ncols=True)

    def advance(self, **shown: float) -> None:
        """One step is done; shown are the numbers to print beside it, and the last ones stay when none are given."""
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
        """Leave the terminal in order, or close a log that has progress lines with a last one."""
        if self._bar is not None:
            self._bar.close()
        elif self._last_line > self._began:
            self._print_line()

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        print(self.line(self._last_line - self._began), file=sys.stderr, flush=True)

    def line(self, seconds: float) -> str:
        """The plain line after so many seconds: ``retrain: step 120/600, 3.1 it/s, 2 min 34 s left, loss 1.234``."""
        steps = self.done - self.start
        parts = [f"step {self.done}" if self.total is None else f"step {self.done}/{self.total}"]
        if steps and seconds > 0:
            rate = steps / seconds
            parts.append(f"{rate:.1f} it/s" if rate >= 1 else f"{1 / rate:.1f} s/it")
            if self.total is not None and self.done < self.total:
                parts.append(f"{duration((self.total - self.done) / rate)} left")
        return f"{self.description}: " + ", ".join(parts + [self._shown] * bool(self._shown))

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def progress(items: Iterable[Item] | int, description: str) -> Iterator[Item]:
    """Yield the items (or 0 .. items - 1) and show how far the loop over them is."""
    items = range(items) if isinstance(items, int) else items
    with Progress(len(items) if isinstance(items, Sized) else None, description) as bar:
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
