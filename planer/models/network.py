"""A trained network with all that its folder and the folders around it say: vocabulary, memory, measured figures.

A folder of a network holds architecture.yaml and model.safetensors.  An exported one holds vocab.json and eval.json
too; for a stage's folder in results/ they are found where the workflow writes them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

from planer.errors import UserError
from planer.files import read_json
from planer.models import io
from planer.models.decoder import check_weights
from planer.models.generate import Sampling, generate_batch, token_ids
from planer.models.transformer import LanguageModel
from planer.models.vocabulary import Vocabulary, read_vocabulary
from planer.parsing import show
from planer.runtime import resolve_device
from planer.specs import Architecture

MEM_LEN = 512
"""Memory of a network that has no eval.json."""


@dataclass(frozen=True)
class Surroundings:
    """What belongs to a network beside its weights."""

    vocabulary: Vocabulary | None
    evaluation: dict | None
    """eval.json, or None where there is none."""

    @property
    def variant(self) -> str | None:
        """Experiment and variant: ``demo/target_0.5``; None where there is no eval.json."""
        return f"{self.evaluation['experiment']}/{self.evaluation['variant']}" if self.evaluation else None

    @property
    def mem_len(self) -> int:
        """Tokens that a token sees before itself: as in the evaluation."""
        return self.evaluation["quality"]["final"]["mem_len"] if self.evaluation else MEM_LEN

    @property
    def clamp_len(self) -> int:
        """Distances beyond it count as it; 0 is off."""
        return self.evaluation["quality"]["final"]["clamp_len"] if self.evaluation else 0


class Network(LanguageModel):
    """A language model that reads and writes text."""

    surroundings = Surroundings(None, None)
    positions: int | None = None
    """Most tokens of a text; None: any number."""

    def generate(self, prompt: str | Sequence, weights: str = "float32", **options) -> str | list:
        """The prompt and what follows it: text for text, ids for ids, and a list of these for a list of prompts.

        Prompts of a list may be of any lengths; each gets what it gets alone.
        weights: what the decode engine stores weights as: float32, bfloat16 or int8; the last two need a CPU and a C++
        compiler.  options: tokens, temperature, top_k, top_p, seed (``planer.models.generate.Sampling``).
        Raises UserError for an empty prompt, for symbols outside the vocabulary, for options out of range, and for text
        where no vocabulary was found.
        """
        is_list = isinstance(prompt, list | tuple) and bool(prompt) and isinstance(prompt[0], Sequence)
        prompts = prompt if is_list else [prompt]
        vocab_size = self.architecture.vocab_size
        ids = [self.encode(one) if isinstance(one, str) else token_ids(one, vocab_size) for one in prompts]
        following = zip(*filter(None, self._steps(ids, weights, options)), strict=True)
        written = [
            one + self.surroundings.vocabulary.decode(after, before) if isinstance(one, str) else [*before, *after]
            for one, before, after in zip(prompts, ids, following, strict=True)
        ]
        return written if is_list else written[0]

    def encode(self, text: str) -> list[int]:
        """Ids of a text.  Raises UserError as ``generate`` does."""
        if self.surroundings.vocabulary is None:
            raise UserError("no vocab.json belongs to this network; name one (vocab=, --vocab), or give token ids")
        return self.surroundings.vocabulary.encode(text)

    def stream(self, ids: Sequence[int], weights: str = "float32", **options) -> Iterator[int]:
        """Yield the ids that follow, one at a time; otherwise as ``generate``."""
        return chain.from_iterable(self.steps(ids, weights, **options))

    def steps(self, ids: Sequence[int], weights: str = "float32", **options) -> Iterator[list[int]]:
        """As ``stream``, with every id in a list, and an empty list between segments of the prompt."""
        return self._steps([ids], weights, options)

    def _steps(self, ids: Sequence[Sequence[int]], weights: str, options: dict) -> Iterator[list[int]]:
        """See ``generate_batch``.  Options are checked at once."""
        sampling = Sampling.of(**options)
        check_weights(self, weights)
        context = {"mem_len": self.surroundings.mem_len, "clamp_len": self.surroundings.clamp_len}
        return generate_batch(self, ids, sampling, **context, weights=weights)


def load(folder: str | Path, device: str | torch.device = "cpu", vocab: str | Path | None = None) -> Network:
    """Read a trained network, ready to generate text, at the threshold tau that its architecture.yaml stores.

    folder: of a stage (retrain, sparsify, cluster, routers), or an exported one.  device: auto, cpu, cuda or
    cuda:<number>.  vocab: the vocab.json of its text, where it cannot be found.
    Raises UserError when the folder holds no network, or a file is damaged or does not fit.
    """
    require_network(folder)
    network = io.load(folder, resolve_device(str(device)), Network)
    network.surroundings = surroundings_of(folder, network.architecture.vocab_size, vocab)
    return network


def require_network(folder: str | Path) -> None:
    """Raise UserError when a folder holds no network."""
    folder = Path(folder)
    for name in ("architecture.yaml", "model.safetensors"):
        if not os.path.isfile(folder / name):  # Path.is_file raises for names that are too long
            problem = f"has no {name}" if os.path.isdir(folder) else "is no folder"
            raise UserError(
                f"{show(str(folder))} {problem}; name the folder of a trained network, such as "
                "results/demo/target_0.5/retrain"
            )


def read_architecture(folder: str | Path) -> Architecture:
    """The network of a folder, without its weights.  Raises UserError when there is none."""
    require_network(folder)
    return Architecture.load(Path(folder) / "architecture.yaml")


def surroundings_of(folder: str | Path, vocab_size: int, vocab: str | Path | None = None) -> Surroundings:
    """Vocabulary and figures of the network in a folder.

    Raises UserError when a file is damaged, when the vocabulary has another size, or when several may be meant.
    """
    folder = Path(folder).resolve()
    reports = [path for path in (folder / "eval.json", folder.parent / "eval.json") if path.is_file()]
    vocabulary = read_vocabulary(vocab) if vocab else _find_vocabulary(folder, vocab_size)
    if vocabulary and vocabulary.size != vocab_size:
        raise UserError(
            f"{vocabulary.source} has {vocabulary.size:,} symbols, the network in {folder} has {vocab_size:,}; "
            "name the vocab.json of the text that it was trained on"
        )
    return Surroundings(vocabulary, read_json(reports[0], "eval") if reports else None)


def _find_vocabulary(folder: Path, vocab_size: int) -> Vocabulary | None:
    """vocab.json in the folder; else the one in results/data that has as many symbols."""
    if (folder / "vocab.json").is_file():
        return read_vocabulary(folder / "vocab.json")
    vocabularies = [path for parent in folder.parents[:3] for path in sorted(parent.glob("data/*/vocab.json"))]
    manifests = [path.with_name("manifest.json") for path in vocabularies]  # data of other tasks have no vocabulary
    fitting = [path for path in manifests if read_json(path, "manifest")["vocab_size"] == vocab_size]
    found = {path.with_name("vocab.json").read_bytes(): path.with_name("vocab.json") for path in fitting}
    if len(found) > 1:
        names = ", ".join(map(str, found.values()))
        raise UserError(f"{folder} may have been trained on several texts; name the vocab.json of one: {names}")
    return read_vocabulary(next(iter(found.values()))) if found else None
