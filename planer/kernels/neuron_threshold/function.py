"""A feed-forward layer that computes only the neurons of each token over a threshold.  For inference, token by token.

With z = W1 x + b1, split into gate and other factor where the layer is gated, and h = act(gate) * other or h = act(z):

    y = b2 + sum of h_j w2_j over the neurons j with |value_j| > limit_j

- score ``gate`` (CATS, arXiv 2404.08763): value = act(gate).  The gate is dense, the other factor and w2 are read for
  neurons that run: (1 + 2 share) / 3 of the layer's products.
- score ``product``: value = h.  Gate and other factor are dense: (2 + share) / 3 of the products.
- without a gate both are act(z): (1 + share) / 2 of the products.

A limit of 0 leaves out neurons that add nothing.  A value that is not a number runs, so that it shows in y.
Weights are neuron-major: row j of w1 and row j of w2 belong to neuron j.

Backends that compute the same:
- reference: the definition, in the precision of its arguments;
- masked_dense: PyTorch, all neurons, then zeros for those that do not run;
- fused: the same products on a CPU, float32, and one pass in C++ between them; for many tokens;
- cpp: C++ on a CPU, float32; reads only the weights of neurons that run; for few tokens;
- triton: Triton kernels for CUDA, for few tokens; reads only the weights of neurons that one of 16 tokens runs.

Letters in shapes: N tokens, D model width, F neurons.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from planer.kernels import choice, triton
from planer.kernels.activations import ALL, check_activation, factors
from planer.kernels.cpp import build
from planer.kernels.inference import Bias, arguments_of, refuse_gradients
from planer.kernels.neuron_threshold import backends
from planer.kernels.neuron_threshold.reference import neuron_threshold_reference
from planer.kernels.shapes import check_shapes

BACKENDS = ("reference", "masked_dense", "fused", "cpp", "triton")
SPARSE = ("cpp", "triton")
"""Backends that leave out products."""
SCORES = ("gate", "product")


def neuron_threshold(
    x: Tensor,
    w1: Tensor,
    b1: Bias,
    w2: Tensor,
    b2: Bias,
    limits: Tensor,
    score: str = "product",
    backend: str = "auto",
    activation: str = "relu",
    density: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """y [N, D], and how many neurons each token ran, [N] int64.

    x: [N, D]; w1: [F, D]; b1: [F] or None; w2: [F, D]; b2: [D] or None; limits: [F], not negative.
    activation: as in planer/kernels/activations.py; a gated one takes w1 [2F, D] and b1 [2F], the gate's rows first.
    score: one of SCORES.  backend: one of BACKENDS, or ``auto`` for the one that the table of this device names for so
    many tokens and this density.  density: the share of neurons that are expected to run, from 0 to 1; where it was not
    measured, all of them.

    There are no gradients but of the reference: calling backward raises RuntimeError.  Under autocast all products run
    in its precision.  Raises ValueError for an unknown score, activation or backend, where a backend cannot run, and
    for tensors that do not fit each other.
    """
    check_activation("neuron_threshold", activation, ALL)
    for name, value, allowed in (("score", score, SCORES), ("backend", backend, ("auto", *BACKENDS))):
        if value not in allowed:
            raise ValueError(f"neuron_threshold: {name} is {value!r}; allowed: {', '.join(allowed)}")
    neurons, width = w2.shape
    check_shapes(
        "neuron_threshold",
        ("x", x, (len(x), width)),
        ("w1", w1, (factors(activation) * neurons, width)),
        ("b1", b1, (factors(activation) * neurons,)),
        ("b2", b2, (width,)),
        ("limits", limits, (neurons,)),
    )
    if backend == "reference":
        return neuron_threshold_reference(x, w1, b1, w2, b2, limits, score, activation)
    arguments = arguments_of(x, w1, b1, w2, b2)
    return torch.ops.planer.neuron_threshold(*arguments, limits.contiguous(), score, backend, activation, density)


# One call whose shapes do not depend on what runs, for torch.compile and FLOP counters.  Defined without the wrappers
# of torch.library.custom_op, as dynamic_ffn is.
_library = torch.library.Library("planer", "FRAGMENT")
_library.define(
    "neuron_threshold(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor limits, str score, str backend, "
    "str activation, float density) -> (Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.impl(_library, "neuron_threshold", "CompositeExplicitAutograd")
def _run(
    x: Tensor,
    w1: Tensor,
    b1: Bias,
    w2: Tensor,
    b2: Bias,
    limits: Tensor,
    score: str,
    backend: str,
    activation: str,
    density: float,
) -> tuple[Tensor, Tensor]:
    if backend == "auto":
        backend = _best(x.device, x.dtype, len(x), density)
    elif reason := unsupported(backend, x.device, x.dtype):
        raise ValueError(f"neuron_threshold: backend {backend} {reason}")
    return getattr(backends, backend)(x, w1, b1, w2, b2, limits, score, activation)


@torch.library.register_fake("planer::neuron_threshold", lib=_library)
def _(x, w1, b1, w2, b2, limits, score, backend, activation, density):
    return torch.empty_like(x), torch.empty(len(x), dtype=torch.int64, device=x.device)


refuse_gradients("neuron_threshold", _library)


def _best(device: torch.device, dtype: torch.dtype, tokens: int, density: float) -> str:
    """The best backend of the device's table that can run such a call."""
    order = choice.order("neuron_threshold", device, dtype, "inference", tokens, 1, choice.bucket(density))
    return next(name for name in (*order, "masked_dense") if unsupported(name, device, dtype) is None)


def saves_time(device: torch.device, dtype: torch.dtype, density: float) -> bool:
    """Whether a single token of a layer of this density is expected to take less time than all its products.

    A table that was not measured tells nothing of time: then it is not.
    """
    return _best(device, dtype, 1, density) in SPARSE and choice.is_measured("neuron_threshold", device)


def unsupported(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend cannot run on such arguments, or None.  Every backend has all activations and scores."""
    if backend == "triton":
        return triton.unsupported(device, dtype)
    if backend in ("fused", "cpp"):
        return build.unsupported(device, dtype, torch.float32)
    return None


@register_flop_formula(torch.ops.planer.neuron_threshold, get_raw=True)
def _flops(x, w1, b1, w2, b2, limits, score, *_, out_val=None, **__) -> int:
    """The products before the comparison, and the others of every neuron that runs, whatever the backend computes."""
    (tokens, width), (neurons, _) = x.shape, w2.shape
    rows = len(w1) // neurons
    dense = 1 if score == "gate" else rows
    return 2 * width * (tokens * neurons * dense + (rows + 1 - dense) * int(out_val[1].sum()))
