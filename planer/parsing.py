"""From plain mappings, as YAML gives them, to checked dataclasses: one line for every mistake."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from typing import Literal

from planer.files import UserError


def merge(*layers: dict) -> dict:
    """Deep-merge mappings; later layers win, lists are replaced whole."""
    merged: dict = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = merge(merged[key], value) if both else value
    return merged


def build(cls: type, values: dict, path: str = ""):
    """Make the dataclass cls from a plain mapping, checking every key and type.

    Raises UserError naming the key, its value and what is allowed.
    """
    if not isinstance(values, dict):
        raise UserError(f"config: {path or 'the file'} is {values!r}; it must be a mapping of keys to values")
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]
    prefix = f"{path}." if path else ""
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"allowed: {', '.join(known)}"
            raise UserError(f"config: unknown key {prefix}{key}; {hint}")
    missing = [name for name in known if name not in values]
    if missing:
        raise UserError(f"config: {prefix}{missing[0]} is missing; config/config.yaml describes it")
    converted = {name: convert(hints[name], values[name], f"{prefix}{name}") for name in known}
    try:
        return cls(**converted)
    except UserError as error:
        raise UserError(f"config: {prefix}{error}") from error


def convert(hint, value, path: str):
    """Make a value of the type that a dataclass field declares; path names the key in messages.

    Raises UserError naming the key, its value and what is allowed.
    """
    if dataclasses.is_dataclass(hint):
        return build(hint, value, path)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"config: {path} is {value!r}; allowed: {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"config: {path} is {value!r}; it must be a list")
        repeated = arguments[-1] is Ellipsis
        if not repeated and len(value) != len(arguments):
            raise UserError(f"config: {path} is {value!r}; it must list {len(arguments)} values")
        kinds = [arguments[0]] * len(value) if repeated else arguments
        return tuple(
            convert(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"config: {path} is {value!r}; it must be a mapping, {{}} for none")
        return {str(key): convert(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and number:
        return float(value)
    if hint is int and number and float(value).is_integer():
        return int(value)
    if hint in (str, bool) and isinstance(value, hint):
        return value
    expected = {float: "a number (write 1.0e-3, not 1e-3)", int: "a whole number", str: "text", bool: "true or false"}
    raise UserError(f"config: {path} is {value!r}; it must be {expected[hint]}")


def positive(config, *names: str) -> None:
    """Raise UserError unless these fields are above 0."""
    for name in names:
        if getattr(config, name) <= 0:
            raise UserError(f"{name} is {getattr(config, name)}; it must be above 0")


def not_negative(config, *names: str) -> None:
    """Raise UserError if one of these fields is below 0."""
    for name in names:
        if getattr(config, name) < 0:
            raise UserError(f"{name} is {getattr(config, name)}; it must not be negative")


def share(config, *names: str) -> None:
    """Raise UserError unless these fields are at least 0 and below 1."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise UserError(f"{name} is {getattr(config, name)}; it must be in [0, 1)")
