"""Routing: which token meets which expert.

Every sparse layer of the project speaks of one thing, a list of (token, expert, gate) pairs.  Top-1 and top-2
mixtures of experts and dynamic-k layers differ only in how the list, or the equivalent token-by-expert mask, is made.

Letters in shapes: N tokens, E or n experts, P pairs, k experts per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Token-expert pairs in token-major order: all pairs of token 0, then those of token 1, and so on.

    token, expert: [P] int64.  gate: [P], the weight of each pair's output, or None for an unweighted sum.
    per_token: the number of pairs of every token when it is the same for all, else None.
    """

    token: Tensor
    expert: Tensor
    gate: Tensor | None
    num_tokens: int
    num_experts: int
    per_token: int | None = None


def top_k(logits: Tensor, k: int) -> tuple[Pairs, Tensor]:
    """Give every token its k best experts.

    logits: [N, E] in at least single precision.  Returns the pairs and the softmax probabilities [N, E].

    The gate of a lone expert is its probability, as in Switch Transformer (arXiv 2101.03961, eq. 2); with k > 1 the
    k probabilities are divided by their sum, as in GShard (arXiv 2006.16668, algorithm 1).  Among equal logits the
    expert with the lowest number wins, on every device.
    """
    num_tokens, num_experts = logits.shape
    if not 1 <= k <= num_experts:
        raise ValueError(f"top_k: k is {k}; allowed: 1 to {num_experts}, the number of experts")
    probabilities = logits.t().softmax(dim=0).t()  # rows of 8 do not fill a vector: 4x faster on CPU than dim=-1
    if k == 1:
        chosen = logits.argmax(dim=-1, keepdim=True)
    else:
        chosen = logits.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    gate = probabilities.gather(1, chosen)
    if k > 1:
        gate = gate / gate.sum(dim=-1, keepdim=True)
    token = torch.arange(num_tokens, device=logits.device)
    token = token if k == 1 else token.repeat_interleave(k, output_size=num_tokens * k)
    return Pairs(token, chosen.flatten(), gate.flatten(), num_tokens, num_experts, k), probabilities


def threshold(scores: Tensor, tau: float) -> Tensor:
    """Dynamic-k: execute the experts whose score reaches the share tau of the token's best score.

    scores: [N, n], not negative.  Returns a mask [N, n].  Score c is chosen when score_c >= tau * max_c score_c
    (D2DMoE, arXiv 2310.04361, section 3.3), so every token keeps at least one expert.  A token whose scores are all
    zero keeps all experts, and so does a token with a NaN among its scores.
    """
    if not 0.0 <= tau <= 1.0:
        raise ValueError(f"threshold: tau is {tau}; allowed: 0 to 1")
    # Not scores >= ...: every comparison with NaN is false, so that no expert would run.
    return (scores < tau * scores.amax(dim=-1, keepdim=True)).logical_not_()
