"""Training a language model: the baseline, and phase 2 of PLANER (arXiv 2208.14580, section 3).

    Loss = CE + balance_weight * mean over mixtures of experts of  E * sum_e f_e p_e      (Switch, arXiv 2101.03961)

It starts from random weights, or from those of a trained network (parent_start.py).  Fine-tuning stages bring other
terms (terms.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from planer.models import LanguageModel
from planer.runtime import Runtime
from planer.tasks.causal_lm import CausalLM
from planer.tasks.nll import Watch
from planer.tasks.task import MAIN
from planer.training.loop import Record, StepGroup, fit
from planer.training.optimizer import make_optimizer
from planer.training.terms import Term


def train(
    model: LanguageModel,
    task: CausalLM,
    terms: Sequence[Term],
    runtime: Runtime,
    record: Record,
    watch: Watch | None = None,
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Fit, then validate on the whole validation text.  Leaves the model in eval mode.

    watch: sees that validation.

    Returns the history and the metrics: valid_nll (nats per token), valid_bpc (bits), params, active_params, steps,
    tokens, seconds and tokens_per_second (all of training, over resumes and with its validations).  A training that
    stops before its last step is not validated: its metrics are those of the speed alone.
    """
    config = task.config
    optimizer = make_optimizer(model.parameters(), config.optimizer)
    groups = {MAIN: StepGroup(optimizer, config.optimizer, config.steps)}
    history, speed = fit(model.train(), task, terms, groups, runtime, config, record)
    model.eval()
    if record.until is not None and record.until < config.steps:
        return history, speed
    measures = task.evaluate(model, "valid", f"{task.name}: validation", watch)
    architecture = model.architecture
    sizes = {"params": architecture.params(), "active_params": architecture.active_params()}
    return history, {f"valid_{name}": value for name, value in measures.items()} | sizes | speed
