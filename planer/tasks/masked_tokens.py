"""Predicting hidden tokens of a text from both sides, as BERT is trained (arXiv 1810.04805, section 3.1).

Letters in shapes: B blocks, T tokens of a block, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planer.blocks.block import Wants
from planer.data.task_files import TaskFacts
from planer.seed import derive_seed
from planer.tasks.metrics import Scores
from planer.tasks.pretrained_task import Batch, PretrainedTask
from planer.tasks.task import Result, RowScore

CHOSEN, MASKED, RANDOM = 0.15, 0.8, 0.1
"""Share of the tokens to predict; shares of these that the mask symbol, or a random symbol, replaces."""
IGNORED = -100
"""Label of a token that is not predicted, as in transformers."""


class MaskedTokens(PretrainedTask):
    """Blocks of a text: input_ids, and labels, the tokens to predict and IGNORED elsewhere, both [B, T] int64.

    A block is the tokenizer's first symbol, T - 2 tokens of the text and its last symbol.  Blocks follow one another
    without overlap.  Tokens after the last whole block are left out.  Every training step hides other tokens.  A sample
    that is measured always hides the same ones, whatever the seed: networks are compared on equal inputs.
    """

    other_metrics = ("nll", "ppl")
    eval_batch = 8

    def size(self, split: str) -> int:
        return len(self.splits[split]["tokens"]) // (self.facts.block_size - 2)

    def is_measurable(self, split: str) -> bool:
        return any(bool(self.items(batch)) for batch in self.batches(split))

    def batch(self, step: int) -> Batch:
        blocks = self._blocks("train", self._epochs.at(step))
        return self.on_device(hide(blocks, self.facts, self.runtime.generator(self.name, "hidden tokens", step)))

    def collate(self, split: str, samples: np.ndarray) -> Batch:
        seeds = (derive_seed(0, "hidden tokens", split, sample) for sample in samples)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        blocks = self._blocks(split, samples).split(1)
        rows = [hide(block, self.facts, generator) for block, generator in zip(blocks, generators, strict=True)]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def real(self, batch: Batch) -> Tensor:
        """See PretrainedTask.  There is no padding."""
        return torch.ones_like(batch["input_ids"], dtype=torch.bool)

    def loss(
        self, model: nn.Module, batch: Batch, state: list | None, wants: Wants = (), scores: Sequence[RowScore] = ()
    ) -> Result:
        """Mean nats per hidden token, and their accuracy; see Task.  There are no further outputs and no row scores."""
        logits, labels, _ = _hidden(model, batch)
        nll = F.cross_entropy(logits, labels, reduction="sum") / max(1, len(labels))
        hits = (logits.argmax(-1) == labels).sum() / max(1, len(labels))
        return self.result(nll, {"nll": nll, "accuracy": hits}, batch["labels"].numel())

    def score(self, model: nn.Module, batch: Batch) -> Scores:
        """See PretrainedTask: a sample is a block, its nll a mean over its hidden tokens."""
        logits, labels, hidden = _hidden(model, batch)
        nll = torch.zeros(hidden.shape, dtype=torch.float64, device=labels.device)
        nll[hidden] = F.cross_entropy(logits, labels, reduction="none").double()
        counts = hidden.sum(1)
        return Scores((nll.sum(1) / counts.clamp(min=1)).numpy(force=True), counts.double().numpy(force=True))

    def _blocks(self, split: str, samples: np.ndarray) -> Tensor:
        """Whole blocks, nothing hidden: [B, T]."""
        inner = self.facts.block_size - 2
        tokens = self.splits[split]["tokens"][torch.from_numpy(samples)[:, None] * inner + torch.arange(inner)].long()
        first, last = (torch.full((len(tokens), 1), symbol) for symbol in (self.facts.first_id, self.facts.last_id))
        return torch.cat((first, tokens, last), dim=1)


def hide(blocks: Tensor, facts: TaskFacts, generator: torch.Generator) -> Batch:
    """Choose tokens of blocks [B, T] and hide them: 80 % become the mask symbol, 10 % a random symbol, 10 % stay.

    Special symbols are never chosen.  The draws are those of transformers' DataCollatorForLanguageModeling.
    """

    def drawn(share: float | Tensor) -> Tensor:
        shares = torch.as_tensor(share).expand(blocks.shape)
        return torch.bernoulli(shares, generator=generator).bool()

    special = torch.isin(blocks, torch.tensor(facts.special_ids))
    chosen = drawn(torch.full(blocks.shape, CHOSEN).masked_fill(special, 0.0))
    masked = drawn(MASKED) & chosen
    replaced = drawn(RANDOM / (1 - MASKED)) & chosen & ~masked
    symbols = torch.randint(facts.vocab_size, blocks.shape, generator=generator)
    inputs = blocks.masked_fill(masked, facts.mask_id).where(~replaced, symbols)
    return {"input_ids": inputs, "labels": blocks.masked_fill(~chosen, IGNORED)}


def _hidden(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in single precision [N, V] and labels [N] of the N tokens to predict, and which these are, [B, T]."""
    hidden = batch["labels"] != IGNORED
    logits = model(input_ids=batch["input_ids"]).logits
    return logits[hidden].float(), batch["labels"][hidden], hidden
