"""The notation of the Sandwich Transformer and PAR papers, ``(sfff)x6(f)x8``: one symbol per block.

======  =====================================================  ============================
symbol  block                                                  option name
======  =====================================================  ============================
``i``   skip, the bare identity                                ``skip``
``s``   self-attention with all heads                          ``attention_<heads>``
``s4``  self-attention with 4 heads, d_head unchanged          ``attention_4``
``f``   feed-forward layer                                     ``feed_forward``
``f4``  feed-forward layer, four times as wide                 ``feed_forward_x4``
``m2``  mixture of experts, 2 experts per token                ``moe_top2``
``n16`` feed-forward layer of which one neuron in 16 runs      ``sparse_feed_forward_16``
``q16`` attention with multiplicative projections              ``sparse_attention_16``
``c16`` the same with convolutions                             ``sparse_conv_attention_16``
``d16`` dense layer split into experts of 16 neurons           (conversion only)
``p8``  self-attention with 8 heads and MLPs as projections    (conversion only)
``e8``  the same with the MLPs split into experts              (conversion only)
======  =====================================================  ============================
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from planer.specs.block import BlockSpec

MAX_BLOCKS = 1_000
"""Most blocks of a network: thirty times those of the papers' deepest network."""


def from_notation(text: str, options: Mapping[str, BlockSpec]) -> tuple[BlockSpec, ...]:
    """Read ``(sfff)x6(f)x8`` into block specifications.

    options maps symbols (``s``, ``f``, ``s4``, ``m2``, ...) to specifications.
    Raises ValueError, naming the symbol or the position, for other text and for more than MAX_BLOCKS blocks.
    """
    blocks: list[BlockSpec] = []
    position = 0
    group_pattern = re.compile(r"\(((?:[a-z][0-9]*)+)\)x([1-9][0-9]*)|([a-z][0-9]*)")
    while position < len(text):
        match = group_pattern.match(text, position)
        if not match:
            place = text[position : position + 20]
            raise ValueError(f"pattern {_shortened(text)!r}: cannot read {place!r}; write groups as (sf)x4")
        symbols = re.findall(r"[a-z][0-9]*", match[1] or match[3])
        repeats = int(match[2][:9]) if match[2] else 1  # nine digits are too many already
        if len(blocks) + len(symbols) * repeats > MAX_BLOCKS:
            raise ValueError(f"pattern {_shortened(text)!r}: more than {MAX_BLOCKS:,} blocks")
        for symbol in symbols:
            if symbol not in options:
                spelling = re.sub(r"^(.)0+(?=\d)", r"\1", symbol)
                hint = f"write it {spelling}" if spelling in options else f"allowed: {_summary(options)}"
                raise ValueError(f"pattern {_shortened(text)!r}: unknown block {symbol!r}; {hint}")
        blocks += [options[symbol] for symbol in symbols] * repeats
        position = match.end()
    if not blocks:
        raise ValueError("pattern is empty; write the blocks in order, such as (sf)x4")
    return tuple(blocks)


def _summary(symbols: Iterable[str]) -> str:
    """Symbols for a message: ``i, s, f, s1 to s8``."""
    shown = [symbol for symbol in symbols if len(symbol) == 1]
    numbers: dict[str, list[int]] = {}
    for symbol in symbols:
        if len(symbol) > 1:
            numbers.setdefault(symbol[0], []).append(int(symbol[1:]))
    for letter, found in numbers.items():
        last = f" to {letter}{max(found)}" if len(found) > 1 else ""
        shown.append(f"{letter}{min(found)}{last}")
    return ", ".join(shown)


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:60]}..."


def to_notation(blocks: Sequence[BlockSpec], d_model: int) -> str:
    """Write blocks as ``s1s(f)x2``: repeated groups, found from the left."""
    symbols = [block.symbol_in(d_model) for block in blocks]
    parts, start = [], 0
    while start < len(symbols):
        width, repeats = _longest_repeat(symbols[start:])
        group = "".join(symbols[start : start + width])
        parts.append(f"({group})x{repeats}" if repeats > 1 else group)
        start += width * repeats
    return "".join(parts)


def _longest_repeat(symbols: list[str]) -> tuple[int, int]:
    """Width and repeats of the group that covers most of the list from its start; (1, 1) without repeats."""
    best = (1, 1)
    for width in range(1, len(symbols) // 2 + 1):
        repeats = 1
        while symbols[repeats * width : (repeats + 1) * width] == symbols[:width]:
            repeats += 1
        if repeats > 1 and width * repeats > best[0] * best[1]:
            best = (width, repeats)
    return best
