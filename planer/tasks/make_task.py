"""From a prepared task on disk to its class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from planer.config import LoopConfig
from planer.data.task_files import SPLITS, read_task
from planer.errors import UserError
from planer.runtime import Runtime
from planer.tasks.causal_blocks import CausalBlocks
from planer.tasks.classification import LabelledImages, LabelledTexts
from planer.tasks.masked_tokens import MaskedTokens
from planer.tasks.pretrained_task import PretrainedTask

TASKS: dict[str, type[PretrainedTask]] = {
    "text": CausalBlocks,
    "masked_tokens": MaskedTokens,
    "labelled_text": LabelledTexts,
    "labelled_images": LabelledImages,
}
"""By the kind of the task in the configuration."""


def make_task(
    folder: str | Path,
    training: LoopConfig | None,
    runtime: Runtime,
    name: str = "training",
    splits: Iterable[str] = SPLITS,
    accumulate: int = 1,
) -> PretrainedTask:
    """The task that was prepared in a folder.

    training: the section of a stage that trains; None for one that does not.  splits: those that the stage reads.
    accumulate: parts of a training batch, see PretrainedTask.
    Raises UserError when a file is missing or damaged, or when there are fewer samples than a batch has.
    """
    facts, tensors = read_task(folder, splits)
    return TASKS[facts.kind](facts, tensors, training, runtime, name, accumulate)


def check_task(folder: str | Path, batches: Mapping[str, int]) -> None:
    """Raise UserError where a stage could not train on a prepared task, or not measure it: before the first of them.

    batches: samples of a batch, by the sections of the stages that train.
    """
    task = make_task(folder, None, Runtime())
    samples = task.size("train")
    for section, batch in batches.items():
        if batch > samples:
            raise UserError(f"{section}.batch is {batch:,}, the training split has {samples:,} samples; lower it")
    for split in ("valid", "test"):
        if not task.is_measurable(split):
            raise UserError(f"task: no token of the split {split} is hidden and predicted; give it more text")
