"""Forward FLOPs per token, counted from the operations that run and held against the closed forms.

torch's FlopCounterMode counts 2 x multiply-adds of the matrix products that PyTorch dispatches.  It cannot see
- elementwise work: LayerNorm, softmax, ReLU, dropout, the residual sums, the relative shift;
- gathers, scatters and sorts: embedding, routing, memory updates;
- the insides of kernels that PyTorch does not know, unless they register a formula
  (torch.utils.flop_counter.register_flop_formula).
The closed forms of ``Architecture.flops`` leave out the same elementwise work, so that both must agree.  What a
threshold really executes in converted layers, ``dynamic_k`` counts from the routing.
"""

from __future__ import annotations

from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from planer.config import Workload
from planer.models import LanguageModel

TOLERANCE = 0.005
"""Counter and closed form may differ by this share."""


@torch.no_grad()
def count_flops(model: LanguageModel, workload: Workload) -> float:
    """FLOPs per token of one call with a full memory, embedding and head included, by torch's counter.

    Where the work of the head depends on the word, each kind of word counts with its share of a text.

    The model must be in evaluation mode: cached attention projects the position table once, which is not part of a
    call.
    """
    device, architecture = next(model.parameters()).device, model.architecture
    tokens = torch.zeros(workload.batch, workload.tgt_len, dtype=torch.int64, device=device)
    state = None
    for _ in range(1 + -(-workload.mem_len // workload.tgt_len)):
        state = model(tokens, state, mem_len=workload.mem_len, attention=workload.attention).state
    total = 0.0
    for cluster in architecture.head.clusters(architecture.vocab_size):
        with FlopCounterMode(display=False) as counter:
            score = partial(model.nll, targets=tokens + cluster.start)
            model(tokens, state, score, mem_len=workload.mem_len, attention=workload.attention)
        total += cluster.share * counter.get_total_flops()
    return total / tokens.numel()


def checked_flops(model: LanguageModel, workload: Workload) -> tuple[float, float]:
    """FLOPs per token by the counter and by the closed form, which must agree."""
    counted = count_flops(model, workload)
    formula = model.architecture.flops(workload.batch, workload.tgt_len, workload.mem_len, workload.attention)
    assert abs(counted - formula) <= TOLERANCE * formula, (
        f"{model.architecture.pattern}: the counter sees {counted:.6g} FLOPs per token, the closed form says "
        f"{formula:.6g}; a kernel lacks its FLOP formula or Architecture.flops is wrong"
    )
    return counted, formula
