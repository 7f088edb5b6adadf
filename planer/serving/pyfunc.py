"""A network as an MLflow model: text for a table of prompts.

MLflow imports this module to load a model that ``register.py`` wrote.
"""

from __future__ import annotations

import threading
from pathlib import Path

import pandas as pd
from mlflow.exceptions import MlflowException

from planer.errors import UserError
from planer.models.network import Network, load


class TextModel:
    """A network behind MLflow's interface; ``generate`` of a network says what the parameters mean."""

    def __init__(self, network: Network):
        self._network, self._lock = network, threading.Lock()

    def predict(self, model_input: pd.DataFrame, params: dict | None = None) -> pd.DataFrame:
        """What follows each prompt.  Calls of several threads wait for one another.

        model_input: a column ``prompt``.  params: max_tokens, temperature, top_k, top_p, seed; those that are absent
        have the defaults of ``Sampling``.  Returns a column ``text``.
        Raises MlflowException where ``Network.generate`` raises UserError.
        """
        sampling = {{"max_tokens": "tokens"}.get(name, name): value for name, value in (params or {}).items()}
        try:
            with self._lock:
                return pd.DataFrame({"text": [self._following(prompt, sampling) for prompt in model_input["prompt"]]})
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error

    def _following(self, prompt: str, sampling: dict) -> str:
        ids = self._network.encode(prompt)
        return self._network.surroundings.vocabulary.decode(self._network.stream(ids, **sampling), ids)


def _load_pyfunc(path: str) -> TextModel:
    """What MLflow calls with the folder of the network."""
    return TextModel(load(Path(path)))
