"""Contiguous streams: which token is read when."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planer.data.stream import EvalBatches, StreamBatches
from planer.errors import UserError

SIZES = {"n": st.integers(2, 40), "extra": st.integers(0, 3), "batch": st.integers(1, 4), "tgt_len": st.integers(1, 9)}


def text(length):
    """Each token is its position."""
    return np.arange(length, dtype=np.uint16)


@settings(max_examples=60)
@given(**SIZES)
def test_an_epoch_reads_every_stream_once_in_order(n, extra, batch, tgt_len):
    tokens = text(n * batch + min(extra, batch - 1))
    batches = StreamBatches(tokens, batch, tgt_len)
    segments = [batches.batch_at(step) for step in range(batches.segments_per_epoch)]
    streams = torch.arange(n * batch).reshape(batch, n)
    assert torch.equal(torch.cat([x for x, _ in segments], dim=1), streams[:, :-1])
    assert torch.equal(torch.cat([y for _, y in segments], dim=1), streams[:, 1:])
    widths = [x.shape[1] for x, _ in segments]
    assert all(width == tgt_len for width in widths[:-1]) and 0 < widths[-1] <= tgt_len


def test_any_step_can_be_read_and_epochs_are_equal():
    batches = StreamBatches(text(100), batch=3, tgt_len=10)
    assert batches.segments_per_epoch == 4
    for step in (7, 2, 9, 0):
        x, y = batches.batch_at(step)
        again, _ = batches.batch_at(step % 4)
        assert torch.equal(x, again)
        assert torch.equal(y[:, :-1], x[:, 1:])
        assert x.dtype == y.dtype == torch.int64
        assert x.is_contiguous() and y.is_contiguous()


def test_the_counts_of_wikitext_103():
    tokens = np.broadcast_to(np.uint32(7), 103_227_021)
    batches = StreamBatches(tokens, batch=256, tgt_len=192)
    assert batches.targets_per_stream + 1 == 403_230
    assert batches.segments_per_epoch == 2_101
    assert batches.batch_at(2_099)[0].shape == (256, 192)
    assert batches.batch_at(2_100)[0].shape == (256, 29)
    assert batches.batch_at(39_999)[0].shape == (256, 192)
    evaluation = EvalBatches(np.broadcast_to(np.uint32(7), 245_569), batch=16, tgt_len=64, mem_len=640)
    assert evaluation.counted_targets == 245_552
    assert sum(y.numel() for _, y, counted in evaluation if counted) == 245_552


def test_the_tensors_of_a_memory_map_are_copies(tmp_path):
    np.save(tmp_path / "train.npy", text(50).astype(np.uint8))
    mapped = np.load(tmp_path / "train.npy", mmap_mode="r", allow_pickle=False)
    x, y = StreamBatches(mapped, batch=2, tgt_len=8).batch_at(1)
    x += 1
    assert torch.equal(x, y)
    assert mapped[9] == 9
    assert len(list(EvalBatches(mapped, 2, 8, 8))) == len(EvalBatches(mapped, 2, 8, 8)) == 4


@settings(max_examples=60)
@given(mem_len=st.integers(0, 30), **SIZES)
def test_the_warm_up_of_a_stream_is_the_text_before_it(n, extra, batch, tgt_len, mem_len):
    warmup = -(-mem_len // tgt_len)
    n = max(n, -(-warmup * tgt_len // max(batch - 1, 1)))
    batches = EvalBatches(text(n * batch + min(extra, batch - 1)), batch, tgt_len, mem_len)
    segments = list(batches)
    assert [counted for _, _, counted in segments] == [False] * warmup + [True] * (len(batches) - warmup)
    assert len(segments) == len(batches)
    positions = torch.cat([x for x, _, _ in segments], dim=1)
    starts = torch.arange(batch)[:, None] * n
    expected = starts + torch.arange(-warmup * tgt_len, n - 1)
    assert torch.equal(positions, expected % (n * batch))
    for x, y, _ in segments:
        assert torch.equal(y, (x + 1) % (n * batch))
    scored = torch.cat([y.flatten() for _, y, counted in segments if counted])
    assert len(scored) == batches.counted_targets == batch * (n - 1)
    assert set(range(n * batch)) - set(scored.tolist()) == set(starts.flatten().tolist())
    if batch > 1:
        context = torch.cat([x for x, _, counted in segments if not counted], dim=1) if warmup else starts[:, :0]
        own = (context // n) == torch.arange(batch)[:, None]
        assert not own.any()


def test_evaluation_can_be_repeated():
    batches = EvalBatches(text(60), batch=2, tgt_len=7, mem_len=10)
    assert [x.tolist() for x, _, _ in batches] == [x.tolist() for x, _, _ in batches]


def test_a_text_of_too_few_tokens_is_refused():
    StreamBatches(text(16), batch=8, tgt_len=4)
    with pytest.raises(UserError, match="15 tokens, a batch of 8 needs at least 16; lower batch"):
        StreamBatches(text(15), batch=8, tgt_len=4)
    EvalBatches(text(64), batch=8, tgt_len=8, mem_len=50)
    with pytest.raises(UserError, match="63 tokens, a batch of 8 needs at least 64; lower batch or mem_len"):
        EvalBatches(text(63), batch=8, tgt_len=8, mem_len=50)
    with pytest.raises(ValueError, match="one-dimensional"):
        StreamBatches(text(16).reshape(2, 8), batch=2, tgt_len=4)
