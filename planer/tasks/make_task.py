"""From a prepared task on disk to its class."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from planer.config import LoopConfig
from planer.data.task_files import SPLITS, read_task
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
