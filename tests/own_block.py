"""The two files of a user's own block, x * sigmoid(W x)."""

from __future__ import annotations

from pathlib import Path

SPECIFICATION = """
from dataclasses import dataclass
from typing import ClassVar

from planer.specs.block import Backbone, BlockSpec


@dataclass(frozen=True)
class Gate(BlockSpec):
    kind: ClassVar[str] = "gate"
    label: ClassVar[str] = "gate of a test"
    colour: ClassVar[str] = "#123456"
    options: ClassVar[tuple[str, ...]] = ("gate",)
    symbol: ClassVar[str] = "g"

    @classmethod
    def parse(cls, option: str, backbone: Backbone) -> BlockSpec | None:
        return cls() if option == "gate" else None

    @classmethod
    def symbols(cls, backbone: Backbone) -> dict[str, BlockSpec]:
        return {"g": cls()}

    def params(self, d_model: int) -> int:
        return d_model**2 + 2 * d_model

    def flops(self, d_model: int, batch: int, tgt_len: int, mem_len: int, attention: str) -> float:
        return 2 * d_model**2

    def activations(self, d_model: int, batch: int, tgt_len: int, mem_len: int) -> int:
        return batch * tgt_len * 4 * d_model
"""
MODULE = """
from torch import nn

from planer.blocks.block import Block


class Gate(nn.Module):
    def __init__(self, d_model: int):
        super().__init__()
        self.linear = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x):
        return x * self.linear(x).sigmoid()


def build(spec, shared):
    return Block(Gate(shared.d_model), shared.d_model, shared.norm)
"""


def write_block(folder: Path, specification: str = SPECIFICATION, module: str = MODULE, name: str = "gate") -> None:
    """Write the block's two files into a folder."""
    for package, text in (("specs", specification), ("blocks", module)):
        (folder / package).mkdir(parents=True, exist_ok=True)
        (folder / package / f"{name}.py").write_text(text)
