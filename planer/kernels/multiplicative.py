"""The multiplicative dense layer (Sparse is Enough in Scaling Transformers, arXiv 2111.12763, section 3.2).

    y[s, m] = sum over i of x[i] scales[s, i] shared[i, m]

S modules of width M side by side make S * M outputs.  The layer has S * D + D * M weights where a dense one has
D * S * M, and as many multiplications of inputs as the dense one.  It can be any permutation of its inputs.

Letters in shapes: D inputs, S modules, M width of a module.
"""

from __future__ import annotations

from torch import Tensor


def multiplicative(x: Tensor, scales: Tensor, shared: Tensor, bias: Tensor | None = None) -> Tensor:
    """x: [..., D]; scales: [S, D]; shared: [D, M]; bias: [S * M].  Returns [..., S * M].

    For few rows the inputs are scaled, for more than M the weights: whichever makes the smaller tensor.
    """
    if x[..., 0].numel() > shared.shape[1]:
        y = x @ (scales.t()[:, :, None] * shared[:, None]).flatten(1)
    else:
        y = ((x[..., None, :] * scales) @ shared).flatten(-2)
    return y if bias is None else y + bias
