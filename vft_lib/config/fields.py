"""Frozen dataclasses from plain JSON data and back, checked field by field."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from functools import lru_cache
from typing import Any, Literal, TypeVar

from ..errors import ConfigError, printable
from ..files.untrusted import read_json

MAX_TEXT = 1024  # characters of a name, class or word
MAX_NUMBERS = 64  # in a list
MAX_NAMES = 1 << 16  # in a list: classes, words

T = TypeVar("T")


def spelled_out(value: Any) -> Any:
    """A config as plain data, without the entries that stand at their defaults."""
    if not dataclasses.is_dataclass(value):
        return value
    return {
        f.name: spelled_out(getattr(value, f.name))
        for f in dataclasses.fields(value)
        if getattr(value, f.name) != f.default
    }


def canonical(data: dict[str, Any]) -> str:
    """JSON that is the same for the same data: sorted keys, no white space."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def from_json(kind: type[T], text: str, what: str) -> T:
    """A config of a `what` from JSON, checked as :func:`build` does."""
    try:
        data = read_json(text)
    except ValueError as e:
        raise ConfigError(f"the {what} config is not JSON: {e}") from None
    return build(kind, data, "config")


def build(kind: type[T], data: Any, where: str) -> T:
    """A frozen dataclass from plain JSON data, checked field by field against its annotations."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected an object, got {type(data).__name__}")
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise ConfigError(f"{where}: unknown entry {_short(key)}")
    hints = _hints(kind)  # type: ignore[arg-type]
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = typed_value(hints[name], data[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING:
            raise ConfigError(f"{where}: entry {name!r} is missing")
    return kind(**values)


@lru_cache(maxsize=32)
def _hints(kind: type) -> dict[str, Any]:
    """The annotations of a config, evaluated once: while a file is read nothing is."""
    return typing.get_type_hints(kind)


def typed_value(hint: Any, value: Any, where: str) -> Any:
    """`value` as plain JSON data made into what an annotation asks for, or ConfigError."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: expected a list, got {_short(value)}")
        most = MAX_NAMES if args[0] is str else MAX_NUMBERS
        if len(value) > most:
            raise ConfigError(f"{where}: {len(value)} values; expected at most {most}")
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise ConfigError(f"{where}: expected {len(kinds)} values, got {_short(value)}")
        return tuple(
            typed_value(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value))
        )
    if origin is Literal:
        if value not in args:
            raise ConfigError(
                f"{where} is {_short(value)}; expected one of {', '.join(map(str, args))}"
            )
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return typed_value(next(a for a in args if a is not type(None)), value, where)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not abs(value) <= 1e9:  # nor nan
            raise ConfigError(f"{where} is {_short(value)}; expected a number below 1e9")
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value <= 1 << 20:
            raise ConfigError(f"{where} is {_short(value)}; expected 0 .. {1 << 20}")
        return value
    if hint is str and isinstance(value, str):
        if len(value) > MAX_TEXT or not printable(value):
            raise ConfigError(f"{where} is {_short(value)}; expected at most {MAX_TEXT} letters")
        return value
    if hint is bool and isinstance(value, bool):
        return value
    raise ConfigError(f"{where}: expected {getattr(hint, '__name__', hint)}, got {_short(value)}")


def _short(value: Any) -> str:
    """For a message: of bounded length, whatever stood in the file."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
