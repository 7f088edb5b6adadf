"""A network as a version of a registered MLflow model: files as of ``python -m planer export``, and no pickle."""

from __future__ import annotations

import importlib.metadata
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from planer.config.variant import FOLDER
from planer.errors import UserError
from planer.models.export import export_network
from planer.models.generate import Sampling
from planer.parsing import show
from planer.workflow.tracking.address import store_uri
from planer.workflow.tracking.secrets import plain
from planer.workflow.tracking.store import opened

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

PACKAGES = ("torch", "numpy", "pandas", "safetensors", "PyYAML", "jsonschema", "tqdm", "tokenizers")
"""What a network needs where it is loaded; planer itself goes with the model."""
PACKAGE = Path(__file__).parents[1]
EXPERIMENT = "models"
"""Where MLflow lists the models."""
LOCK_SECONDS = 60
"""How long to wait for another process that uses the store."""


def register(folder: str | Path, name: str, results: Path, vocab: str | Path | None = None) -> str:
    """Log a network and register it as the next version of a model; return its address, ``models:/name/version``.

    results: the folder of the store where MLFLOW_TRACKING_URI names no other.
    Raises UserError as ``export_network``, and when the store or the name is no good.
    """
    if not re.fullmatch(FOLDER, name):
        raise UserError(f"the model's name is {show(name)}; allowed: letters, digits and ._+- after the first")
    if not results.is_dir():
        raise UserError(f"no folder {results}; run in the folder of a workflow, or name its results with --results")
    with model_parts(folder, vocab) as parts, opened(results, LOCK_SECONDS) as store:
        import mlflow  # after ``opened`` has set MLflow's defaults
        from mlflow.exceptions import MlflowException

        mlflow.set_tracking_uri(store_uri(results))
        mlflow.set_experiment(experiment_id=store.experiment(EXPERIMENT)[0])
        try:
            with warnings.catch_warnings(action="ignore"):  # there is no example input
                logged = mlflow.pyfunc.log_model(
                    name="network", registered_model_name=name, signature=signature(), **parts
                )
        except MlflowException as error:
            raise UserError(f"MLflow refuses the model: {plain(error)}") from error
    return f"models:/{name}/{logged.registered_model_version}"


@contextmanager
def model_parts(folder: str | Path, vocab: str | Path | None = None) -> Iterator[dict[str, Any]]:
    """Arguments of ``mlflow.pyfunc.save_model`` and ``log_model``, whose files are there within the block."""
    with TemporaryDirectory() as temporary:
        network = Path(temporary) / "network"
        export_network(folder, network, vocab)
        yield {
            "loader_module": "planer.serving.pyfunc",
            "data_path": str(network),
            "code_paths": [str(PACKAGE)],
            "pip_requirements": [f"{package}=={_version(package)}" for package in PACKAGES],
        }


def signature() -> ModelSignature:
    """Prompts in, texts out, and the options of ``Sampling`` under the API's names."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    defaults = {"max_tokens": Sampling.tokens}
    defaults |= {name: getattr(Sampling, name) for name in ("temperature", "top_k", "top_p", "seed")}
    kinds = {int: "long", float: "double"}
    params = [ParamSpec(name, kinds[type(value)], value) for name, value in defaults.items()]
    prompt, text = (Schema([ColSpec("string", column)]) for column in ("prompt", "text"))
    return ModelSignature(prompt, text, ParamSchema(params))


def _version(package: str) -> str:
    """Of the installed package, without the kind of build, which registries do not list."""
    return importlib.metadata.version(package).partition("+")[0]
