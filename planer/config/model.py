"""What text, and the backbone that all variants of an experiment share."""

from __future__ import annotations

import re
import typing
from contextlib import suppress
from dataclasses import dataclass, field, fields, make_dataclass, replace
from typing import Annotated, Literal

from planer.config.bounds import Count, Positive, Share, Width
from planer.config.corpora import CORPORA
from planer.config.variant import OTHER_PATTERN, PATTERN_NAME, PATTERNS, check_name
from planer.errors import UserError
from planer.heads import HeadSpec
from planer.parsing import Items, Matching, build, merge, show
from planer.specs import Architecture, BlockSpec, from_notation, kinds

DesignSpace = Annotated[tuple[str, ...], Items(2, 100)]
"""Options that one searched position has."""
TEXT_SUFFIX = "-text"
"""End of the folder's name of a user's prepared text; no corpus has such a name."""


@dataclass(frozen=True)
class DataConfig:
    """Which text: a corpus by name, or the user's own files."""

    dataset: Annotated[str, Matching("|".join(["", *map(re.escape, CORPORA)]), f"one of {', '.join(CORPORA)}")]
    text: str
    tokenizer: str

    def __post_init__(self) -> None:
        if bool(self.dataset) == bool(self.text):
            raise UserError(f"dataset: name a dataset or a text, {'not both' if self.text else 'one of them'}")
        if self.dataset and self.tokenizer != "bytes":
            raise UserError(f"tokenizer is for data.text; {self.dataset} has its own: leave it out")

    def folder(self, experiment: str) -> str:
        """The name of its prepared files' folder in results/data."""
        return self.dataset or f"{experiment}{TEXT_SUFFIX}"


def one_source(layer: dict) -> dict:
    """The same configuration; when it names a text, it takes back a dataset of earlier layers, and the other way round.

    Raises UserError when it names both.
    """
    data = layer.get("data")
    sources = [key for key in ("dataset", "text") if isinstance(data, dict) and data.get(key)]
    if len(sources) == 2:
        raise UserError(f"config: data.text {show(data['text'])} and data.dataset {show(data['dataset'])}; keep one")
    if not sources:
        return layer
    other = {"dataset": ""} if sources == ["text"] else {"text": "", "tokenizer": "bytes"}
    return {**layer, "data": other | data}


class BlockSettings(dict):
    """Values of the fields that ``settings`` of a specification names, by kind of block and name."""

    @classmethod
    def from_values(cls, values: object, path: str) -> BlockSettings:
        """From a mapping of kinds to mappings.  Raises UserError naming what is wrong and what is allowed."""
        classes, defaults = {}, {}
        for kind, spec in kinds().items():
            if spec.settings:
                hints = typing.get_type_hints(spec, include_extras=True)
                classes[kind] = make_dataclass(kind, [(name, hints[name]) for name in spec.settings])
                defaults[kind] = {each.name: each.default for each in fields(spec) if each.name in spec.settings}
        given = merge(defaults, values) if isinstance(values, dict) else values
        settings = build(make_dataclass("BlockSettings", classes.items()), given, path)
        return cls({kind: vars(getattr(settings, kind)) for kind in values})


class DoesNotFit(UserError):
    """An option that this backbone cannot have, such as more heads than it has."""


@dataclass(frozen=True)
class ModelConfig:
    """The backbone that all variants of an experiment share."""

    d_model: Width
    num_heads: Count
    d_inner: Width
    num_experts: Count
    norm: Literal["post", "pre"]
    dropout: Share
    moe_dropout: Share
    attention_dropout: Share
    init_std: Positive
    head: HeadSpec
    blocks: BlockSettings = field(default_factory=BlockSettings)

    def __post_init__(self) -> None:
        if self.d_model % self.num_heads or self.d_model % 2:
            raise UserError(f"d_model: {self.d_model} must be even and divisible by num_heads ({self.num_heads})")

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.d_model // self.num_heads

    def option(self, name: str, key: str = "design_space") -> BlockSpec:
        """The block of an option: skip, attention_<h>, feed_forward, feed_forward_x<s>, moe_top<k>.

        key: the configuration key that lists the option, for messages.
        Raises DoesNotFit, and UserError for a name that is no option of any backbone.
        """
        try:
            block = next(filter(None, (kind.parse(name, self) for kind in kinds().values())), None)
        except ValueError as error:
            raise DoesNotFit(f"{key}: {error}") from error
        if block is None:
            allowed = ", ".join(spelling for kind in kinds().values() for spelling in kind.options)
            raise UserError(f"{key}: unknown option {show(name)}; allowed: {allowed}")
        if block.name != name:
            raise UserError(f"{key}: {show(name)} is not how this option is spelled; write it {block.name}")
        return self._with_settings(block)

    def _with_settings(self, block: BlockSpec) -> BlockSpec:
        return replace(block, **self.blocks.get(block.kind, {}))

    def symbols(self) -> dict[str, BlockSpec]:
        """Blocks by their symbol in patterns.  Raises UserError when two kinds have the same symbol."""
        found: dict[str, BlockSpec] = {}
        for kind in kinds().values():
            symbols = kind.symbols(self)
            if taken := found.keys() & symbols.keys():
                raise UserError(f"the block {kind.kind} has the symbol {min(taken)} of another block; change it")
            found |= {symbol: self._with_settings(block) for symbol, block in symbols.items()}
        return found

    def architecture(self, vocab_size: int, blocks: tuple[BlockSpec, ...] | str) -> Architecture:
        """A network of this backbone; blocks may be given in pattern notation.

        Raises UserError when the head does not fit the vocabulary.
        """
        if isinstance(blocks, str):
            blocks = from_notation(blocks, self.symbols())
        self.head.check(vocab_size, self.d_model)
        shared = ("d_model", "norm", "dropout", "moe_dropout", "attention_dropout", "init_std", "head")
        return Architecture(vocab_size=vocab_size, blocks=blocks, **{name: getattr(self, name) for name in shared})


@dataclass(frozen=True)
class PatternsConfig:
    """Networks given by their block order, in the papers' notation."""

    baseline: str
    sandwich: str
    par: str
    others: dict[str, str]

    def __post_init__(self) -> None:
        for name in self.others:
            if not re.fullmatch(PATTERN_NAME, name):
                raise UserError(f"others: {show(name)} must hold small letters, digits and _, and begin with a letter")
            if name in PATTERNS.values():
                raise UserError(f"others: the name {name} is taken; take another one than baseline, sandwich and par")
            check_name("others:", f"{OTHER_PATTERN}{name}")

    @property
    def named(self) -> dict[str, str]:
        """All patterns by name."""
        return {"baseline": self.baseline, "sandwich": self.sandwich, "par": self.par} | self.others

    def of(self, name: str) -> str:
        """The pattern of this name.  Raises UserError where there is none."""
        if name not in self.named:
            allowed = ", ".join(self.others) or "none"
            raise UserError(f"variant pattern_{name}: patterns.others has no {name}; it has: {allowed}")
        return self.named[name]


@dataclass(frozen=True)
class MethodsConfig:
    """Design spaces of the search methods that target_<t> is compared with."""

    par_search: DesignSpace
    isoparam: DesignSpace

    def options(self, model: ModelConfig) -> list[BlockSpec]:
        """Blocks of those design spaces that fit the model; ``Experiment.check_variant`` refuses variants of others.

        Raises UserError for a name that is no option of any backbone.
        """
        blocks: list[BlockSpec] = []
        for method in ("isoparam", "par_search"):
            found = [self._option(model, method, name) for name in getattr(self, method)]
            blocks += found if None not in found else []
        return blocks

    @staticmethod
    def _option(model: ModelConfig, method: str, name: str) -> BlockSpec | None:
        """A block of a design space, or None where it does not fit the model."""
        with suppress(DoesNotFit):
            return model.option(name, f"search_methods.{method}")
