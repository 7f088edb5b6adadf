"""The routing plan: pairs grouped by expert, and the way back from tokens to their pairs.

Letters in shapes: N tokens, E experts, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from planer.kernels import triton
from planer.kernels.routing.pairs import Pairs


@dataclass(frozen=True)
class Plan:
    """Pairs sorted by expert; those of one expert stay in token order.

    order: [P] int64, sorted pair p is pair order[p] of the original list.  inverse: [P], its inverse permutation.
    token: [P] int64, the token of sorted pair p.
    offsets: [E + 1] int64, sorted pairs offsets[e] to offsets[e + 1] - 1 belong to expert e.
    token_offsets: [N + 1] int64, original pairs token_offsets[t] to token_offsets[t + 1] - 1 belong to token t; where
        they are in the sorted list says inverse.

    Tokens 0, 1, 2 with experts 1; 0, 1; 0 give order [1, 3, 0, 2], inverse [2, 0, 3, 1], token [1, 2, 0, 1],
    offsets [0, 2, 4] and token_offsets [0, 1, 3, 4].
    """

    order: Tensor
    inverse: Tensor
    token: Tensor
    offsets: Tensor
    token_offsets: Tensor


def plan(pairs: Pairs) -> Plan:
    """Group pairs by expert; on a GPU without waiting for it."""
    if pairs.expert.is_cuda and triton.AVAILABLE:
        return Plan(*_plan_on_gpu(pairs.expert, pairs.token, pairs.num_tokens, pairs.num_experts, pairs.per_token))
    return plan_reference(pairs)


def plan_reference(pairs: Pairs) -> Plan:
    """The definition, on any device."""
    order = torch.argsort(pairs.expert, stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.shape[0], device=order.device)
    return Plan(
        order,
        inverse,
        pairs.token[order],
        _offsets(pairs.expert, pairs.num_experts),
        _token_offsets(pairs.token, pairs.num_tokens, pairs.per_token),
    )


# An operator, because torch.compile cannot look into what launches kernels.
@torch.library.custom_op("planer::plan", mutates_args=())
def _plan_on_gpu(
    expert: Tensor, token: Tensor, num_tokens: int, num_experts: int, per_token: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from planer.kernels.routing.triton.plan import plan as launch

    *fields, token_offsets = launch(expert.contiguous(), token.contiguous(), num_experts, per_token)
    return *fields, _offsets(token, num_tokens) if token_offsets is None else token_offsets


@_plan_on_gpu.register_fake
def _(expert, token, num_tokens, num_experts, per_token):
    order, inverse, sorted_token = (expert.new_empty(expert.shape) for _ in range(3))
    return order, inverse, sorted_token, expert.new_empty(num_experts + 1), expert.new_empty(num_tokens + 1)


def _token_offsets(token: Tensor, num_tokens: int, per_token: int | None) -> Tensor:
    if per_token is None:
        return _offsets(token, num_tokens)
    return torch.arange(0, per_token * num_tokens + 1, per_token, device=token.device)


def _offsets(keys: Tensor, num_keys: int) -> Tensor:
    """Keys smaller than 0, 1, ..., num_keys: [num_keys + 1].  Unlike bincount it does not make a GPU wait."""
    counts = torch.zeros(num_keys + 1, dtype=torch.int64, device=keys.device)
    return counts.scatter_add_(0, keys + 1, torch.ones_like(keys)).cumsum_(0)
