"""Language models: modules, random weights, files."""

from planer.models.initialisation import initialise
from planer.models.io import load, require_fit, save
from planer.models.transformer import LanguageModel

__all__ = ["LanguageModel", "initialise", "load", "require_fit", "save"]
