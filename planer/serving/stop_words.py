"""Text that ends before the first stop word, whatever tokens the stop word comes in."""

from __future__ import annotations

from collections.abc import Sequence


class StopWords:
    """Passes text on as soon as it cannot be the beginning of a stop word.

    The stop word that ends first counts, and of several that end there the longest.
    found: whether a stop word came; the text before it is the last.
    """

    def __init__(self, words: Sequence[str]):
        """words: none is empty."""
        self.words = words
        self.found = False
        self._held = ""

    def feed(self, text: str) -> str:
        """What is certain after this text, which may be nothing."""
        self._held += text
        found = [(start + len(word), start) for word in self.words if (start := self._held.find(word)) >= 0]
        self.found = bool(found)
        return self._release(min(found)[1] if found else len(self._held) - self._begun())

    def rest(self) -> str:
        """What was held back, when no more text comes."""
        return self._release(len(self._held))

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], "" if self.found else self._held[length:]
        return text

    def _begun(self) -> int:
        """Characters at the end that some stop word begins with."""
        longest = max(map(len, self.words), default=1) - 1
        sizes = range(min(longest, len(self._held)), 0, -1)
        return next((n for n in sizes if any(word.startswith(self._held[-n:]) for word in self.words)), 0)
