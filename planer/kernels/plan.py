"""The routing plan: pairs grouped by expert, and the way back from tokens to their pairs.

Letters in shapes: N tokens, E experts, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from planer.kernels.routing import Pairs


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
    """Group pairs by expert."""
    order = torch.argsort(pairs.expert, stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.shape[0], device=order.device)
    return Plan(
        order,
        inverse,
        pairs.token[order],
        _offsets(pairs.expert, pairs.num_experts),
        token_offsets(pairs),
    )


def token_offsets(pairs: Pairs) -> Tensor:
    """Where the pairs of each token begin in the token-major list, and its end: [N + 1]."""
    if pairs.per_token is None:
        return _offsets(pairs.token, pairs.num_tokens)
    return torch.arange(pairs.num_tokens + 1, device=pairs.token.device) * pairs.per_token


def _offsets(keys: Tensor, num_keys: int) -> Tensor:
    """Keys smaller than 0, 1, ..., num_keys: [num_keys + 1].  Unlike bincount it does not make a GPU wait."""
    counts = torch.zeros(num_keys + 1, dtype=torch.int64, device=keys.device)
    return counts.scatter_add_(0, keys + 1, torch.ones_like(keys)).cumsum_(0)
