"""A teacher's logits of every token of the training text: computed in every step, or read from a file.

Logits are rounded to half precision in both cases, so that a student learns the same.  A file holds the logits
of the first steps of a training, in the order of its text; all students with the same batches share it.

Letters in shapes: S steps, B sequences, T tokens, N = B T rows, D model width, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from planer.config import TeacherConfig
from planer.data.stream import StreamBatches
from planer.errors import Damaged
from planer.models import LanguageModel
from planer.progress import progress
from planer.runtime import Runtime
from planer.tensors import read_tensors, write_tensors


class Teacher(Protocol):
    """Logits of the training text, step by step."""

    def rows(self, step: int, inputs: Tensor, fresh: bool) -> Tensor:
        """The input of ``logits`` for the segment [B, T] of this step: [N, ...] on the segment's device.

        fresh: the segment does not continue the one before.
        """

    def logits(self, rows: Tensor) -> Tensor:
        """Logits [n, V] of some of the rows, single precision."""

    def state(self) -> dict[str, Tensor]:
        """Tensors that the next step depends on."""

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of state."""


class LiveTeacher:
    """A network that reads the same segments as the student, with its own memory."""

    def __init__(self, model: LanguageModel, mem_len: int):
        """model: on the student's device; it is put into evaluation, never trained and not saved."""
        self.model = model.eval().requires_grad_(False)
        self._mem_len = mem_len
        self._memory: list[Tensor | None] | None = None

    @torch.no_grad()
    def rows(self, step: int, inputs: Tensor, fresh: bool = False) -> Tensor:
        """Hidden states [N, D]."""
        output = self.model(inputs, None if fresh else self._memory, mem_len=self._mem_len)
        self._memory = output.state
        return output.hidden.flatten(0, -2)

    @torch.no_grad()
    def logits(self, rows: Tensor) -> Tensor:
        return self.model.logits(rows).half().float()

    def state(self) -> dict[str, Tensor]:
        """The memory."""
        return {f"teacher.{i}": entry for i, entry in enumerate(self._memory or []) if entry is not None}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        entries = [tensors.get(f"teacher.{i}") for i in range(len(self.model.blocks))]
        device = next(self.model.parameters()).device
        self._memory = [None if entry is None else entry.to(device) for entry in entries]


class CachedTeacher:
    """Logits that ``write_cache`` has written."""

    def __init__(self, path: str | Path, steps: int, rows: int, vocab_size: int):
        """steps, rows and vocab_size: of the training.  Raises UserError when the file is damaged or another's."""
        tensors, _ = read_tensors(path)
        expected = (steps, rows, vocab_size)
        self._logits = tensors.get("logits")
        found = None if self._logits is None else tuple(self._logits.shape)
        if found != expected or self._logits.dtype != torch.float16:
            raise Damaged(path, f"holds logits of shape {found}, this training needs {expected}")

    def rows(self, step: int, inputs: Tensor, fresh: bool = False) -> Tensor:
        """Logits [N, V] in half precision."""
        return self._logits[step, : inputs.numel()].to(inputs.device, non_blocking=True)

    def logits(self, rows: Tensor) -> Tensor:
        return rows.float()

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Nothing."""


@torch.no_grad()
def write_cache(
    path: str | Path, model: LanguageModel, tokens: np.ndarray, config: TeacherConfig, runtime: Runtime
) -> None:
    """Write the model's logits for every step of a training with such batches.  tokens: its text [n]."""
    batches = StreamBatches(tokens, config.batch, config.tgt_len)
    teacher = LiveTeacher(model.to(runtime.device), config.mem_len)
    vocab_size = model.architecture.vocab_size
    logits = torch.zeros(config.steps, config.batch * config.tgt_len, vocab_size, dtype=torch.float16)
    for step in progress(range(config.steps), "teacher"):
        inputs = batches.batch_at(step)[0].to(runtime.device)
        with runtime.autocast():
            logits[step, : inputs.numel()] = teacher.logits(teacher.rows(step, inputs))
    write_tensors(path, {"logits": logits})
