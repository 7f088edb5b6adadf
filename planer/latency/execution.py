"""Execution of a timed call: ``eager``, ``compiled`` or ``graph``.

eager: PyTorch launches one kernel after the other.
compiled: torch.compile compiles every block separately.  Blocks of one kind share their code, so that a network of
any depth compiles as fast as one block of each kind (regional compilation).  Embedding and head, which all networks
share, stay eager, and so do converted layers: they would be compiled again for every threshold.
graph: the kernels of the eager call are captured once as a CUDA graph and replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from planer.blocks.block import Block
from planer.blocks.dynamic_moe import DynamicMoE
from planer.errors import UserError

WARMUP = 2
"""Untimed calls: the first one fills caches of positions, and compiled code changes once they are full."""

CODES = 1024
"""Most kinds of blocks that may be compiled; beyond this, PyTorch would silently stay eager."""


def check_execution(execution: str, device: torch.device) -> None:
    """Raise UserError when the device does not have this execution mode."""
    if execution == "graph" and device.type != "cuda":
        raise UserError(
            f"execution: graph needs a CUDA device, but this run is on {device.type}; use eager or compiled"
        )


def executable(block: Block, execution: str) -> nn.Module:
    """The block as this mode runs it, with the same weights."""
    if execution != "compiled" or not block.compiles:
        return block
    return torch.compile(block, dynamic=False)


def prepared(
    forward: Callable[[], Tensor], execution: str, device: torch.device, layers: Sequence[DynamicMoE] = ()
) -> Callable[[], Tensor]:
    """The call in its mode, after all work that happens only once.

    layers: converted layers whose threshold may change between calls; each threshold gets a separate graph.  A graph's
    result is valid until the next call of any graph.  Raises UserError when the call cannot be compiled or
    captured.
    """
    check_execution(execution, device)
    if execution == "compiled":
        _compile(forward)
    if execution == "graph":
        forward = _replayed(forward, device, layers)
        forward()
    return forward


def _compile(forward: Callable[[], Tensor]) -> None:
    import torch._dynamo  # takes a second

    limits = {"recompile_limit": CODES, "accumulated_recompile_limit": CODES, "fail_on_recompile_limit_hit": True}
    try:
        with torch._dynamo.config.patch(limits):
            for _ in range(WARMUP):
                forward()
    except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
        reason = " ".join(str(error).partition("\n\n")[0].split())
        raise UserError(f"execution: compiled failed: {reason}; install a C++ compiler, or use eager") from error


def _replayed(
    forward: Callable[[], Tensor], device: torch.device, layers: Sequence[DynamicMoE]
) -> Callable[[], Tensor]:
    graphs: dict[tuple[float, ...], tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def replay() -> Tensor:
        thresholds = tuple(layer.tau for layer in layers)
        if thresholds not in graphs:
            graphs[thresholds] = _captured(forward, device)
        graph, result = graphs[thresholds]
        graph.replay()
        return result

    return replay


def _captured(forward: Callable[[], Tensor], device: torch.device) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUP):
                forward()
        torch.cuda.current_stream().wait_stream(stream)
        try:
            with torch.cuda.graph(graph, pool=_graph_memory(device)):
                result = forward()
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"execution: graph failed: {reason}; the network waits for the GPU during a call, use eager or compiled"
            ) from error
    return graph, result


@cache
def _graph_memory(device: torch.device) -> tuple[int, int]:
    """One memory pool for all graphs, which are replayed one at a time."""
    return torch.cuda.graph_pool_handle()
