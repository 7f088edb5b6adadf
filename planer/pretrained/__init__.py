"""Pretrained networks in transformers' classes.  Only this folder and files named hub.py import transformers.

import planer.pretrained
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("results/.../hf")    # a converted network runs as it was converted
planer.pretrained.select(model, "dynamic_k", 0.2)

The import takes no time: planer/conversion/hub.py is imported right after transformers' module of quantizers, and
configs.py after that of configurations, in either order.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

HUB, CONFIGS = "planer.conversion.hub", "planer.pretrained.configs"
MODELS = "transformers.models.auto.modeling_auto"
AFTER = {
    "transformers.quantizers.auto": HUB,
    "transformers.models.auto.configuration_auto": CONFIGS,
    MODELS: CONFIGS,
}
"""Modules of transformers, and the module of planer that registers with each."""


def _may_register(theirs: str) -> bool:
    """False while transformers' module of models imports that of configurations: then it is not whole yet.

    configs.py is imported right after the module of models.
    """
    models = sys.modules.get(MODELS)
    return theirs == MODELS or models is None or not getattr(models.__spec__, "_initializing", False)


class _After(MetaPathFinder):
    """Imports a module right after one of transformers, whoever imports that first."""

    def __init__(self, theirs: str, ours: str):
        self._theirs, self._ours = theirs, ours

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See MetaPathFinder."""
        if name != self._theirs:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                if _may_register(self._theirs):
                    importlib.import_module(self._ours)

            spec.loader.exec_module = exec_module
        return spec


for _theirs, _ours in AFTER.items():
    if _theirs in sys.modules:
        importlib.import_module(_ours)
    else:
        sys.meta_path.insert(0, _After(_theirs, _ours))


def __getattr__(name: str) -> object:
    """Import what users call when they first do."""
    if name == "select":
        return importlib.import_module(HUB).select
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
