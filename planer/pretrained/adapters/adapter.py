"""Where a family of transformers' networks keeps its feed-forward layers and attention projections.

A family is described by class and attribute names, so that nothing here imports transformers.

Letters in shapes: D model width, F neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

from planer.errors import UserError
from planer.parsing import show

if TYPE_CHECKING:  # a folder is checked before torch is needed
    from torch import Tensor, nn

ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
"""From the names of activations in config.json to those in planer/kernels/activations.py."""


@dataclass(frozen=True)
class Adapter:
    """A family.  Modules are named by attributes, joined by dots, of the layer or of the attention."""

    model_types: tuple[str, ...]
    """As config.json has them."""
    heads: tuple[str, ...]
    """Heads that the family has and that fit its attention: keys of HEADS in planer/pretrained/load.py."""
    layers: tuple[str, ...]
    """Classes of the modules that compute one feed-forward layer."""
    up: str
    """The projection from D to F; of a gated layer the one that no activation follows."""
    down: str
    """The projection from F to D."""
    activation: str
    activation_key: str
    """Key of the activation's name in config.json."""
    gate: str = ""
    """The projection from D to F that the activation follows, where the layer is gated."""
    input_major: bool = False
    """Whether weights are [in, out], as transformers' Conv1D has them, instead of [out, in]."""
    method: str = "forward"
    """The layer's method that maps x [..., D] to the result [..., D]."""
    finish: Callable[[nn.Module, Tensor, Tensor], Tensor] = lambda layer, y, x: y
    """The result of this method from the layer, the down projection's output y, and x."""
    attention: tuple[str, ...] = ()
    """Classes of the modules that compute one attention."""
    projections: tuple[str, ...] = ()
    """Query, key, value and output projections of the attention; the first three may be one."""
    fixed_projections: str = ""
    """Why the projections cannot be replaced, where they cannot."""
    size_keys: tuple[str, str] = ("hidden_size", "intermediate_size")
    """Keys of D and F in config.json."""
    default_ratio: int | None = None
    """F / D where config.json has no F."""

    def sizes(self, config: Mapping) -> tuple[int | None, int | None]:
        """D and F from the keys of a config.json; None for one that is not there, or is no size."""
        width, neurons = (
            value if isinstance(value := config.get(key), int) and value > 0 else None for key in self.size_keys
        )
        return width, neurons or (width and self.default_ratio and self.default_ratio * width)

    def find(self, model: nn.Module, classes: tuple[str, ...]) -> list[tuple[str, nn.Module]]:
        """Names and modules of these classes, or of classes derived from them, in the network's order."""
        wanted = set(classes)
        named = model.named_modules()
        return [(name, module) for name, module in named if wanted & {cls.__name__ for cls in type(module).__mro__}]

    def activation_of(self, model: nn.Module) -> str:
        """The activation's name in planer/kernels/activations.py.  Raises UserError for another activation."""
        name = getattr(model.config, self.activation_key)
        if not isinstance(name, str) or name not in ACTIVATIONS:
            allowed = ", ".join(ACTIVATIONS)
            raise UserError(f"{type(model).__name__}: {self.activation_key} is {show(name)}; allowed: {allowed}")
        return ACTIVATIONS[name]

    def use_relu(self, model: nn.Module) -> None:
        """Put ReLU in the place of the feed-forward layers' activation, in the configuration too, for a reload.

        BERT's masked-token head changes with them, since its activation has the same key.
        """
        from torch import nn

        old = {type(attrgetter(self.activation)(layer)) for _, layer in self.find(model, self.layers)}
        for module in list(model.modules()):
            for name, child in module.named_children():
                if type(child) in old:
                    setattr(module, name, nn.ReLU())
        setattr(model.config, self.activation_key, "relu")
