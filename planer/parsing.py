"""From plain mappings, as YAML gives them, to checked dataclasses: one line for every mistake.

Fields say which values they take: ``Annotated[int, Range(1, 1_000)]``.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from dataclasses import dataclass
from typing import Annotated, Literal

from planer.errors import UserError

DEFAULTS = "config/config.yaml and config/pretrained.yaml"
EXPECTED = {float: "be a finite number", int: "be a whole number", str: "be text", bool: "be true or false"}


@dataclass(frozen=True)
class Range:
    """Numbers from low to high: without low where ``above``, without high where ``below``."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    def __contains__(self, number: float) -> bool:
        enough = self.low < number if self.above else self.low <= number
        return enough and (number < self.high if self.below else number <= self.high)

    def __str__(self) -> str:
        low = f"above {self.low:,}" if self.above else f"from {self.low:,}"
        if self.below:
            return f"be {low} and below {self.high:,}"
        return f"be {low} and at most {self.high:,}" if self.above else f"be {low} to {self.high:,}"


@dataclass(frozen=True)
class Items:
    """Lists of low to high values that are all different."""

    low: int
    high: int

    def __contains__(self, values: tuple) -> bool:
        return self.low <= len(values) <= self.high and len(set(values)) == len(values)

    def __str__(self) -> str:
        return f"list {self.low:,} to {self.high:,} values, each once"


@dataclass(frozen=True)
class Matching:
    """Text that matches a regular expression; ``allowed`` describes it."""

    pattern: str
    allowed: str

    def __contains__(self, text: str) -> bool:
        return bool(re.fullmatch(self.pattern, text))

    def __str__(self) -> str:
        return f"be {self.allowed}"


def show(value: object) -> str:
    """A value for a message: on one line, shortened where it is long."""
    text = "empty" if value is None else " ".join(map(str.strip, repr(value).splitlines()))
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"


def merge(*layers: dict) -> dict:
    """Deep-merge mappings; later layers win.  Lists are replaced whole, and mappings by those of another ``kind``."""
    merged: dict = {}
    for layer in layers:
        for key, value in layer.items():
            earlier = merged.get(key)
            both = isinstance(value, dict) and isinstance(earlier, dict)
            kinds = {repr(mapping["kind"]) for mapping in (earlier, value) if "kind" in mapping} if both else ()
            merged[key] = merge(earlier, value) if both and len(kinds) < 2 else value
    return merged


def build(cls: type, values: dict, path: str = ""):
    """Make the dataclass cls from a plain mapping, checking every key and type.

    Raises UserError naming the key, its value and what is allowed.
    """
    if not isinstance(values, dict):
        raise UserError(f"config: {path or 'the file'} is {show(values)}; it must be a mapping of keys to values")
    hints = typing.get_type_hints(cls, include_extras=True)
    known = [f.name for f in dataclasses.fields(cls)]
    prefix = f"{path}." if path else ""
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            allowed = f"allowed: {', '.join(known)}" if known else "there are no options: leave it out"
            hint = f"did you mean {prefix}{close[0]}?" if close else allowed
            raise UserError(f"config: unknown key {prefix}{_show_key(key)}; {hint}")
    missing = [name for name in known if name not in values]
    if missing:
        raise UserError(f"config: {prefix}{missing[0]} is missing; {DEFAULTS} describe all keys")
    converted = {name: convert(hints[name], values[name], f"{prefix}{name}") for name in known}
    try:
        return cls(**converted)
    except UserError as error:
        raise UserError(f"config: {prefix}{error}") from error


def with_defaults(cls: type, options: dict):
    """Make the dataclass cls, whose fields have defaults, from options of a call.

    Raises UserError for an unknown option, and for a value that is not allowed.
    """
    try:
        return build(cls, {field.name: field.default for field in dataclasses.fields(cls)} | options)
    except UserError as error:
        raise UserError(str(error).removeprefix("config: ")) from error


def convert(hint, value, path: str):
    """Make a value of the type that a dataclass field declares; path names the key in messages.

    Raises UserError naming the key, its value and what is allowed.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        kind, limit = arguments
        converted = convert(kind, value, path)
        if converted not in limit:
            raise UserError(f"config: {path} is {show(value)}; it must {limit}")
        return converted
    if reader := getattr(hint, "from_values", None):
        return reader(value, path)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, path)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"config: {path} is {show(value)}; allowed: {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        return _convert_list(arguments, value, path)
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"config: {path} is {show(value)}; it must be a mapping, {{}} for none")
        return {str(key): convert(arguments[1], item, f"{path}.{_show_key(key)}") for key, item in value.items()}
    return _convert_scalar(hint, value, path)


def _convert_list(kinds: tuple, value: object, path: str) -> tuple:
    if not isinstance(value, (list, tuple)):
        raise UserError(f"config: {path} is {show(value)}; it must be a list")
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(value) != len(kinds):
        raise UserError(f"config: {path} is {show(value)}; it must list {len(kinds)} values")
    return tuple(convert(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _convert_scalar(kind: type, value: object, path: str):
    """A float, int, text or bool; whole numbers may be written with a point, never NaN or infinity."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int and number and (isinstance(value, int) or value.is_integer()):
        return int(value)
    if kind is float and number and abs(value) < 1e300:  # false for NaN too
        return float(value)
    if kind in (str, bool) and isinstance(value, kind):
        return value
    raise UserError(f"config: {path} is {show(value)}; it must {EXPECTED[kind]}")


def _show_key(key: object) -> str:
    return str(key) if re.fullmatch(r"[\w-]{1,60}", str(key)) else show(key)
