"""What feed-forward layers of a pretrained network compute on the samples of a task.

Letters in shapes: B samples, T tokens of a sample, D model width, F neurons.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from planer.blocks.block import Wants
from planer.conversion.sites import FeedForwardSite, feed_forward_sites
from planer.tasks.pretrained_task import Batch, PretrainedTask
from planer.tasks.task import Result, RowScore, Task


@dataclass
class Seen:
    """One layer in one pass: its input x [B, T, D], input z and product h [B, T, F] as in FeedForwardSite.watch."""

    x: Tensor
    z: Tensor
    h: Tensor


class Recorder:
    """Keeps what every feed-forward layer saw in the network's last pass, with gradients.

    A layer that is split into experts must run all of them.
    """

    def __init__(self, model: nn.Module):
        self.sites = feed_forward_sites(model)
        self.seen: dict[str, Seen] = {}
        self._inputs: dict[str, Tensor] = {}

    @contextmanager
    def recording(self) -> Iterator[Recorder]:
        """Record all passes inside the context."""
        with ExitStack() as stack:
            for site in self.sites:
                stack.enter_context(_input_hook(site, self._inputs))
                stack.enter_context(site.watch(self._see))
            try:
                yield self
            finally:
                self.seen.clear()

    def take(self) -> Iterator[tuple[FeedForwardSite, Seen]]:
        """The layers and what they saw, in order; forgotten as they are taken, to free their memory."""
        for site in self.sites:
            yield site, self.seen.pop(site.name)

    def _see(self, site: FeedForwardSite, z: Tensor, h: Tensor) -> None:
        self.seen[site.name] = Seen(self._inputs.pop(site.name), z, h)


@contextmanager
def _input_hook(site: FeedForwardSite, inputs: dict[str, Tensor]) -> Iterator[None]:
    handle = site.entry.register_forward_pre_hook(lambda module, arguments: inputs.update({site.name: arguments[0]}))
    try:
        yield
    finally:
        handle.remove()


def is_decoder(model: nn.Module) -> bool:
    """Whether the network's family reads texts from left to right."""
    return "causal_lm" in feed_forward_sites(model)[0].adapter.heads


def typical_tokens(model: nn.Module, task: PretrainedTask, batch: Batch) -> Tensor:
    """Tokens that penalties and statistics look at: bool [B, T].

    Those that are no padding, and in decoders not the first of a sample: it collects attention, and its activations in
    the first layers are hundreds of times larger than others (Xiao et al. 2023, arXiv 2309.17453).
    """
    real = task.real(batch)
    if not is_decoder(model):
        return real
    return real & (torch.arange(real.shape[1], device=real.device) > 0)


def run(model: nn.Module, batch: Batch) -> None:
    """A pass through the network without its head."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    model.base_model(**inputs, **({"use_cache": False} if is_decoder(model) else {}))


@torch.no_grad()
def typical_passes(
    model: nn.Module, task: PretrainedTask, split: str, tokens: int, seed: int
) -> Iterator[tuple[Recorder, Tensor]]:
    """Read random samples of a split until this number of typical tokens was seen, or all samples.

    Yields after each pass the recorder and the tokens to look at, bool [B, T]: ``tokens`` in all passes together.
    """
    order = np.random.default_rng(seed).permutation(task.size(split))
    with Recorder(model).recording() as recorder:
        for start in range(0, len(order), task.eval_batch):
            batch = task.on_device(task.collate(split, order[start : start + task.eval_batch]))
            typical = typical_tokens(model, task, batch)
            typical &= typical.flatten().cumsum(0).view_as(typical) <= tokens
            tokens -= int(typical.sum())
            with task.runtime.autocast():
                run(model, batch)
            yield recorder, typical
            if tokens == 0:
                return


class FrozenPasses(Task):
    """Reads a task's batches with a frozen network, without a loss: its predictions do not change."""

    def __init__(self, network: nn.Module, task: PretrainedTask):
        """The network stays out of the model that is trained, and of its checkpoints."""
        self.name, self._network, self._task = task.name, network, task

    def batch(self, step: int) -> Batch:
        """See Task."""
        return self._task.batch(step)

    def loss(
        self, model: nn.Module, batch: Batch, state: list | None, wants: Wants = (), scores: Sequence[RowScore] = ()
    ) -> Result:
        """See Task."""
        with torch.no_grad():
            run(self._network, batch)
        real = self._task.real(batch)
        return Result(torch.zeros((), device=real.device), {}, int(real.sum()), None, [], {})
