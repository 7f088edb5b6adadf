"""What every head has in common, and the registry of heads.

Letters in shapes: N rows, D model width, V vocabulary.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from planer.errors import UserError
from planer.initial import Draw
from planer.parsing import build, show

if TYPE_CHECKING:
    from torch import Tensor, nn


class Cluster(NamedTuple):
    """Words start to stop - 1 of a vocabulary, and the share of a text's tokens that they make up."""

    start: int
    stop: int
    share: float

    @property
    def size(self) -> int:
        """Number of words."""
        return self.stop - self.start


@dataclass(frozen=True)
class HeadSpec:
    """A head as the configuration and architecture.yaml name it, tied with the embedding of the network.

    A subclass in a file of this folder is a head.  Its fields are the options of the head.  Its methods that take
    tensors get the module that holds the weights (``planer.models.head.Head``).
    """

    kind: ClassVar[str]
    """Name in the configuration."""
    waits_for_device: ClassVar[bool] = False
    """Whether the loss reads values back from the device, so that it cannot be captured in a CUDA graph."""

    def check(self, vocab_size: int, d_model: int) -> None:
        """Raise UserError when the options do not fit the vocabulary or the width."""

    def tables(self, vocab_size: int, d_model: int) -> tuple[tuple[int, int], ...]:
        """Shapes (words, width) of the embedding tables.  Tables narrower than D are projected to D."""
        return ((vocab_size, d_model),)

    def tensors(self, vocab_size: int, d_model: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights that the head adds to those of the embedding, by name."""
        raise NotImplementedError

    def initial(self) -> dict[str, Draw]:
        """Distributions that weights start from, by name, where it is not N(0, init_std)."""
        return {}

    def clusters(self, vocab_size: int) -> tuple[Cluster, ...]:
        """Parts of the vocabulary whose words take the same work."""
        return (Cluster(0, vocab_size, 1.0),)

    def flops(self, vocab_size: int, d_model: int) -> float:
        """Forward FLOPs per token of embedding and loss."""
        raise NotImplementedError

    def logits_per_row(self, vocab_size: int) -> int:
        """Most logits that the loss computes at a time for one token."""
        return vocab_size

    def loss(self, head: nn.Module, rows: Tensor, words: Tensor) -> Tensor:
        """Nats [N] of words [N] given hidden states [N, D] (negative log-likelihoods), in at least single precision."""
        raise NotImplementedError

    def logits(self, head: nn.Module, hidden: Tensor) -> Tensor:
        """[..., D] to [..., V], in at least single precision: their softmax is the distribution of the next word."""
        raise NotImplementedError

    def params(self, vocab_size: int, d_model: int) -> int:
        """Parameters of the embedding and the head."""
        tables = self.tables(vocab_size, d_model)
        projections = d_model * sum(width for _, width in tables) if len(tables) > 1 else 0
        own = sum(map(math.prod, self.tensors(vocab_size, d_model).values()))
        return sum(map(math.prod, tables)) + projections + own

    def to_dict(self) -> dict:
        """Plain values, the inverse of from_values."""
        options = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"kind": self.kind} | options

    @property
    def label(self) -> str:
        """Kind and options on one line."""
        return " ".join([self.kind, *(f"{name} {value}" for name, value in self.to_dict().items() if name != "kind")])

    @classmethod
    def from_values(cls, values: object, path: str) -> HeadSpec:
        """The head that a mapping with ``kind`` and options describes; path names it in messages.

        Raises UserError naming what is wrong and what is allowed.
        """
        if isinstance(values, HeadSpec):
            return values
        kind = values.get("kind") if isinstance(values, dict) else None
        if not isinstance(kind, str) or kind not in heads():
            given = f"{path}.kind is {show(kind)}" if isinstance(values, dict) else f"{path} is {show(values)}"
            raise UserError(f"config: {given}; allowed: {', '.join(f'{{kind: {name}}}' for name in heads())}")
        return build(heads()[kind], {name: value for name, value in values.items() if name != "kind"}, path)


@cache
def heads() -> dict[str, type[HeadSpec]]:
    """The heads by kind: one a file of this folder."""
    package = importlib.import_module("planer.heads")
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    files = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    classes = [value for file in files for value in vars(file).values() if isinstance(value, type)]
    return {spec.kind: spec for spec in classes if issubclass(spec, HeadSpec) and "kind" in vars(spec)}
