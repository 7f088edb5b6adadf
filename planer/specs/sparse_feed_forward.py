"""Feed-forward layers of which one neuron in N runs: ``n16``, one in 16 (Sparse is Enough, arXiv 2111.12763)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from planer.parsing import Range, show
from planer.specs.block import Backbone, BlockSpec, Size, number_after

Share = Annotated[float, Range(0, 1)]
GATHER_SHARE = 4
"""Inference gathers rows for up to N / GATHER_SHARE tokens and computes all neurons for more.  Milliseconds of
gathering and of all neurons (d_model 1024, d_inner 4096, float32, one core of a shared Xeon): N 16, 1 token 1.4 and
3.0, 4 tokens 5.1 and 5.8, 8 tokens 15.8 and 7.9; N 64, 1 token 0.6 and 2.9, 16 tokens 4.9 and 7.8, 64 tokens 27.4 and
16.5."""


@dataclass(frozen=True)
class SparseFeedForward(BlockSpec):
    """d_inner neurons in blocks of block_size; a low-rank controller picks the neuron of each block that runs.

    rank: of the controller; 0 is the paper's, d_model / block_size.
    relu: ``after`` the mask (trax) or ``before`` it (the paper's formula).  The output is the same; after the mask,
        neurons that were not picked give the controller no gradient.
    hard_share: share of training steps with one neuron a block; the others weigh all neurons by the softmax.
    temperature: of the sampled neuron, which follows softmax(logits / temperature).
    scaled: w2 starts sqrt(block_size) times larger, for outputs as large as those of a dense layer.
    weighted: the activation of a picked neuron is multiplied by its softmax probability.
    """

    d_inner: Size
    block_size: Annotated[int, Range(2, 2**24)]
    rank: Annotated[int, Range(0, 2**24)] = 0
    relu: Literal["after", "before"] = "after"
    hard_share: Share = 0.3
    temperature: Annotated[float, Range(0, 1_000)] = 0.1
    scaled: bool = False
    weighted: bool = False
    kind: ClassVar[str] = "sparse_feed_forward"
    label: ClassVar[str] = "sparse feed-forward"
    colour: ClassVar[str] = "#f0e442"
    text_colour: ClassVar[str] = "#231a05"
    options: ClassVar[tuple[str, ...]] = ("sparse_feed_forward_<N>",)
    settings: ClassVar[tuple[str, ...]] = ("rank", "relu", "hard_share", "temperature", "scaled", "weighted")
    starts_from: ClassVar[str] = "feed_forward"

    @classmethod
    def parse(cls, option: str, backbone: Backbone) -> SparseFeedForward | None:
        if (block_size := number_after("sparse_feed_forward_", option)) is None:
            return None
        if block_size < 2 or backbone.d_inner % block_size:
            allowed = f"allowed: 2 or more that divide d_inner, {backbone.d_inner}"
            raise ValueError(f"{show(option)} runs one neuron in {block_size}; {allowed}")
        return cls(backbone.d_inner, block_size)

    @classmethod
    def symbols(cls, backbone: Backbone) -> dict[str, SparseFeedForward]:
        sizes = [size for size in range(2, backbone.d_inner + 1) if backbone.d_inner % size == 0]
        return {f"n{size}": cls(backbone.d_inner, size) for size in sizes}

    @classmethod
    def option_label(cls, number: int) -> str:
        return f"{cls.label}, 1 in {number}"

    @property
    def name(self) -> str:
        return f"sparse_feed_forward_{self.block_size}"

    @property
    def symbol(self) -> str:
        return f"n{self.block_size}"

    @property
    def num_blocks(self) -> int:
        """Neurons that run for a token."""
        return self.d_inner // self.block_size

    def check(self) -> None:
        if self.d_inner % self.block_size:
            raise ValueError(f"sparse_feed_forward: {self.block_size} does not divide d_inner, {self.d_inner}")

    def rank_in(self, d_model: int) -> int:
        """Rank of the controller in a network of this width."""
        return self.rank or max(1, d_model // self.block_size)

    def gathers(self, tokens: int) -> bool:
        """Whether an inference of this number of tokens reads only the rows of the neurons that run."""
        return GATHER_SHARE * tokens <= self.block_size

    def shapes(self) -> dict[str, int]:
        return {"d_inner": self.d_inner}

    def _params(self, d_model: int, neurons: int) -> int:
        """With this number of neurons read beside the whole controller."""
        controller = self.rank_in(d_model) * (d_model + self.d_inner) + self.d_inner
        return neurons * (2 * d_model + 1) + controller + d_model + 2 * d_model

    def params(self, d_model: int) -> int:
        return self._params(d_model, self.d_inner)

    def active_params(self, d_model: int) -> int:
        return self._params(d_model, self.num_blocks)

    def flops(self, d_model: int, batch: int, tgt_len: int, mem_len: int, attention: str) -> float:
        """Calls of many tokens, those of training too, compute all neurons."""
        neurons = self.num_blocks if self.gathers(batch * tgt_len) else self.d_inner
        return 4 * d_model * neurons + 2 * self.rank_in(d_model) * (d_model + self.d_inner)

    def activations(self, d_model: int, batch: int, tgt_len: int, mem_len: int) -> int:
        """Softmax, mask, hidden neurons before the mask, after it and after the ReLU."""
        return batch * tgt_len * (4 * d_model + 5 * self.d_inner + self.rank_in(d_model))
