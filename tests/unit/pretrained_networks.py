"""Tiny networks of four families of transformers, each with a tiny task."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from torch import nn

from planer.config import LoopConfig, OptimizerConfig
from planer.runtime import Runtime
from planer.tasks.make_task import make_task
from planer.tasks.pretrained_task import PretrainedTask
from tests.unit.tiny_pretrained import SHARED, tiny
from tests.unit.tiny_tasks import LABELS, save_task

KINDS = {"bert": "labelled_text", "gpt2": "text", "vit": "labelled_images", "llama": "text"}
"""Families and the kinds of their tasks."""
ADAMW = OptimizerConfig("adamw", 1e-2, 0.0, 0, (0.9, 0.999), 1e-8, 0.0, 1.0)


def network(family: str) -> nn.Module:
    """In eval mode; BERT has a classifier, with weights sampled as in tiny()."""
    if family != "bert":
        return tiny(family)
    config = transformers.BertConfig(**SHARED, num_attention_heads=2, num_labels=LABELS)
    model = transformers.BertForSequenceClassification(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.3, generator=generator).add_(1.0 if weight.ndim == 1 else 0.0)
    return model.eval()


def task_of(family: str, folder: Path, training: LoopConfig | None = None) -> PretrainedTask:
    return make_task(save_task(KINDS[family], folder), training, Runtime(seed=3), "test")
