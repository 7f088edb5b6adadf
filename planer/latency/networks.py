"""Networks ready to be timed: random weights, inference mode, a filled memory.

One call scores one segment as NVIDIA's inference benchmark does: embedding, all blocks, the memory for the next
segment, and the negative log-likelihood of the targets.  What a network computes only once for a given shape (mask,
position table, and with cached attention the projected positions) was computed before the first timed call.

Letters in shapes: B sequences, T tokens of a segment, M remembered positions, D model width.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from planer.architecture import Architecture, Attention, BlockSpec
from planer.config import WorkloadConfig
from planer.model import LanguageModel, initialise

ATTENTIONS = ("cached", "recompute")
"""Attention modes of an inference: keys and values of the memory kept, or recomputed from hidden states."""

POOL_BYTES = 6 * 2**30
"""Weights and memories that a pool may take.  PLANER's largest networks add 6 GiB while one of them runs: activations,
and the memory for the next segment."""


def timed_forward(
    network: Architecture | LanguageModel,
    workload: WorkloadConfig,
    device: torch.device,
    dtype: torch.dtype,
    attention: str,
    tokens: Tensor | None = None,
    seed: int = 0,
) -> Callable[[], Tensor]:
    """A call that scores one segment of the workload and returns its nll [B, T].

    network: an architecture, which gets random weights, or a model, of which a copy is made when it is not in dtype
    on device.  attention: ``cached`` or ``recompute``.  tokens: text [B, L], L > T, of which the last T tokens are
    predicted and those before the last segment fill the memory, over and over if they are fewer than M; random
    tokens by default.
    """
    if isinstance(network, Architecture):
        model = random_model(network, device, dtype, seed)
    elif (network.embedding.weight.dtype, network.embedding.weight.device) == (dtype, device):
        model = network.eval()
    else:
        model = copy.deepcopy(network).to(device, dtype).eval()
    if tokens is None:
        tokens = random_tokens(model.architecture.vocab_size, workload, seed)
    tokens = tokens.to(device)
    past, segment = tokens[:, : -workload.tgt_len - 1], tokens[:, -workload.tgt_len - 1 :]
    memory = filled_memory(model, past if past.shape[1] else segment[:, :-1], workload, attention)

    @torch.inference_mode()
    def forward() -> Tensor:
        hidden, _ = model(segment[:, :-1], memory, mem_len=workload.mem_len, attention=attention)
        return model.nll(hidden, segment[:, 1:])

    return forward


class Pool:
    """Blocks with weights and memories of their own, from which networks are put together for timing.

    Networks of a pool share blocks, so that many of them fit into memory; within a network every block is another
    one, as long as the pool has enough copies.
    """

    def __init__(
        self,
        architecture: Architecture,
        copies: dict[BlockSpec, int],
        workload: WorkloadConfig,
        device: torch.device,
        dtype: torch.dtype,
        attentions: Iterable[str] = ATTENTIONS,
        seed: int = 0,
    ):
        """architecture: what all networks share; its own blocks are ignored.  copies: blocks to make of each kind."""
        specs = tuple(spec for spec, count in copies.items() for _ in range(count))
        self.workload = workload
        self._model = random_model(dataclasses.replace(architecture, blocks=specs), device, dtype, seed)
        self._places = {spec: [place for place, other in enumerate(specs) if other == spec] for spec in copies}
        self._tokens = random_tokens(architecture.vocab_size, workload, seed).to(device)
        self._memory = {
            attention: filled_memory(self._model, self._tokens[:, :-1], workload, attention) for attention in attentions
        }
        self._shells: dict[tuple[str, bool], LanguageModel] = {}

    def network(self, blocks: Sequence[BlockSpec], attention: str, head: bool = True) -> Callable[[], Tensor]:
        """A call that scores one segment with these blocks in this order; without head it stops at the last block."""
        used: Counter[BlockSpec] = Counter()
        places = []
        for spec in blocks:
            places.append(self._places[spec][used[spec] % len(self._places[spec])])
            used[spec] += 1
        modules = nn.ModuleList(self._model.blocks[place] for place in places)
        memory = [self._memory[attention][place] for place in places]
        model = self._shell(attention, any(entry is not None for entry in memory))
        segment = self._tokens

        @torch.inference_mode()
        def forward() -> Tensor:
            model.blocks = modules
            hidden, _ = model(segment[:, :-1], memory, mem_len=self.workload.mem_len, attention=attention)
            return model.nll(hidden, segment[:, 1:]) if head else hidden

        return forward

    def _shell(self, attention: str, remembers: bool) -> LanguageModel:
        """Embedding and head for networks of one kind.

        A model, and each attention block, keep positions prepared for the last shape they saw.  Networks that differ
        in it get models of their own; otherwise each call would throw away what the next one could have used.
        """
        key = (attention, remembers)
        if key not in self._shells:
            with torch.device("meta"):  # its own weights are never used
                shell = LanguageModel(dataclasses.replace(self._model.architecture, blocks=())).eval()
            shell.embedding, shell.output_bias = self._model.embedding, self._model.output_bias
            shell.final_norm = self._model.final_norm
            self._shells[key] = shell
        return self._shells[key]


def affordable_copies(
    architecture: Architecture,
    specs: Iterable[BlockSpec],
    workload: WorkloadConfig,
    dtype: torch.dtype,
    attentions: Iterable[str] = ATTENTIONS,
) -> int:
    """Copies of every block that fit into POOL_BYTES with their memories; at least 1."""
    numbers = 0
    for spec in specs:
        numbers += spec.params(architecture.d_model)
        if isinstance(spec, Attention):
            widths = {"cached": 2 * spec.width, "recompute": architecture.d_model}
            numbers += sum(workload.batch * workload.mem_len * widths[attention] for attention in attentions)
    return max(1, POOL_BYTES // (max(numbers, 1) * dtype.itemsize))


def random_model(architecture: Architecture, device: torch.device, dtype: torch.dtype, seed: int) -> LanguageModel:
    """A freshly initialised model for inference.  Its gates prefer no expert, so routing is nearly balanced."""
    model = LanguageModel(architecture)
    initialise(model, torch.Generator().manual_seed(seed))
    return model.to(device, dtype).eval()


def random_tokens(vocab_size: int, workload: WorkloadConfig, seed: int) -> Tensor:
    """[B, T + 1]: a segment and the token after it."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (workload.batch, workload.tgt_len + 1), generator=generator)


@torch.inference_mode()
def filled_memory(model: LanguageModel, text: Tensor, workload: WorkloadConfig, attention: str) -> list:
    """Memory of M positions after reading the end of text [B, L] in segments, repeated when L < M.

    Reading M positions that nobody times would take longer than what is timed (ten segments at M = 640, T = 64).
    """
    memory = None
    for segment in text[:, -max(workload.mem_len, workload.tgt_len) :].split(workload.tgt_len, dim=1):
        _, memory = model(segment, memory, mem_len=workload.mem_len, attention=attention)
    return [_repeat(entry, workload.mem_len) for entry in memory]


def _repeat(entry: Tensor | tuple[Tensor, ...] | None, length: int) -> Tensor | tuple[Tensor, ...] | None:
    """Hidden states [B, m, D], or keys and values [B, H, m, Dh], with m made length by repetition."""
    if entry is None:
        return None
    if isinstance(entry, tuple):
        return tuple(_repeat(part, length) for part in entry)
    rows = entry.shape[-2]
    if rows == length:
        return entry.contiguous()
    return entry[..., torch.arange(length, device=entry.device) % rows, :]
