"""The text that timed calls read, and what is reported of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch

from planer.config import Workload
from planer.errors import UserError


def excerpts(text: np.ndarray, workload: Workload) -> torch.Tensor:
    """One excerpt of the text per sequence of a batch, [B, M + T + 1] int64, evenly spread.

    Raises UserError when the text is too short.
    """
    length = workload.excerpt
    stride = len(text) // workload.batch
    if stride < length:
        raise UserError(
            f"the test text has {len(text):,} tokens, timing needs {workload.batch} excerpts of {length}; "
            "lower workload.batch, tgt_len or mem_len, or choose a larger dataset"
        )
    rows = [text[start : start + length] for start in range(0, workload.batch * stride, stride)]
    return torch.from_numpy(np.stack(rows).astype(np.int64))


def latency_row(workload: Workload, own: Mapping, baseline: Mapping, headline: bool) -> dict:
    """A row of eval.json: a network's latency beside the baseline's.

    own, baseline: ``planer.measure.summary`` of their calls, with table_ms.  headline: whether the target is the
    latency of these calls.
    """
    return {
        **dataclasses.asdict(workload),
        **own,
        "headline": headline,
        "tokens_per_second": 1e3 * workload.batch * workload.tgt_len / own["median_ms"],
        "baseline_median_ms": baseline["median_ms"],
        "baseline_table_ms": baseline["table_ms"],
        "speed_up": baseline["median_ms"] / own["median_ms"],
    }
