"""Feed-forward experts on routed tokens: y[t] = sum over the token's pairs of gate * FFN_expert(x[t]).

One function, several backends that compute the same:
- reference: the definition, one pair at a time, in the precision of its arguments;
- loop: PyTorch, one product an expert;
- grouped_mm: PyTorch's grouped products;
- cpp: C++ on a CPU, expert by expert while its rows are in the cache;
- triton: CUDA, with gather, bias, activation and gate inside the products.

All but the reference run inside two operators, ``planer::expert_ffn`` and its backward, so that torch.compile and
FLOP counters see one call whose shapes do not depend on the routing.

Letters in shapes: N tokens, D model width, E experts, I neurons of an expert, P pairs.
"""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from planer.kernels import choice
from planer.kernels.activations import check_activation, factors
from planer.kernels.expert_ffn.compiled import Cpp, Triton
from planer.kernels.expert_ffn.products import GroupedMM, Layer, Loop
from planer.kernels.expert_ffn.reference import expert_ffn_reference
from planer.kernels.inference import Bias, arguments_of
from planer.kernels.routing import Pairs, Plan
from planer.kernels.routing import plan as plan_of
from planer.kernels.shapes import check_shapes

BACKENDS = ("reference", "loop", "grouped_mm", "cpp", "triton")


def expert_ffn(
    x: Tensor,
    w1: Tensor,
    b1: Bias,
    w2: Tensor,
    b2: Bias,
    pairs: Pairs,
    dropout: float = 0.0,
    training: bool = False,
    activation: str = "relu",
    backend: str = "auto",
    plan: Plan | None = None,
) -> Tensor:
    """Apply each expert to its tokens and sum a token's experts, weighted by their gates.

    x: [N, D]; w1: [E, I, D]; b1: [E, I] or None; w2: [E, D, I]; b2: [E, D] or None.  Returns [N, D].
    FFN_e(x) = w2[e] dropout(act(w1[e] x + b1[e])) + b2[e]; dropout acts in training.
    activation: one of ACTIVATIONS; a gated one takes w1 [E, 2I, D] and b1 [E, 2I], the gate's rows first.
    backend: one of BACKENDS, or ``auto`` for the one that the table of this device names (``planer.kernels.choice``).
    plan: of the pairs, if there is one.

    Experts without tokens get gradients of exactly zero.  Under autocast all products run in its precision.
    Raises ValueError for an unknown activation or backend, where a backend cannot run, and for tensors that do not fit
    each other.
    """
    check_activation("expert_ffn", activation)
    if backend not in (*BACKENDS, "auto"):
        raise ValueError(f"expert_ffn: backend is {backend!r}; allowed: auto, {', '.join(BACKENDS)}")
    _check(x, w1, b1, w2, b2, pairs, factors(activation))
    if backend == "reference":
        return expert_ffn_reference(x, w1, b1, w2, b2, pairs, activation)
    x, w1, b1, w2, b2 = arguments_of(x, w1, b1, w2, b2)
    gate = pairs.gate
    if gate is not None:
        gate = gate.to(torch.promote_types(x.dtype, torch.float32)).contiguous()
    plan = plan or plan_of(pairs)
    dropout_mask = None
    if training and dropout:
        dropout_mask = F.dropout(x.new_ones(plan.token.shape[0], w2.shape[2]), dropout)
    differentiable = (t for t in (x, w1, b1, w2, b2, gate) if t is not None)
    save = torch.is_grad_enabled() and any(t.requires_grad for t in differentiable)
    layer = x, w1, b1, w2, b2, gate, *vars(plan).values(), dropout_mask, pairs.per_token or 0, activation
    return torch.ops.planer.expert_ffn(*layer, backend, save)[0]


def _check(x: Tensor, w1: Tensor, b1: Bias, w2: Tensor, b2: Bias, pairs: Pairs, factors: int) -> None:
    """Raise ValueError for tensors that do not fit each other: compiled kernels would read other memory."""
    experts, rows, width = w1.shape
    d_inner = rows // factors
    count = pairs.token.shape[0] if pairs.per_token is None else pairs.num_tokens * pairs.per_token
    check_shapes(
        "expert_ffn",
        ("x", x, (pairs.num_tokens, width)),
        ("w1", w1, (pairs.num_experts, factors * d_inner, width)),
        ("b1", b1, (experts, factors * d_inner)),
        ("w2", w2, (experts, width, d_inner)),
        ("b2", b2, (experts, width)),
        ("token", pairs.token, (count,)),
        ("expert", pairs.expert, (count,)),
        ("gate", pairs.gate, (count,)),
    )


LAYER = (
    "Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor? gate, "
    "Tensor order, Tensor inverse, Tensor token, Tensor offsets, Tensor token_offsets, Tensor? dropout_mask, "
    "SymInt per_token, str activation"
)
"""What both operators take: a Layer and the fields of its Plan, not as a list, which takes longer with gradients."""


@torch.library.custom_op(
    "planer::expert_ffn", mutates_args=(), schema=f"({LAYER}, str backend, bool save) -> (Tensor y, Tensor hidden)"
)
def _forward_op(*arguments):
    """y [N, D], and what backward needs, [P, H], or nothing, [0, H], unless save is set."""
    *arguments, backend, save = arguments
    layer = _layer(*arguments)
    y, hidden = _backend(backend, layer, training=save).forward(save)
    return y, hidden if save else hidden.new_empty(0, layer.w1.shape[1])


@torch.library.custom_op(
    "planer::expert_ffn_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor hidden, {LAYER}, str backend, bool[] needs) -> "
    "(Tensor dx, Tensor dw1, Tensor db1, Tensor dw2, Tensor db2, Tensor dgate)",
)
def _backward_op(grad, hidden, *arguments):
    """Gradients of the first six arguments, each empty, [0], where needs says that nobody asks for it."""
    *arguments, backend, needs = arguments
    layer = _layer(*arguments)
    gradients = _backend(backend, layer, training=True).backward(grad, hidden, needs)
    return tuple(g if need else grad.new_empty(0) for g, need in zip(gradients, needs, strict=True))


def _layer(*arguments) -> Layer:
    return Layer(*arguments[:6], Plan(*arguments[6:11]), *arguments[11:])


@_forward_op.register_fake
def _(x, w1, b1, w2, b2, gate, order, *options):
    *_, save = options
    return torch.empty_like(x), x.new_empty(order.shape[0] if save else 0, w1.shape[1])


@_backward_op.register_fake
def _(grad, hidden, x, w1, b1, w2, b2, gate, *arguments):
    *_, needs = arguments
    inputs = zip((x, w1, b1, w2, b2, gate), needs, strict=True)
    return tuple(torch.empty_like(t) if need else grad.new_empty(0) for t, need in inputs)


def _setup_context(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:12], output[1])
    ctx.options = inputs[12:15]
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):
    unused = (None,) * 16
    if grad is None:
        return unused
    *tensors, hidden = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:6])
    gradients = torch.ops.planer.expert_ffn_backward(grad.contiguous(), hidden, *tensors, *ctx.options, needs)
    return *(g if need else None for g, need in zip(gradients, needs, strict=True)), *unused[6:]


_forward_op.register_autograd(_backward, setup_context=_setup_context)


CLASSES = {"loop": Loop, "grouped_mm": GroupedMM, "cpp": Cpp, "triton": Triton}


def _backend(name: str, layer: Layer, training: bool) -> Loop | GroupedMM | Cpp | Triton:
    """The backend of a call, ready to run; ``auto`` is the best of the device's table that can run it."""
    num_experts, d_model, d_inner = layer.w2.shape
    kind, widths = (layer.x.device, layer.x.dtype), (d_model, d_inner, layer.activation)
    if name == "auto":
        pairs, tokens = layer.plan.token.shape[0], layer.x.shape[0]
        share = pairs / max(1, tokens * num_experts)
        mode = "training" if training else "inference"
        order = choice.order("expert_ffn", *kind, mode, tokens, d_inner, share)
        name = next(backend for backend in (*order, "loop") if unsupported(backend, *kind, *widths) is None)
    elif reason := unsupported(name, *kind, *widths):
        raise ValueError(f"expert_ffn: backend {name} {reason}")
    return CLASSES[name](layer)


def unsupported(
    backend: str, device: torch.device, dtype: torch.dtype, d_model: int, d_inner: int, activation: str = "relu"
) -> str | None:
    """Why a backend cannot run such a layer, or None."""
    if backend == "loop":
        return None
    return CLASSES[backend].unsupported(device, dtype, d_model, d_inner, factors(activation) * d_inner)


@register_flop_formula(torch.ops.aten._grouped_mm)
def _grouped_mm_flops(a, b, *_, out_shape, **__) -> int:
    """Of matrices side by side, or of rows or columns in groups, which the third operand delimits."""
    if len(a) == 2 and len(b) == 2:
        return 2 * a[0] * a[1] * b[1]
    return 2 * prod(a) * b[-1] if len(a) == 2 or len(b) == 3 else 2 * a[1] * prod(b)


@register_flop_formula(torch.ops.planer.expert_ffn)
def _forward_flops(x, w1, b1, w2, b2, gate, order, *_, **__) -> int:
    """Two products a pair; the first is twice as large where the activation is gated."""
    return 2 * order[0] * w1[2] * (w1[1] + w2[2])


@register_flop_formula(torch.ops.planer.expert_ffn_backward)
def _backward_flops(grad, hidden, x, w1, b1, w2, b2, gate, order, *rest, **_) -> int:
    """dy w2 where anything before the second product is needed, then one product for each of x, w1 and w2."""
    need_x, need_w1, need_b1, need_w2, _, need_gate = rest[-1]
    first = (need_x + need_w1) * w1[1]
    second = ((need_x or need_w1 or need_b1 or need_gate) + need_w2) * w2[2]
    return 2 * (first + second) * order[0] * w1[2]
