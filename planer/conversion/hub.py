"""Makes from_pretrained build the converted layers of a folder that save.py wrote: import planer.pretrained first.

transformers calls the quantizer that ``quantization_config`` in config.json names on the network's skeleton, before
weights are loaded, for every class of networks and every head.  Without planer it warns about an unknown method and
loads the dense network: its weights have their usual names, and those of the routers are left over.

Functions import stored.py when they are called: it imports planer.pretrained, whose import may import this module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from safetensors import safe_open
from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from planer.errors import UserError
from planer.parsing import show
from planer.pretrained.folder import METHOD, ROUTERS

FORMAT = 1
"""Of the keys in quantization_config."""


@register_quantization_config(METHOD)
class PlanerConfig(QuantizationConfigMixin):
    """quantization_config: how a network was converted (``planer.conversion.stored``), and the format of its keys."""

    def __init__(self, quant_method: str = METHOD, format: int = FORMAT, **conversion):
        if format != FORMAT:
            raise UserError(
                f"quantization_config in config.json has the format {show(format)}, this planer reads {FORMAT}; "
                "install the planer that wrote it"
            )
        self.quant_method, self.format = quant_method, format
        vars(self).update(conversion)


@register_quantizer(METHOD)
class PlanerQuantizer(HfQuantizer):
    """Builds converted layers.  They are trained, compiled and saved as other modules are."""

    requires_calibration = True  # from_pretrained converts no network
    is_trainable = is_qat_trainable = is_compileable = True

    def is_serializable(self) -> bool:
        """See HfQuantizer."""
        return True

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: Sequence[str] | None = None, **ignored
    ) -> None:
        from planer.conversion import stored

        stored.build(model, vars(self.quantization_config))
        if checkpoint_files is not None:
            _require_routers(model, checkpoint_files)

    def _process_model_after_weight_loading(self, model: nn.Module, **ignored) -> None:
        from planer.conversion import stored

        model.is_quantized = False  # transformers would refuse to cast it
        for weight in model.parameters():
            # Weights that are mapped from a file begin at addresses where products on a CPU are rounded differently.
            weight.data = weight.data.clone()
        stored.start(model, vars(self.quantization_config))


def _require_routers(model: nn.Module, files: Sequence[str]) -> None:
    """Raise UserError when the files lack weights of a router, for which transformers would take random ones.

    Counts them by the end of their names, since the beginning in a file may differ: by the head, or by the family.
    """
    found: Counter[str] = Counter()
    for file in files:
        with safe_open(file, framework="pt") as content:
            found += _router_weights(content.keys())
    if missing := _router_weights(model.state_dict()) - found:
        name, count = next(iter(missing.items()))
        raise UserError(f"{Path(files[0]).parent} lacks {count} router weights {name}; copy the folder again")


def _router_weights(names: Iterable[str]) -> Counter[str]:
    return Counter(name.partition(ROUTERS)[2] for name in names if ROUTERS in name)


def mark(model: nn.Module, description: Mapping) -> None:
    """Have ``save_pretrained`` say how a network in memory was converted (``planer.conversion.stored``)."""
    model.config.quantization_config = PlanerConfig(**description)


def select(model: nn.Module, selector: str, value: float = 0, fast: bool = True) -> None:
    """Run a converted network in another way from now on; ``save_pretrained`` saves the way too.

    selector, value: ``all`` is the dense network.  Of experts a rule and its value, as
    ``planer.conversion.selectors.Selector`` explains them.  Of thresholds ``product`` or ``gate``, the score that they
    were calibrated for, and a share of neurons, one of the calibrated.
    fast: layers run densely where leaving out experts or neurons saves no time on the device, and in the type, that the
    network has now.  False leaves them out in every layer.
    Raises UserError when the network is not converted, or this does not fit it.
    """
    from planer.conversion import stored

    description = getattr(model.config, "quantization_config", None)
    if not isinstance(description, PlanerConfig):
        raise UserError(f"{type(model).__name__} is not converted; load it after import planer.pretrained")
    mark(model, stored.select(model, vars(description), selector=selector, value=value, fast=fast))
