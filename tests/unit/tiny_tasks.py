"""Tiny tasks for the networks of tiny_pretrained.py."""

from __future__ import annotations

from pathlib import Path

import torch

from planer.data.task_files import TaskFacts, write_task
from tests.unit.tiny_pretrained import VOCAB

BLOCK, LABELS, PATCHES = 8, 3, 4
LENGTHS = {"train": (5, 12, 7, 3, 9, 16, 4, 6), "valid": (4, 11, 6, 8, 2), "test": (3, 10, 5)}


def facts(kind: str) -> TaskFacts:
    names = ("a", "b", "c")
    if kind == "text":
        return TaskFacts(kind, "nll", block_size=BLOCK)
    if kind == "masked_tokens":
        symbols = {"first_id": 2, "last_id": 3, "mask_id": 4, "special_ids": (0, 1, 2, 3, 4), "vocab_size": VOCAB}
        return TaskFacts(kind, "nll", block_size=BLOCK, **symbols)
    if kind == "labelled_text":
        return TaskFacts(kind, "accuracy", names, pad_id=0)
    return TaskFacts(kind, "accuracy", names, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), tokens_per_image=1 + PATCHES)


def tensors(kind: str, split: str, pairs: bool = False) -> dict:
    """Random samples of a split."""
    generator = torch.Generator().manual_seed(len(split))
    lengths = torch.tensor(LENGTHS[split])
    ids = torch.randint(5, VOCAB, (int(lengths.sum()),), generator=generator, dtype=torch.int32)
    if kind in ("text", "masked_tokens"):
        return {"tokens": ids}
    labels = torch.arange(len(lengths)) % LABELS
    if kind == "labelled_images":
        pixels = torch.randint(0, 256, (len(lengths), 3, 8, 8), generator=generator, dtype=torch.uint8)
        return {"pixels": pixels, "labels": labels}
    starts = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
    return {"ids": ids, "starts": starts, "labels": labels} | (
        {"types": (torch.arange(len(ids)) % 2).byte()} if pairs else {}
    )


def save_task(kind: str, folder: Path) -> Path:
    write_task(folder, facts(kind), {split: tensors(kind, split) for split in LENGTHS}, {})
    return folder
