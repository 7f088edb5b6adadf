"""The thread that generates: it steps the active requests in turn, one token or segment of a prompt each.

Every request has the network's memory of its text to itself and is computed alone, so that its text does not depend on
the requests beside it.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch

from planer.models.network import Network
from planer.serving.limits import Limits
from planer.serving.stop_words import StopWords

Deliver = Callable[[str | None], None]
"""Takes new text, and None after the last of it."""
FINISHES = ("stop", "length", "timeout", "cancelled", "closing", "error")
"""A stop word, or the network's end of the text; all tokens; the time limit; the client hung up; the server stops; a
fault of the server."""


class Full(Exception):
    """As many requests wait as may."""


class Closing(Exception):
    """The server takes no more requests."""


class Generation:
    """One request: its text so far, and who takes it.

    tokens: how many were written.  finish: one of FINISHES at the end, None before.
    """

    def __init__(
        self,
        network: Network,
        ids: Sequence[int],
        sampling: dict,
        stop_words: Sequence[str],
        deadline: float,
        deliver: Deliver,
    ):
        """ids: the prompt's.  sampling: options of ``Network.steps``, with tokens.  deadline: of the last token, by
        the monotonic clock."""
        self.prompt_tokens, self.tokens = len(ids), 0
        self.finish: str | None = None
        self._deadline = deadline
        self._cancelled = False
        self._most = sampling["tokens"]
        self._stop_words = StopWords(stop_words)
        self._deliver = deliver
        self._steps, self._new = network.steps(ids, **sampling), []
        self._pieces = network.surroundings.vocabulary.pieces(self._counted(), ids)

    def cancel(self) -> None:
        """The client is gone: write no further token."""
        self._cancelled = True

    def step(self) -> None:
        """Read a segment of the prompt, or write one token and deliver the text that it makes certain."""
        step = next(self._steps, None)
        if step == []:
            return
        self._new = step or []
        piece = next(self._pieces, None)
        if piece is None:
            self.end("stop" if self.tokens < self._most else "length")
        elif text := self._stop_words.feed(piece):
            self._deliver(text)
        if self._stop_words.found:
            self.end("stop")

    def interrupted(self, closing: bool) -> bool:
        """Whether it is over before its last token; it ends then."""
        late = time.monotonic() > self._deadline
        reasons = {"cancelled": self._cancelled, "closing": closing, "timeout": late}
        if reason := next((name for name, true in reasons.items() if true), None):
            self.end(reason)
        return bool(reason)

    def end(self, finish: str) -> None:
        """Deliver what was held back, and that this is all; free the memory."""
        self.finish = finish
        self._steps.close()
        self._pieces.close()
        if rest := self._stop_words.rest():
            self._deliver(rest)
        self._deliver(None)

    def _counted(self) -> Iterator[int]:
        """Ids of the steps; the end after the last step."""
        while ids := self._new:
            self._new = []
            self.tokens += len(ids)
            yield from ids


class Engine:
    """Active and waiting requests, and the thread that steps the active ones."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._changed = threading.Condition()
        self._waiting: deque[Generation] = deque()
        self._active: list[Generation] = []
        self._draining = self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, generation: Generation) -> None:
        """Queue a request.  Raises Full or Closing."""
        with self._changed:
            if self._draining:
                raise Closing
            if self.active + self.waiting >= self._limits.active + self._limits.waiting:
                raise Full
            self._waiting.append(generation)
            self._changed.notify()

    @property
    def active(self) -> int:
        """Requests that generate."""
        with self._changed:
            return sum(one.finish is None for one in self._active)

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        with self._changed:
            return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self.alive and not self._draining

    def drain(self) -> None:
        """Take no more requests; those that were taken go on."""
        with self._changed:
            self._draining = True

    def close(self) -> None:
        """End all requests, and the thread."""
        with self._changed:
            self._draining = self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        if self._limits.threads:
            torch.set_num_threads(self._limits.threads)
        while active := self._next_round():
            for generation in active:
                try:
                    generation.step()
                except Exception:  # a fault in one request does not end the others
                    traceback.print_exc(file=sys.stderr)
                    generation.end("error")

    def _next_round(self) -> list[Generation]:
        """The requests to step next; waits for one, and is empty when the server closes."""
        with self._changed:
            while True:
                unfinished = [one for one in self._active if one.finish is None]
                self._active = [one for one in unfinished if not one.interrupted(self._closed)]
                self._waiting = deque(one for one in self._waiting if not one.interrupted(self._closed))
                while self._waiting and len(self._active) < self._limits.active:
                    self._active.append(self._waiting.popleft())
                if self._active or self._closed:
                    return list(self._active)
                self._changed.wait()
