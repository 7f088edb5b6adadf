"""A dense feed-forward layer split into experts, of which each token executes its own subset.  For inference.

Weights are neuron-major: row j of w1 and row j of w2 belong to neuron j, and expert c owns rows c*s to (c+1)*s - 1.
One layout serves every expert size, and the whole layer is an ordinary dense layer when all experts run.

One function, several backends that compute the same:
- reference: the definition, one token and expert at a time, in the precision of its arguments;
- masked_dense: PyTorch, the dense layer with the hidden neurons of other experts set to zero;
- loop: PyTorch, expert by expert on the tokens that chose it;
- rows: PyTorch, token by token with the rows of the neurons that it chose;
- cpp: C++ on a CPU, float32, only what was chosen and nothing copied;
- triton: CUDA, only the neurons that some token of a block chose.

Letters in shapes: N tokens, D model width, F neurons, n experts, s = F / n neurons per expert.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from planer.kernels import choice, triton
from planer.kernels.activations import ALL, check_activation, factors
from planer.kernels.cpp import build
from planer.kernels.dynamic_ffn import backends
from planer.kernels.dynamic_ffn.reference import dynamic_ffn_reference
from planer.kernels.inference import Bias, arguments_of, refuse_gradients
from planer.kernels.shapes import check_shapes

BACKENDS = ("reference", "masked_dense", "loop", "rows", "cpp", "triton")
WIDEST = 8_192
"""Widest rows of the backend triton."""
MOST_NEURONS = 131_072
"""Of the backend triton, which has the pieces of a hidden layer side by side."""


def dynamic_ffn(
    x: Tensor, w1: Tensor, b1: Bias, w2: Tensor, b2: Bias, mask: Tensor, backend: str = "auto", activation: str = "relu"
) -> Tensor:
    """Sum the chosen experts of every token: y = b2 + sum over chosen c of w2_c^T act(w1_c x + b1_c).

    x: [N, D]; w1: [F, D]; b1: [F] or None; w2: [F, D]; b2: [D] or None; mask: [N, n] bool.  Returns [N, D].
    activation: one of activations.ALL; a gated one takes w1 [2F, D] and b1 [2F], the gate's rows first.
    backend: one of BACKENDS, or ``auto`` for the one that the table of this device names (``planer.kernels.choice``).

    There are no gradients but of the reference: calling backward raises RuntimeError.  Under autocast all products run
    in its precision.  Raises ValueError for an unknown activation or backend, where a backend cannot run, and for
    tensors that do not fit each other: experts must divide the neurons.
    """
    check_activation("dynamic_ffn", activation, ALL)
    if backend not in (*BACKENDS, "auto"):
        raise ValueError(f"dynamic_ffn: backend is {backend!r}; allowed: auto, {', '.join(BACKENDS)}")
    _check(x, w1, b1, w2, b2, mask, factors(activation))
    if backend == "reference":
        return dynamic_ffn_reference(x, w1, b1, w2, b2, mask, activation)
    arguments = arguments_of(x, w1, b1, w2, b2)
    return torch.ops.planer.dynamic_ffn(*arguments, mask.contiguous(), backend, activation)


def _check(x: Tensor, w1: Tensor, b1: Bias, w2: Tensor, b2: Bias, mask: Tensor, factors: int) -> None:
    """Raise ValueError for tensors that do not fit each other: compiled kernels would read other memory."""
    (tokens, experts), (rows, width) = mask.shape, w1.shape
    neurons = rows // factors
    if experts < 1 or neurons % experts:
        raise ValueError(f"dynamic_ffn: {experts} experts do not divide {neurons} neurons")
    if mask.dtype != torch.bool:
        raise ValueError(f"dynamic_ffn: mask is {mask.dtype}; allowed: torch.bool")
    check_shapes(
        "dynamic_ffn",
        ("x", x, (tokens, width)),
        ("w1", w1, (factors * neurons, width)),
        ("b1", b1, (factors * neurons,)),
        ("w2", w2, (neurons, width)),
        ("b2", b2, (width,)),
    )


# One call whose shapes do not depend on the mask, for torch.compile and FLOP counters.  Defined without the wrappers of
# torch.library.custom_op, which take longer than one token does: 7.5 against 4 us a call.
_library = torch.library.Library("planer", "FRAGMENT")
_library.define(
    "dynamic_ffn(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor mask, str backend, str activation) -> "
    "Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.impl(_library, "dynamic_ffn", "CompositeExplicitAutograd")
def _run(x: Tensor, w1: Tensor, b1: Bias, w2: Tensor, b2: Bias, mask: Tensor, backend: str, activation: str) -> Tensor:
    if backend == "auto":
        backend = _best(x, w2, mask)
    elif reason := unsupported(backend, x.device, x.dtype, x.shape[1], w2.shape[0]):
        raise ValueError(f"dynamic_ffn: backend {backend} {reason}")
    return getattr(backends, backend)(x, w1, b1, w2, b2, mask, activation)


@torch.library.register_fake("planer::dynamic_ffn", lib=_library)
def _(x, w1, b1, w2, b2, mask, backend, activation):
    return torch.empty_like(x)


refuse_gradients("dynamic_ffn", _library)


def _best(x: Tensor, w2: Tensor, mask: Tensor) -> str:
    """The best backend of the device's table that can run this call."""
    tokens, experts = mask.shape
    share = None
    if not x.is_cuda:  # there, the count would have to be waited for
        share = choice.bucket(mask.count_nonzero().item() / max(1, mask.numel()))
    neurons, width = w2.shape
    order = choice.order("dynamic_ffn", x.device, x.dtype, "inference", tokens, neurons // experts, share)
    kind = x.device, x.dtype, width, neurons
    return next(name for name in (*order, "masked_dense") if unsupported(name, *kind) is None)


def unsupported(backend: str, device: torch.device, dtype: torch.dtype, d_model: int, neurons: int) -> str | None:
    """Why a backend cannot run on such arguments, or None.  Every backend has all activations."""
    if backend == "triton":
        if d_model > WIDEST:
            return f"needs a width of at most {WIDEST:,}, which is {d_model:,}"
        if neurons > MOST_NEURONS:
            return f"needs at most {MOST_NEURONS:,} neurons, which are {neurons:,}"
        return triton.unsupported(device, dtype)
    if backend == "cpp":
        return build.unsupported(device, dtype, torch.float32)
    return None


@register_flop_formula(torch.ops.planer.dynamic_ffn, get_raw=True)
def _flops(x, w1, b1, w2, b2, mask, *_, **__) -> int:
    """The products of every chosen neuron, whatever the backend computes beyond."""
    return 2 * x.shape[1] * ((w1.shape[0] + w2.shape[0]) // mask.shape[1]) * int(mask.count_nonzero())
