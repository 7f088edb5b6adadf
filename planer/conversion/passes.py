"""Passes of a pretrained network that begin at a later block: those before it give the results of an earlier pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn


def block_of(model: nn.Module, name: str) -> tuple[nn.ModuleList, int]:
    """The blocks that run one after another, and the number of the one that has the module of this name.

    Every family keeps its blocks in one list.
    """
    parts = name.split(".")
    prefixes = (".".join(parts[:end]) for end in range(1, len(parts)))
    found = next(prefix for prefix in prefixes if isinstance(model.get_submodule(prefix), nn.ModuleList))
    return model.get_submodule(found), int(name.removeprefix(f"{found}.").partition(".")[0])


@contextmanager
def recording(blocks: Sequence[nn.Module]) -> Iterator[list[object]]:
    """The results of the blocks in the pass inside the context, in order."""
    results: list[object] = []
    handles = [block.register_forward_hook(lambda block, inputs, result: results.append(result)) for block in blocks]
    try:
        yield results
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def returning(blocks: Sequence[nn.Module], results: Sequence[object]) -> Iterator[None]:
    """Have blocks return these results without computing anything inside the context."""
    for block, result in zip(blocks, results, strict=True):
        block.forward = lambda *inputs, result=result, **options: result
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
