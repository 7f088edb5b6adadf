"""Decoders in transformers' classes behind the interface of planer.models.network: text in, text out, token by token.

Letters in shapes: V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import torch

from planer.errors import UserError
from planer.files import read_json
from planer.models.generate import SEGMENT, Sampling, token_ids
from planer.models.network import Surroundings
from planer.models.vocabulary import Vocabulary
from planer.parsing import show
from planer.pretrained.folder import check_folder, check_generates
from planer.pretrained.load import load_model, load_tokenizer
from planer.runtime import resolve_device


class PretrainedNetwork:
    """A decoder that reads and writes text; ``model`` is the network in transformers' class."""

    def __init__(self, model: torch.nn.Module, tokenizer, name: str, evaluation: dict | None = None):
        """tokenizer: of transformers.  name: of the folder, for messages.  evaluation: eval.json of its arm."""
        self.model, self._tokenizer = model, tokenizer
        symbols = json.loads(tokenizer.backend_tokenizer.to_str())
        self.surroundings = Surroundings(Vocabulary(symbols, name), evaluation)

    @property
    def positions(self) -> int:
        """Most tokens of a text."""
        return self.model.config.max_position_embeddings

    def generate(self, prompt: str | Sequence[int], **options) -> str | list[int]:
        """The prompt and what follows it: text for text, ids for ids; otherwise as ``stream``."""
        if not isinstance(prompt, str):
            ids = token_ids(prompt, self.model.config.vocab_size)
            return [*ids, *self.stream(ids, **options)]
        ids = self.encode(prompt)
        return prompt + self.surroundings.vocabulary.decode(self.stream(ids, **options), ids)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, after those with which the tokenizer begins every text.

        Raises UserError for a text without tokens.
        """
        if not (ids := self._tokenizer(text).input_ids):
            raise UserError(f"the prompt {show(text)} holds no token; write some text")
        return ids

    def stream(self, ids: Sequence[int], weights: str = "float32", **options) -> Iterator[int]:
        """Yield the ids that follow, one at a time, up to the network's end of text, which is not among them.

        weights: float32 alone; the decode engine has no such networks.  options: of
        ``planer.models.generate.Sampling``.
        Raises UserError for options out of range, and for a text longer than the network's positions.
        """
        return chain.from_iterable(self.steps(ids, weights, **options))

    def steps(self, ids: Sequence[int], weights: str = "float32", **options) -> Iterator[list[int]]:
        """As ``stream``, with every id in a list, and an empty list between segments of the prompt."""
        if weights != "float32":
            raise UserError(f"weights is {show(weights)}; allowed for networks in transformers' classes: float32")
        ids, sampling = token_ids(ids, self.model.config.vocab_size), Sampling.of(**options)
        if len(ids) + sampling.tokens > self.positions:
            raise UserError(
                f"{len(ids):,} tokens of the prompt and {sampling.tokens:,} more exceed the network's "
                f"{self.positions:,} positions; ask for fewer"
            )
        return self._steps(ids, sampling)

    @torch.inference_mode()
    def _steps(self, ids: list[int], sampling: Sampling) -> Iterator[list[int]]:
        ends, generator = _ends(self.model), torch.Generator().manual_seed(sampling.seed)
        *before, waiting = torch.tensor([ids], device=self.model.device).split(SEGMENT, dim=1)
        cache = None
        for segment in before:
            cache = self.model(segment, cache=cache, use_cache=True, logits_to_keep=1).cache
            yield []
        for _ in range(sampling.tokens):
            output = self.model(waiting, cache=cache, use_cache=True, logits_to_keep=1)
            token, cache = sampling.choose(output.logits[0, -1].float().log_softmax(-1), generator), output.cache
            if token in ends:
                return
            yield [token]
            waiting = torch.tensor([[token]], device=self.model.device)


def load(folder: str | Path, device: str | torch.device = "cpu") -> PretrainedNetwork:
    """Read a decoder, converted or not, ready to generate text.  device: auto, cpu, cuda or cuda:<number>.

    Raises UserError as ``check_generates``, ``check_folder``, ``load_model`` and ``load_tokenizer``.
    """
    check_generates(folder)
    checked = check_folder(folder, "causal_lm", converted=True)
    model = load_model(checked).to(resolve_device(str(device)))
    if how := checked.conversion:
        from planer.pretrained import select

        # Loading has chosen the layers that run densely for the CPU.
        select(model, how["selector"], how["value"], how["fast"])
    path = checked.path / "eval.json"
    evaluation = read_json(path, "arm") if path.is_file() else None
    return PretrainedNetwork(model, load_tokenizer(checked), checked.path.name, evaluation)


def _ends(model: torch.nn.Module) -> set[int]:
    """Ids that end a text."""
    ids = model.generation_config.eos_token_id
    return set() if ids is None else set(ids) if isinstance(ids, list) else {ids}
