"""Networks ready to be timed: random weights, inference mode, a filled memory.

One call scores one segment as NVIDIA's inference benchmark does: embedding, all blocks, the memory for the next
segment, and the negative log-likelihood of the targets, in the workload's execution mode.  Values that a network
computes once for a shape (mask, position table, and with cached attention the projected positions) are computed before
the first timed call.

A workload that decodes has calls as text generation makes them: each reads the next token of every sequence and gives
log-probabilities, by the decode engine where it runs, else by PyTorch.  Tokens follow each other, so that mixtures and
sparse layers read other weights in every call.

Letters in shapes: B sequences, T tokens of a segment, M remembered positions, D model width.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from planer.config import ATTENTIONS, Workload
from planer.latency.execution import check_execution, executable, prepared
from planer.latency.routings import set_routing
from planer.models import LanguageModel, initialise
from planer.models.decoder import Sequences, decoder_of, start
from planer.models.generate import SEGMENT
from planer.runtime import Runtime
from planer.specs import Architecture, BlockSpec

POOL_BYTES = 6 * 2**30
"""Most bytes of a pool's weights and memories.  PLANER's largest networks need 6 GiB more while one of them runs, for
activations and the memory for the next segment."""

MOST_READ = 8 * SEGMENT
"""Most tokens that are read to fill a memory.  The time for them grows with their square."""


def timed_forward(
    network: Architecture | LanguageModel,
    workload: Workload,
    runtime: Runtime,
    attention: str,
    tokens: Tensor | None = None,
) -> Callable[[], Tensor]:
    """A call that scores one segment of the workload and returns its nll [B, T], or that decodes one token of every
    sequence and returns log-probabilities [B, V].

    network: an architecture, which gets random weights, or a model, of which a copy is made when it is not in the
    runtime's dtype on its device.  attention: ``cached`` or ``recompute``.  tokens: text [B, L], L > T.  The last T
    tokens are predicted.  Those before the last segment fill the memory (``filled_memory``).  Decoding
    reads all tokens, one a call, again and again.  Random tokens by default.  Raises UserError when the device or the
    network does not allow the workload's execution.
    """
    device, dtype = runtime.device, runtime.dtype
    check_execution(workload.execution, device)
    if isinstance(network, Architecture):
        model = random_model(network, runtime)
    elif (weight := next(network.parameters())).dtype == dtype and weight.device == device:
        model = network.eval() if network.training else network  # eval() would drop positions prepared for other calls
    else:
        model = copy.deepcopy(network).to(device, dtype).eval()
    if tokens is None:
        tokens = random_tokens(model.architecture, workload, runtime.seed)
    tokens = tokens.to(device)
    past, segment = tokens[:, : -workload.tgt_len - 1], tokens[:, -workload.tgt_len - 1 :]
    memory = filled_memory(model, past if past.shape[1] else segment[:, :-1], workload, attention)
    if workload.decodes:
        with torch.inference_mode():
            read = start(model, [memory], 1, workload.mem_len, clamp_len=0)
        return _in_turn(read, tokens)
    timed = _wrapper(model, [executable(block, workload.execution) for block in model.blocks])

    @torch.inference_mode()
    def forward() -> Tensor:
        score = partial(timed.nll, targets=segment[:, 1:])
        return timed(segment[:, :-1], memory, score, mem_len=workload.mem_len, attention=attention).score

    return prepared(forward, workload.execution, device, model.dynamic_blocks())


def _in_turn(read: Callable[[Tensor], Tensor], tokens: Tensor) -> Callable[[], Tensor]:
    """A call that reads the next tokens [B] of some text [B, L], and the first ones after the last."""
    following = itertools.cycle(tokens.t().contiguous())

    @torch.inference_mode()
    def forward() -> Tensor:
        return read(next(following))

    return forward


class Pool:
    """Blocks with separate weights and memories, of which networks for timing are made.

    Networks of a pool share blocks, so that many of them fit into memory.  Within a network all blocks are different,
    while the pool has enough copies.
    """

    def __init__(
        self,
        architecture: Architecture,
        copies: dict[BlockSpec, int],
        workload: Workload,
        runtime: Runtime,
        attentions: Iterable[str] = ATTENTIONS,
    ):
        """architecture: of all networks; its blocks are ignored.  copies: number of blocks to make of each kind.

        Raises UserError when the device does not allow the workload's execution.
        """
        check_execution(workload.execution, runtime.device)
        specs = tuple(spec for spec, count in copies.items() for _ in range(count))
        self.workload, self._device = workload, runtime.device
        self._model = random_model(dataclasses.replace(architecture, blocks=specs), runtime)
        self._indices = {spec: [index for index, other in enumerate(specs) if other == spec] for spec in copies}
        self._tokens = random_tokens(architecture, workload, runtime.seed).to(runtime.device)
        self._memory = {
            attention: filled_memory(self._model, self._tokens[:, :-1], workload, attention) for attention in attentions
        }
        self._sequences = self._decoded_sequences() if workload.decodes else None
        self._wrappers: dict[tuple[str, bool], LanguageModel] = {}
        self._executable: dict[tuple[int, str], nn.Module] = {}

    def network(
        self, blocks: Sequence[BlockSpec], attention: str, head: bool = True, routing: str = "balanced"
    ) -> Callable[[], Tensor]:
        """A call that scores one segment with these blocks in this order; without head it stops at the last block.

        routing: how the routers of mixtures of experts spread tokens (``planer.latency.routings``).  Raises UserError
        when the network cannot be compiled or captured.
        """
        used: Counter[BlockSpec] = Counter()
        indices = []
        for spec in blocks:
            indices.append(self._indices[spec][used[spec] % len(self._indices[spec])])
            used[spec] += 1
        if self._sequences:
            sequences = self._sequences.through(indices)
            return _in_turn(sequences.read if head else sequences.hidden, self._tokens)
        modules = nn.ModuleList(self._block(index, routing) for index in indices)
        memory = [self._memory[attention][index] for index in indices]
        model = self._wrapper(attention, any(entry is not None for entry in memory))
        if self.workload.decodes:
            return _in_turn(partial(self._decode, model, modules, memory, head), self._tokens)
        segment = self._tokens

        @torch.inference_mode()
        def forward() -> Tensor:
            model.blocks = modules
            score = partial(model.nll, targets=segment[:, 1:]) if head else None
            output = model(segment[:, :-1], memory, score, mem_len=self.workload.mem_len, attention=attention)
            return output.score if head else output.hidden

        return prepared(forward, self.workload.execution, self._device)

    @torch.inference_mode()
    def _decoded_sequences(self) -> Sequences | None:
        """Sequences that the decode engine continues through all blocks; None where PyTorch does."""
        decoder = decoder_of(self._model)
        return decoder and Sequences(decoder, [self._memory["cached"]], 1, self.workload.mem_len, clamp_len=0)

    def _decode(self, model: LanguageModel, modules: nn.ModuleList, memory: list, head: bool, tokens: Tensor) -> Tensor:
        """What PyTorch makes of the next tokens [B]."""
        model.blocks = modules
        reading = {"mem_len": self.workload.mem_len, "attention": "cached", "same_length": True}
        hidden = model(tokens[:, None], memory, **reading).hidden[:, -1]
        return model.log_probs(hidden) if head else hidden

    def _block(self, index: int, routing: str) -> nn.Module:
        """A block ready for the workload's execution; under another routing it shares all but router and LayerNorm."""
        if (index, routing) not in self._executable:
            block = self._model.blocks[index]
            if routing != "balanced":
                block = block.rerouted(lambda weight: set_routing(weight, routing))
            self._executable[index, routing] = executable(block, self.workload.execution)
        return self._executable[index, routing]

    def _wrapper(self, attention: str, remembers: bool) -> LanguageModel:
        """Embedding and head for networks of one attention mode, with or without memory.

        A model and each attention block cache positions for the last shape.  Networks of different shapes get separate
        models, since they would overwrite each other's caches.
        """
        key = (attention, remembers)
        if key not in self._wrappers:
            self._wrappers[key] = _wrapper(self._model)
        return self._wrappers[key]


def _wrapper(model: LanguageModel, blocks: Iterable[nn.Module] = ()) -> LanguageModel:
    """These blocks between the embedding and the head of a model, with a separate cache of positions."""
    with torch.device("meta"):  # its initial weights are never used
        wrapper = LanguageModel(model.architecture, ()).eval()
    for name, part in (*model.named_children(), *model.named_parameters(recurse=False)):
        setattr(wrapper, name, part)
    wrapper.blocks = nn.ModuleList(blocks)
    return wrapper


def affordable_copies(
    architecture: Architecture,
    specs: Iterable[BlockSpec],
    workload: Workload,
    dtype: torch.dtype,
    attentions: Iterable[str] = ATTENTIONS,
) -> int:
    """Copies of every block that fit into POOL_BYTES with their memories; at least 1.

    The decode engine has another layout of the weights, and a cache beside each memory.
    """
    numbers = 0
    for spec in specs:
        remembered = sum(spec.remembered(architecture.d_model, attention) for attention in attentions)
        numbers += spec.params(architecture.d_model) + workload.batch * workload.mem_len * remembered
    layouts = 2 if workload.decodes else 1
    return max(1, POOL_BYTES // (max(numbers, 1) * layouts * dtype.itemsize))


def random_model(architecture: Architecture, runtime: Runtime) -> LanguageModel:
    """A freshly initialised model for inference.  Its routers prefer no expert, so routing is nearly balanced."""
    model = LanguageModel(architecture)
    initialise(model, torch.Generator().manual_seed(runtime.seed))
    return model.to(runtime.device, runtime.dtype).eval()


def random_tokens(architecture: Architecture, workload: Workload, seed: int) -> Tensor:
    """[B, T + 1]: a segment and the token after it; an excerpt [B, M + T + 1] where one token is read a call.

    Where the work of the head depends on the word, words of each cluster are as frequent as in a text.
    """
    generator = torch.Generator().manual_seed(seed)
    length = workload.excerpt if workload.decodes else workload.tgt_len + 1
    shape, clusters = (workload.batch, length), architecture.head.clusters(architecture.vocab_size)
    words = torch.stack([torch.randint(c.start, c.stop, shape, generator=generator) for c in clusters])
    if len(clusters) == 1:
        return words[0]
    shares = torch.tensor([cluster.share for cluster in clusters])
    chosen = torch.multinomial(shares, words[0].numel(), replacement=True, generator=generator)
    return words.gather(0, chosen.view(1, *shape))[0]


@torch.inference_mode()
def filled_memory(model: LanguageModel, text: Tensor, workload: Workload, attention: str) -> list:
    """Memory of M positions after reading the end of text [B, L] in segments, at most MOST_READ tokens, repeated where
    these are fewer than M.

    Reading all M positions would take longer than the timed call (ten segments at M = 640, T = 64).
    """
    memory, length = None, SEGMENT if workload.decodes else workload.tgt_len
    read = max(min(workload.mem_len, MOST_READ), workload.tgt_len)
    for segment in text[:, -read:].split(length, dim=1):
        memory = model(segment, memory, mem_len=workload.mem_len, attention=attention).state
    return [
        _repeat(entry, workload.mem_len + block.lookback if torch.is_tensor(entry) else workload.mem_len)
        for block, entry in zip(model.blocks, memory, strict=True)
    ]


def _repeat(entry: Tensor | tuple[Tensor, ...] | None, length: int) -> Tensor | tuple[Tensor, ...] | None:
    """Hidden states [B, m, D], or keys and values [B, H, m, Dh] and what follows them, with m made length by
    repetition."""
    if entry is None:
        return None
    if isinstance(entry, tuple):
        return (*(_repeat(part, length) for part in entry[:2]), *entry[2:])
    rows = entry.shape[-2]
    if rows == length:
        return entry.contiguous()
    return entry[..., torch.arange(length, device=entry.device) % rows, :]
