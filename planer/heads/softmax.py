"""One softmax over the whole vocabulary, tied with the embedding: logits = h E^T + b."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from planer.heads.head import HeadSpec

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Softmax(HeadSpec):
    kind: ClassVar[str] = "softmax"

    def tensors(self, vocab_size: int, d_model: int) -> dict[str, tuple[int, ...]]:
        return {"bias": (vocab_size,)}

    def flops(self, vocab_size: int, d_model: int) -> float:
        return 2 * d_model * vocab_size

    def loss(self, head: nn.Module, rows: Tensor, words: Tensor) -> Tensor:
        from torch.nn.functional import cross_entropy

        def score(rows: Tensor, words: Tensor) -> Tensor:
            return cross_entropy(self.logits(head, rows), words, reduction="none")

        return head.by_rows(head.bias.numel(), score, rows, words)

    def logits(self, head: nn.Module, hidden: Tensor) -> Tensor:
        return head.linear(hidden, head.embedding.weight, head.bias)
