"""Predicting each next token of a text that is read in blocks without memory, as GPT-2 and Llama are trained.

Letters in shapes: B blocks, T tokens of a block, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planer.blocks.block import Wants
from planer.models.head import Head
from planer.tasks.metrics import Scores
from planer.tasks.pretrained_task import Batch, PretrainedTask
from planer.tasks.task import Result, RowScore


class CausalBlocks(PretrainedTask):
    """Blocks of a text: input_ids, and labels, the token after each of them, both [B, T] int64.

    The blocks of a split follow one another without overlap.  Tokens after the last whole block are left out.
    """

    other_metrics = ("nll", "ppl")
    eval_batch = 8

    def size(self, split: str) -> int:
        return (len(self.splits[split]["tokens"]) - 1) // self.facts.block_size

    def collate(self, split: str, samples: np.ndarray) -> Batch:
        places = torch.from_numpy(samples)[:, None] * self.facts.block_size + torch.arange(self.facts.block_size + 1)
        tokens = self.splits[split]["tokens"][places].long()
        return {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:]}

    def real(self, batch: Batch) -> Tensor:
        """See PretrainedTask.  There is no padding."""
        return torch.ones_like(batch["input_ids"], dtype=torch.bool)

    def loss(
        self, model: nn.Module, batch: Batch, state: list | None, wants: Wants = (), scores: Sequence[RowScore] = ()
    ) -> Result:
        """Mean nats per token; see Task.  There are no further outputs and no row scores."""
        nll = token_nll(model, batch).mean()
        return self.result(nll, {"nll": nll}, batch["labels"].numel())

    def score(self, model: nn.Module, batch: Batch) -> Scores:
        """See PretrainedTask: a sample is a block, its nll a mean over its tokens."""
        nll = token_nll(model, batch).double().mean(1).numpy(force=True)
        return Scores(nll, np.full(len(nll), batch["labels"].shape[1]))


def token_nll(model: nn.Module, batch: Batch) -> Tensor:
    """Negative log-likelihood in nats of every label, [B, T], in single precision.

    Logits are computed in chunks: those of all tokens would need more memory than the rest of a training step.
    """
    hidden = model.base_model(input_ids=batch["input_ids"], use_cache=False).last_hidden_state
    head, labels = model.get_output_embeddings(), batch["labels"]
    score = partial(_row_nll, head)
    return Head.by_rows(head.weight.shape[0], score, hidden.flatten(0, 1), labels.flatten()).view_as(labels)


def _row_nll(head: nn.Module, hidden: Tensor, words: Tensor) -> Tensor:
    return F.cross_entropy(head(hidden).float(), words, reduction="none")
