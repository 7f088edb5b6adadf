"""Feed-forward layers as the conversion sees them, of our networks and of pretrained ones alike.

A site gives the weights of one layer neuron by neuron, whatever the layout of the module that keeps them:

    y = sum_j h_j w2_j + b2     with h = act(W1 x + b1), or with h = act(Wg x + bg) * (W1 x + b1) where it is gated

Letters in shapes: D model width, F neurons.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from operator import attrgetter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planer.blocks.block import Aux, Wants
from planer.blocks.feed_forward import FeedForward
from planer.blocks.projection import ProjectionLayer
from planer.kernels.activations import activate
from planer.models import LanguageModel
from planer.pretrained.adapters import adapter_for
from planer.pretrained.adapters.adapter import Adapter

OWN = Adapter(
    model_types=(),
    heads=(),
    layers=(FeedForward.__name__,),
    up="w1",
    down="w2",
    activation="activation",
    activation_key="",
    finish=lambda layer, y, x: layer.dropout(y),
)
"""The feed-forward layer of planer/blocks."""
PROJECTION = dataclasses.replace(OWN, layers=(ProjectionLayer.__name__,), up="up", down="down")
"""Attention projections that were replaced by MLPs."""


@dataclass(frozen=True)
class Weights:
    """Weights of a feed-forward layer, one row a neuron: w1, gate and w2 [F, D], b1 and gate_bias [F], b2 [D]."""

    w1: Tensor
    w2: Tensor
    b1: Tensor | None = None
    b2: Tensor | None = None
    gate: Tensor | None = None
    gate_bias: Tensor | None = None

    def hidden(self, x: Tensor, activation: str) -> Tensor:
        """h of each token: [..., D] to [..., F]."""
        z = F.linear(x, self.w1, self.b1)
        if self.gate is None:
            return activate(z, activation)
        return activate(F.linear(x, self.gate, self.gate_bias), activation) * z

    def output(self, h: Tensor) -> Tensor:
        """y of each token: [..., F] to [..., D]."""
        return F.linear(h, self.w2.t(), self.b2)

    @property
    def by_neuron(self) -> bool:
        """Whether kernels can read the rows where they are: see FeedForwardSite.store_by_neuron."""
        joined = self.gate is None or _adjacent(self.gate, self.w1)
        return joined and self.w1.is_contiguous() and self.w2.is_contiguous()

    def first(self) -> tuple[Tensor, Tensor | None]:
        """What is before the activation, as kernels take it: rows [F, D] and biases [F].

        A gated layer has the rows of the gate first, [2F, D] and [2F].  Rows stored by neuron are not copied.
        """
        if self.gate is None:
            return self.w1, self.b1
        bias = None if self.b1 is None else torch.cat((self.gate_bias, self.b1))
        if not self.by_neuron:
            return torch.cat((self.gate, self.w1)), bias
        return self.gate.as_strided((2 * len(self.gate), self.gate.shape[1]), self.gate.stride()), bias

    def neurons(self, order: Tensor) -> Weights:
        """The same weights with these neurons only, in this order, copied; b2 stays as it is.  order: int64 [n]."""
        given = {name: value for name, value in vars(self).items() if value is not None and name != "b2"}
        return dataclasses.replace(self, **{name: value[order] for name, value in given.items()})


class FeedForwardSite:
    """One feed-forward layer.

    name: its module's name in the network, a key of tables and metrics.  activation: as in
    planer/kernels/activations.py; of a gated layer that of the gate.
    """

    def __init__(self, name: str, layer: nn.Module, adapter: Adapter, activation: str):
        self.name, self.layer, self.adapter, self.activation = name, layer, adapter, activation
        self.gated = bool(adapter.gate)
        self.is_projection = adapter.layers == PROJECTION.layers

    @property
    def d_model(self) -> int:
        return self.weights().w1.shape[1]

    @property
    def d_inner(self) -> int:
        return self.weights().w1.shape[0]

    @property
    def matrices(self) -> list[nn.Module]:
        """The layer's own linear modules."""
        return [self._module(path) for path in (self.adapter.up, self.adapter.down, self.adapter.gate) if path]

    def weights(self) -> Weights:
        """Views of the layer's parameters: writing into them, without gradients, changes the layer."""
        up, down = self._module(self.adapter.up), self._module(self.adapter.down)
        gate = self._module(self.adapter.gate) if self.gated else None
        rows = attrgetter("weight.T" if self.adapter.input_major else "weight")
        w2 = down.weight if self.adapter.input_major else down.weight.T
        return Weights(rows(up), w2, up.bias, down.bias, rows(gate) if gate else None, gate.bias if gate else None)

    @torch.no_grad()
    def set_weights(self, weights: Weights) -> None:
        """Write values of the same shapes into the layer.  Raises ValueError where only one of the two has a bias."""
        for name, own in vars(self.weights()).items():
            value = getattr(weights, name)
            if (own is None) != (value is None):
                raise ValueError(f"{self.name}: {name} is {'missing' if value is None else 'given'}, the layer differs")
            if own is not None:
                own.copy_(value)

    def reorder(self, order: Tensor) -> None:
        """Put the layer's neurons in another order, which changes its result by rounding only.  order: int64 [F]."""
        self.set_weights(self.weights().neurons(order))

    def store_by_neuron(self) -> Weights:
        """The weights, every neuron's side by side in memory, as kernels read them, and a gate before its factor.

        Values, shapes and names stay, and so does what is saved.  A network that was copied, moved or loaded has lost
        this order.
        """
        if (weights := self.weights()).by_neuron:
            return weights
        weight = self._module(self.adapter.up if self.adapter.input_major else self.adapter.down).weight
        weight.data = weight.data.T.contiguous().T
        if self.gated:
            first = [self._module(path).weight for path in (self.adapter.gate, self.adapter.up)]
            for weight, rows in zip(first, torch.cat([weight.data for weight in first]).chunk(2), strict=True):
                weight.data = rows
        return self.weights()

    def hidden(self, x: Tensor) -> Tensor:
        """Activations of the neurons for the layer's inputs: [..., D] to [..., F]."""
        return self.weights().hidden(x, self.activation)

    def dense(self, x: Tensor) -> Tensor:
        """y by the layer's own modules, without dropout, with gradients: [..., D] to [..., D]."""
        h, act = self._module(self.adapter.up)(x), self._module(self.adapter.activation)
        h = act(self._module(self.adapter.gate)(x)) * h if self.gated else act(h)
        return self._module(self.adapter.down)(h)

    @property
    def entry(self) -> nn.Module:
        """The module whose input is the layer's input x [..., D]: a place for hooks."""
        return self.layer.replacement if self._replaced else self._module(self.adapter.up)

    @contextmanager
    def watch(self, see: Callable[[FeedForwardSite, Tensor, Tensor], None]) -> Iterator[None]:
        """Call see(self, z, h) in every forward pass, both [..., F]: input of the activation, and h before dropout.

        Where the activation works in place, as in planer/blocks, z holds its result.
        """
        inputs: list[Tensor] = []

        def activated(module: nn.Module, arguments: tuple[Tensor], result: Tensor) -> None:
            if self.gated:
                inputs.append(arguments[0])
            else:
                see(self, arguments[0], result)

        def multiplied(module: nn.Module, arguments: tuple[Tensor]) -> None:
            see(self, inputs.pop(), arguments[0])

        handles = [self._module(self.adapter.activation).register_forward_hook(activated)]
        if self.gated:
            handles.append(self._module(self.adapter.down).register_forward_pre_hook(multiplied))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def replace(self, module: nn.Module) -> None:
        """Compute y by a module that maps x [..., D] to y [..., D]; dropout, residual and norm around y stay.

        The layer's own weights stay too, under their names.
        """
        if not self._replaced:
            self.layer.__class__ = _with_replacement(type(self.layer), self.adapter)
        self.layer.replacement = module

    @property
    def _replaced(self) -> bool:
        return hasattr(self.layer, "replacement")

    def _module(self, path: str) -> nn.Module:
        return attrgetter(path)(self.layer)


def _adjacent(a: Tensor, b: Tensor) -> bool:
    """Whether b begins in memory where a ends."""
    shared = a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    return shared and a.is_contiguous() and b.storage_offset() == a.storage_offset() + a.numel()


@cache
def _with_replacement(cls: type[nn.Module], adapter: Adapter) -> type[nn.Module]:
    """The class of a layer with a replacement.  A changed class survives deepcopy; a method set on a module would still
    call the module that it was set on."""

    def method(self: nn.Module, x: Tensor) -> Tensor:
        return adapter.finish(self, self.replacement(x), x)

    def own(self: nn.Module, x: Tensor, wants: Wants = ()) -> tuple[Tensor, Aux]:
        return method(self, x), {}  # a replacement hands nothing on

    return type(f"Replaced{cls.__name__}", (cls,), {adapter.method: own if adapter is OWN else method})


def feed_forward_sites(model: nn.Module) -> list[FeedForwardSite]:
    """Every feed-forward layer of a network of ours (those not converted yet) or in transformers' classes, in order.

    Behind them come attention projections that were replaced by MLPs.
    Raises UserError for classes or an activation of transformers that no adapter knows.
    """
    own = isinstance(model, LanguageModel)
    adapter = OWN if own else adapter_for(model)
    activation = "relu" if own else adapter.activation_of(model)
    sites = [FeedForwardSite(name, layer, adapter, activation) for name, layer in adapter.find(model, adapter.layers)]
    replaced = PROJECTION.find(model, PROJECTION.layers)
    if replaced and not own:
        activation = model.config.projections["activation"] or activation
    return sites + [FeedForwardSite(name, layer, PROJECTION, activation) for name, layer in replaced]
