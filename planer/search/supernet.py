"""The supernet: a network in which every position holds all options of the design space.

PLANER (arXiv 2208.14580), section 3: a super block outputs sum_i P_i Block_i(x), P = GumbelSoftmax(alpha, T).  Each
option carries its own residual and LayerNorm; skip is the bare identity.  Under hard sampling one option per position
runs, so a step costs about one network; under soft sampling all run.

Options share weights (sharing.py).  Fair sampling runs each kind equally often, whatever the number of its options,
and skip half as often; plain sampling, the paper's, knows no kinds.

Letters in shapes: B sequences, T tokens, M remembered positions, D model width, P positions, N options, E experts,
S steps.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planer.blocks.block import Aux, Block
from planer.errors import Damaged
from planer.models import LanguageModel, require_fit
from planer.search.sharing import owners
from planer.specs import Architecture, BlockSpec
from planer.tensors import read_tensors, write_tensors
from planer.training.checkpoint import storable


class SuperBlock(nn.Module):
    """All options of one position.  Set ``choice`` (hard) or ``mixture`` (soft) before calling forward."""

    uses_memory = True

    def __init__(self, options: tuple[BlockSpec, ...], shared: Architecture, weight_sharing: str):
        super().__init__()
        self.options = nn.ModuleList(spec.build(shared) for spec in options)
        self.lookback = max(option.lookback for option in self.options)
        self.owners = owners(options, weight_sharing)
        """For every option the number of the option whose weights it uses."""
        for own, owner in zip(self.options, self.owners, strict=True):
            if own is not self.options[owner]:
                own.share(self.options[owner])
        self.choice: int | None = None
        self.mixture: Tensor | None = None

    def forward(self, x_BTD: Tensor, segment, memory_BMD: Tensor | None) -> tuple[Tensor, None, Aux]:
        """Output of the chosen option with its further outputs, or the mixture of all options' outputs alone.

        Memory is always kept for this position: the next segment may sample attention here.
        """

        def run(block: Block) -> tuple[Tensor, object, Aux]:
            return block(x_BTD, segment, memory_BMD if block.uses_memory else None)

        if self.mixture is None:
            y_BTD, _, aux = run(self.options[self.choice])
            return y_BTD, None, aux
        outputs = [run(block)[0] for block in self.options]
        return sum(p * y for p, y in zip(self.mixture, outputs, strict=True)), None, {}


class Supernet(LanguageModel):
    """A language model of super blocks, with architecture weights ``alpha`` [P, N] (fp32, zero at the start)."""

    def __init__(self, shared: Architecture, options: tuple[BlockSpec, ...], positions: int, weight_sharing: str):
        """Take the numbers that all blocks share from ``shared``; its own blocks are ignored.

        weight_sharing: heads, all or none, see sharing.py.
        """
        shared = dataclasses.replace(shared, blocks=())
        super().__init__(shared, [SuperBlock(options, shared, weight_sharing) for _ in range(positions)])
        self.specs = options
        self.kinds = _kinds(options)
        """Numbers of the options by the kind of their block: skip, attention, feed-forward, mixture of experts."""
        # Skip has nothing to train, and where it is sampled often, networks are shallow.
        self.cycle = [kind for kind in self.kinds for _ in range(1 if options[kind[0]].identity else 2)]
        """Kinds of one cycle of fair samples: each twice, skip once."""
        self.alpha = nn.Parameter(torch.zeros(positions, len(options)))

    def weights(self) -> list[nn.Parameter]:
        """Every parameter but the architecture weights, shared ones once."""
        return [parameter for name, parameter in self.named_parameters() if name != "alpha"]

    def sample_hard(self, steps: int, generator: torch.Generator, fair: bool) -> Tensor:
        """Options of that many steps [S, P], on the CPU, sampled with probabilities softmax(alpha).

        fair: with probabilities proportional to exp(alpha) and to the option's share of a fair cycle, so that equal
        alpha train weights as often as fair samples do.  The argmax of Gumbel-perturbed logits does not depend on the
        temperature.  Waits for the device once.
        """
        logits = self.alpha.detach().cpu()
        if fair:
            shares = torch.zeros(len(self.specs))
            for kind in self.cycle:
                shares[kind] += 1 / len(kind)
            logits = logits + shares.log()
        return (logits + gumbel((steps, *logits.shape), generator)).argmax(-1)

    def sample_fair(self, steps: int, generator: torch.Generator) -> Tensor:
        """Options of steps [S, P], on the CPU, in cycles that have every kind with weights twice, and the options of
        a kind in separate cycles.

        With equal probabilities alone, early chance decides which options train well (FairNAS, arXiv 1907.01845).
        """
        positions, length = len(self.blocks), len(self.cycle)
        cycles = -(-steps // length)
        turns = _cycles(length, cycles * length, positions, generator)
        choices = torch.empty_like(turns)
        for turn, kind in enumerate(self.cycle):
            options = torch.tensor(kind)[_cycles(len(kind), cycles, positions, generator)]
            choices = torch.where(turns == turn, options.repeat_interleave(length, 0), choices)
        return choices[:steps]

    def choose(self, choices: list[int]) -> None:
        """Run exactly these options, one per position."""
        for block, choice in zip(self.blocks, choices, strict=True):
            block.choice, block.mixture = choice, None

    def expert_loads(self, aux: list[Aux]) -> Tensor:
        """Tokens that every expert received in a hard pass [P, E]; 0 where no mixture of experts was chosen.

        aux: what the pass handed on, ``load`` among it.
        """
        num_experts = max((spec.num_experts for spec in self.specs if spec.routes), default=0)
        loads = torch.zeros(len(self.blocks), num_experts, dtype=torch.int64, device=self.alpha.device)
        for row, handed_on in zip(loads, aux, strict=True):
            if "load" in handed_on:
                row += handed_on["load"]
        return loads

    def sample_soft(self, temperature: float, generator: torch.Generator) -> Tensor:
        """Mix all options with P = softmax((alpha + Gumbel noise) / T); returns P [P, N], differentiable in alpha."""
        noise = gumbel(self.alpha.shape, generator).to(self.alpha.device, non_blocking=True)
        mixture = F.softmax((self.alpha + noise) / temperature, dim=-1)
        for block, row in zip(self.blocks, mixture, strict=True):
            block.mixture = row
        return mixture


def _kinds(options: tuple[BlockSpec, ...]) -> list[list[int]]:
    """Numbers of the options by the kind of their block, in the order of the first of each."""
    kinds: dict[str, list[int]] = {}
    for number, spec in enumerate(options):
        kinds.setdefault(spec.kind, []).append(number)
    return list(kinds.values())


def _cycles(count: int, steps: int, positions: int, generator: torch.Generator) -> Tensor:
    """Numbers below count [S, P]: in every column in cycles that hold each number once, in random order."""
    cycles = -(-steps // count)
    return torch.rand(cycles, count, positions, generator=generator).argsort(dim=1).flatten(0, 1)[:steps]


def build_supernet(config: SimpleNamespace, vocab_size: int) -> Supernet:
    """The supernet of an experiment: its design space at as many positions as its baseline has blocks.

    config has the sections model, patterns, design_space and search.  Parameters are not initialised.
    """
    baseline = config.model.architecture(vocab_size, config.patterns.baseline)
    options = tuple(map(config.model.option, config.design_space))
    return Supernet(baseline, options, len(baseline.blocks), config.search.weight_sharing)


def load_supernet(path: str | Path, config: SimpleNamespace, vocab_size: int) -> Supernet:
    """The supernet that ``save_supernet`` wrote.

    Raises UserError when the file is missing, damaged or changed, when weights are not finite, or when they belong to
    another experiment.
    """
    weights, _ = read_tensors(path)
    supernet = build_supernet(config, vocab_size)
    expected = supernet.state_dict()
    require_fit(path, weights, expected, "the supernet of this experiment")
    if missing := sorted(storable(expected)[0].keys() - weights.keys()):
        raise Damaged(path, f"does not fit the supernet of this experiment: {missing[0]} is absent")
    supernet.load_state_dict(weights, strict=False)  # a weight that options share is stored under one of its names
    return supernet


def save_supernet(supernet: Supernet, path: str | Path) -> None:
    """Write a supernet into a safetensors file; weights that its options share are stored once."""
    stored, _ = storable(supernet.state_dict())
    write_tensors(path, stored)


def gumbel(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise, -log of an exponential variate; sampled on the CPU so that every device gets the same.

    In double precision before it is rounded: in single precision one variate in 2^24 can be 0, and its noise infinite.
    """
    return -torch.empty(shape, dtype=torch.float64).exponential_(generator=generator).log().float()
