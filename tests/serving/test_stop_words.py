"""Stop words across pieces of text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from planer.serving.stop_words import StopWords

PIECES = st.lists(st.text("ab", max_size=6), max_size=8)
WORDS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=3)


def shortest(text: str, words: list[str]) -> str:
    """The text before the first stop word to end; of several that end there, before the longest."""
    for end in range(1, len(text) + 1):
        if found := [word for word in words if text[:end].endswith(word)]:
            return text[: end - max(map(len, found))]
    return text


@given(PIECES, WORDS)
def test_the_pieces_do_not_change_the_text(pieces, words):
    stop_words, written, text = StopWords(words), "", "".join(pieces)
    for piece in pieces:
        written += stop_words.feed(piece)
        assert shortest(text, words).startswith(written)
        if stop_words.found:
            break
    assert stop_words.found == any(word in text for word in words)
    assert written + stop_words.rest() == shortest(text, words)


def test_text_comes_as_soon_as_it_is_certain():
    stop_words = StopWords(["end", "\n\n"])
    assert [stop_words.feed(piece) for piece in ("a", "e", "n", "t", "\n", "b")] == ["a", "", "", "ent", "", "\nb"]
    assert not StopWords([]).feed("") and StopWords([]).feed("x") == "x"
