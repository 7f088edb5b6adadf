"""Classification of texts, pairs of texts and images by a network with a head of transformers.

Letters in shapes: B samples, T tokens, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planer.blocks.block import Wants
from planer.data.task_files import MULTIPLE
from planer.tasks.metrics import Scores, classified
from planer.tasks.pretrained_task import Batch, PretrainedTask
from planer.tasks.task import Result, RowScore


class Classification(PretrainedTask):
    """One label a sample, from the network's logits [B, labels]."""

    other_metrics = ("accuracy", "nll", "macro_f1")

    def loss(
        self, model: nn.Module, batch: Batch, state: list | None, wants: Wants = (), scores: Sequence[RowScore] = ()
    ) -> Result:
        """Cross-entropy; see Task.  There are no further outputs and no row scores."""
        logits = _logits(model, batch)
        nll = F.cross_entropy(logits, batch["labels"])
        hits = (logits.argmax(-1) == batch["labels"]).float().mean()
        return self.result(nll, {"nll": nll, "accuracy": hits}, len(logits))

    def score(self, model: nn.Module, batch: Batch) -> Scores:
        return classified(_logits(model, batch), batch["labels"])


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """In single precision, [B, labels]."""
    return model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits.float()


class LabelledTexts(Classification):
    """Texts, or pairs of texts: input_ids, attention_mask [B, T] int64, for pairs token_type_ids too, and labels [B].

    T is the length of the longest text of the batch, rounded up to a multiple of 8.
    """

    def lengths(self, split: str) -> np.ndarray:
        return np.diff(self.splits[split]["starts"].numpy())

    def collate(self, split: str, samples: np.ndarray) -> Batch:
        data = self.splits[split]
        starts, lengths = data["starts"][samples], torch.from_numpy(self.lengths(split)[samples])
        positions = torch.arange(-(-int(lengths.max()) // MULTIPLE) * MULTIPLE)
        real = positions < lengths[:, None]
        places = (starts[:, None] + positions) * real
        inputs = {"input_ids": data["ids"][places].long().where(real, self.facts.pad_id), "attention_mask": real.long()}
        if "types" in data:
            inputs["token_type_ids"] = data["types"][places].long() * real
        return inputs | {"labels": data["labels"][samples]}

    def real(self, batch: Batch) -> Tensor:
        return batch["attention_mask"].bool()


class LabelledImages(Classification):
    """Images: pixel_values [B, C, H, W] float32, normalised as the image processor does, and labels [B]."""

    def collate(self, split: str, samples: np.ndarray) -> Batch:
        data = self.splits[split]
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.facts.mean, self.facts.std))
        return {"pixel_values": (data["pixels"][samples] / 255 - mean) / std, "labels": data["labels"][samples]}

    def real(self, batch: Batch) -> Tensor:
        """See PretrainedTask.  A token stands for the whole image, one for each of its patches."""
        labels = batch["labels"]
        return torch.ones(len(labels), self.facts.tokens_per_image, dtype=torch.bool, device=labels.device)
