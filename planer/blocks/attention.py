"""Relative multi-head attention of Transformer-XL (arXiv 1901.02860, section 3.3).

    score(i, j) = [ (q_i + u) . k_j + (q_i + v) . r_(M + i - j) ] / sqrt(d_head),     r_p = W_r sinusoid(p)

u and v belong to the block (the paper shares one pair over all layers, which has no meaning for blocks with different
numbers of heads).

Letters in shapes: B sequences, T queries, M remembered positions, K = M + T keys, H heads of width Dh, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planer import specs
from planer.blocks.block import Aux, Block, Segment, Source, repeated, set_weight


class RelativeAttention(nn.Module):
    """Scores and their mixture.  Subclasses have the projections: ``_project``, ``positions`` and ``output``."""

    def __init__(self, spec: specs.Attention, dropout: float, attention_dropout: float):
        super().__init__()
        self.num_heads, self.d_head, self.width = spec.num_heads, spec.d_head, spec.width
        self.u = nn.Parameter(torch.zeros(self.num_heads, self.d_head))
        self.v = nn.Parameter(torch.zeros(self.num_heads, self.d_head))
        self.attention_dropout = nn.Dropout(attention_dropout)
        self.dropout = nn.Dropout(dropout)
        self._position_keys: tuple[Tensor, int | None, Tensor] | None = None

    def train(self, mode: bool = True) -> RelativeAttention:
        self._position_keys = None
        return super().train(mode)

    def forward(
        self, x: Tensor, segment: Segment, memory: Tensor | tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """x: [B, T, D]; memory: block inputs [B, M, D], or keys and values [B, H, M, Dh], or None.

        Returns [B, T, D] and, in cached attention, keys and values of the last mem_len positions.
        """
        mixed, state = self._mix(segment, *self._project(x, segment, memory))
        return self.dropout(self.output(mixed)), state

    def _mix(
        self, segment: Segment, queries: Tensor, keys: Tensor, values: Tensor, *more: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """The mixture of values [B, T, H * Dh] for the output, and the state.  Arguments: results of ``_project``."""
        queries = queries * (1 / math.sqrt(self.d_head))
        u, v = (bias[:, None] * (1 / math.sqrt(self.d_head)) for bias in (self.u, self.v))
        scores = torch.matmul(queries + u, keys.transpose(-1, -2))
        scores += relative_shift(torch.matmul(queries + v, self._project_positions(segment)))
        scores += segment.mask
        probabilities = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        mixed = torch.matmul(self.attention_dropout(probabilities).to(values.dtype), values).transpose(1, 2).flatten(2)
        return mixed, (*_newest(keys, values, segment.mem_len), *more) if segment.attention == "cached" else None

    def _project(self, x: Tensor, segment: Segment, memory) -> tuple[Tensor, ...]:
        """Queries [B, H, T, Dh] of the segment, keys and values [B, H, K, Dh] of memory and segment.

        What follows them is remembered beside keys and values.
        """
        raise NotImplementedError

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[B, T, parts * H * Dh] as parts tensors [B, H, T, Dh]."""
        return x.unflatten(-1, (parts, self.num_heads, self.d_head)).permute(2, 0, 3, 1, 4).unbind(0)

    def _project_positions(self, segment: Segment) -> Tensor:
        """W_r R as [H, Dh, K], kept while an evaluating model sees the same table and W_r has not been written to."""
        # Compiled code cannot ask for versions; there, weights must stay as they are between inference calls.
        version = None if torch.compiler.is_compiling() else self._position_version()
        table = segment.positions
        if self._position_keys and self._position_keys[0] is table and self._position_keys[1] == version:
            return self._position_keys[2]
        keys = self.positions(table).unflatten(-1, (self.num_heads, self.d_head)).permute(1, 2, 0).contiguous()
        if segment.attention == "cached" and not keys.requires_grad:
            self._position_keys = (table, version, keys)
        return keys

    def _position_version(self) -> object:
        """Changes when W_r is written to."""
        return version_of(self.positions.weight)


def version_of(weight: Tensor) -> object:
    """Changes when a weight is written to.  Those made in inference mode count no writes: theirs equals nothing."""
    return object() if weight.is_inference() else weight._version


class Attention(RelativeAttention):
    """Heads of a fixed width: fewer heads make a proportionally cheaper layer."""

    def __init__(self, spec: specs.Attention, d_model: int, dropout: float, attention_dropout: float):
        super().__init__(spec, dropout, attention_dropout)
        self.qkv = nn.Linear(d_model, 3 * self.width, bias=False)
        self.positions = nn.Linear(d_model, self.width, bias=False)
        self.output = nn.Linear(self.width, d_model, bias=False)

    def _project(self, x: Tensor, segment: Segment, memory) -> tuple[Tensor, Tensor, Tensor]:
        if torch.is_tensor(memory):
            # One weight (its LAMB norm is one number), two products: remembered positions ask no queries.
            query_weight, key_value_weight = self.qkv.weight.split((self.width, 2 * self.width))
            queries = self._heads(F.linear(x, query_weight), 1)[0]
            seen = torch.cat((last(memory, segment.memory_len), x), dim=1)
            keys, values = self._heads(F.linear(seen, key_value_weight), 2)
            return queries, keys, values
        queries, keys, values = self._heads(self.qkv(x), 3)
        return queries, *with_cached(keys, values, memory)


class FirstHeads(Attention):
    """Attention with the first heads of a wider layer, whose weights it uses."""

    def __init__(self, narrow: Attention, wide: Attention):
        """narrow: an attention layer with the wanted number of heads."""
        nn.Module.__init__(self)
        self.num_heads, self.d_head, self.width = narrow.num_heads, narrow.d_head, narrow.width
        self.wide = wide
        self.attention_dropout, self.dropout = wide.attention_dropout, wide.dropout
        self._position_keys = None

    @property
    def qkv(self) -> _Product:
        return _Product(self.wide.qkv.weight.unflatten(0, (3, -1))[:, : self.width].flatten(0, 1))

    @property
    def positions(self) -> _Product:
        return _Product(self.wide.positions.weight[: self.width])

    @property
    def output(self) -> _Product:
        return _Product(self.wide.output.weight[:, : self.width])

    @property
    def u(self) -> Tensor:
        return self.wide.u[: self.num_heads]

    @property
    def v(self) -> Tensor:
        return self.wide.v[: self.num_heads]

    def weights(self) -> dict[str, Tensor]:
        """State dict of a separate layer that computes the same."""
        products = {f"{name}.weight": getattr(self, name).weight for name in ("qkv", "positions", "output")}
        return {name: tensor.detach().clone() for name, tensor in {**products, "u": self.u, "v": self.v}.items()}


class _Product(NamedTuple):
    """A linear layer made of a part of another one's weight [out, in]."""

    weight: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class MemoryBlock(Block):
    """An attention layer with its residual and LayerNorm."""

    uses_memory = True

    def forward(self, x: Tensor, segment: Segment, state=None) -> tuple[Tensor, tuple[Tensor, Tensor] | None, Aux]:
        """x: [B, T, D]; state: block inputs [B, M, D], or cached keys and values, or None for none.

        Returns the block's output and, in cached attention, the keys and values for the next segment.
        """
        if not self.pre_norm:
            y, state, aux = self.attend(x, segment, state)
            return self.norm(x + y), state, aux
        if torch.is_tensor(state):
            state = self.norm(state)
        y, state, aux = self.attend(self.norm(x), segment, state)
        return x + y, state, aux

    def attend(self, x: Tensor, segment: Segment, state) -> tuple[Tensor, tuple[Tensor, ...] | None, Aux]:
        """The sublayer's output [B, T, D], keys and values for the next segment, and its further outputs."""
        return *self.sublayer(x, segment, state), {}


class AttentionBlock(MemoryBlock):
    """Attention whose parts are its heads."""

    def start(self, source: Source, by_importance: bool = False, noise: Callable[[Tensor], None] | None = None) -> None:
        """Take the nearest attention's heads whose removal raises its error most, in the parent's order.

        Where there are more heads than the parent has, they are repeated, and their outputs divided by how often.
        """
        layer = self.sublayer
        if source.nearest is None or source.nearest.sublayer.d_head != layer.d_head:
            return
        other = source.nearest.sublayer
        ranked = source.importance.sort(descending=True, stable=True).indices[: layer.num_heads]
        heads, share = repeated(ranked if by_importance else ranked.sort().values, layer.num_heads)

        def taken(rows: Tensor) -> Tensor:
            """The heads of rows [H * Dh, ...]."""
            return rows.unflatten(0, (other.num_heads, other.d_head))[heads].flatten(0, 1)

        set_weight(layer.qkv.weight, torch.cat([taken(part) for part in other.qkv.weight.chunk(3)]))
        set_weight(layer.positions.weight, taken(other.positions.weight))
        outputs = other.output.weight.T.unflatten(0, (other.num_heads, other.d_head))[heads] * share[:, None, None]
        set_weight(layer.output.weight, outputs.flatten(0, 1).T)
        set_weight(layer.u, other.u[heads])
        set_weight(layer.v, other.v[heads])

    def importance(self, run: Callable[[], Tensor], output: Tensor) -> Tensor:
        """The block's relative squared error without each head, [H]."""
        scale = output.square().mean()
        return torch.stack([(run() - output).square().mean() / scale for _ in without_each_head(self.sublayer)])

    def share(self, owner: AttentionBlock) -> None:
        """Use the first heads of another attention layer (weight entanglement of AutoFormer, arXiv 2107.00651)."""
        self.sublayer = FirstHeads(self.sublayer, owner.sublayer)


def without_each_head(attention: Attention) -> Iterator[int]:
    """Yield once per head, while that head's output is off."""
    weight = attention.output.weight
    for head in range(attention.num_heads):
        columns = slice(head * attention.d_head, (head + 1) * attention.d_head)
        kept = weight[:, columns].clone()
        weight[:, columns] = 0
        try:
            yield head
        finally:
            weight[:, columns] = kept


def build(spec: specs.Attention, shared: specs.Architecture) -> AttentionBlock:
    layer = Attention(spec, shared.d_model, shared.dropout, shared.attention_dropout)
    return AttentionBlock(layer, shared.d_model, shared.norm)


def relative_shift(raw: Tensor) -> Tensor:
    """Turn scores by distance into scores by key: out[..., i, j] = raw[..., i, j + T - 1 - i].

    raw: [..., T, K], contiguous, column c for distance K-1-c.  The result is a strided view of it.  Keys after the
    query (j > K - T + i) read the next row's entries and must be masked.
    """
    return _RelativeShift.apply(raw) if raw.requires_grad else _shifted_view(raw)


def _shifted_view(raw: Tensor) -> Tensor:
    queries, keys = raw.shape[-2:]
    return raw.flatten(-2)[..., queries - 1 :].unfold(-1, keys, max(keys - 1, 1))


class _RelativeShift(torch.autograd.Function):
    """The view and, as gradient, one copy: the windows overlap only in masked cells, whose gradient is zero.

    unfold's own gradient, which sums overlaps, made forward and backward of the attention 25 % slower (B 16, H 8,
    T = M = 128, d_head 32, float32, 2 Cascade Lake cores).
    """

    @staticmethod
    def forward(ctx, raw: Tensor) -> Tensor:
        return _shifted_view(raw)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        queries, keys = grad.shape[-2:]
        flat = grad.new_empty(*grad.shape[:-2], queries * keys)
        flat[..., : queries - 1] = 0
        flat[..., queries - 1 : -1].unflatten(-1, (queries, keys - 1)).copy_(grad[..., :-1])
        flat[..., -1] = grad[..., -1, -1]
        return flat.unflatten(-1, (queries, keys))


def last(x: Tensor, count: int) -> Tensor:
    """The last count positions, or all where there are fewer, of [B, L, ...]."""
    return x[:, max(x.shape[1] - count, 0) :]


def with_cached(keys: Tensor, values: Tensor, memory: tuple[Tensor, ...] | None) -> tuple[Tensor, Tensor]:
    """Keys and values of the memory, if there is one, and of the segment."""
    if memory is None:
        return keys, values
    return torch.cat((memory[0], keys), dim=2), torch.cat((memory[1], values), dim=2)


def _newest(keys: Tensor, values: Tensor, mem_len: int) -> tuple[Tensor, Tensor]:
    """The last mem_len positions of keys and values [B, H, K, Dh]."""
    start = max(keys.shape[2] - mem_len, 0)
    return keys[:, :, start:].detach(), values[:, :, start:].detach()
