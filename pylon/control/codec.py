"""The JSON of the control API: dataclasses out, dataclasses in.

The client decodes with the standard library alone, because `pylon status` has 0.4 s in all and pydantic takes a
third of that to import. Fields that the client does not know are skipped, so that a newer daemon can be asked.
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class BadShape(ValueError):
    """The JSON does not hold the value asked for; the message names the place."""


def decode(cls: type[T], value: object) -> T:
    """Return the dataclass `cls` that a parsed JSON value holds. Raises `BadShape`."""
    decoded: T = _decoder(cls)(value, cls.__name__)
    return decoded


def dump_json(value: object, *, indent: int | None = None) -> str:
    """Return JSON in printable ASCII only: fit for a terminal whatever strangers put into the strings."""
    text = json.dumps(value, indent=indent, default=_plain, allow_nan=False)
    return text.replace("\x7f", "\\u007f")


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} has no JSON form")


_Decoder = Callable[[object, str], Any]


def _decoder(hint: Any) -> _Decoder:
    if dataclasses.is_dataclass(hint):
        return _dataclass_decoder(hint)
    origin, args = get_origin(hint), get_args(hint)
    if origin is tuple:
        return _tuple_decoder(_decoder(args[0]))
    if origin is dict:
        return _dict_decoder(_decoder(args[1]))
    if origin in (Union, types.UnionType):
        return _optional_decoder(_decoder(next(arg for arg in args if arg is not types.NoneType)))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum_decoder(hint)
    return _scalar_decoder(hint)


def _dataclass_decoder(hint: Any) -> _Decoder:
    hints = get_type_hints(hint)
    fields = [(f.name, _decoder(hints[f.name]), _is_required(f)) for f in dataclasses.fields(hint)]

    def decode_dataclass(value: object, where: str) -> Any:
        if not isinstance(value, dict):
            raise BadShape(f"{where} is not an object")
        known = {}
        for name, decoder, required in fields:
            if name in value:
                known[name] = decoder(value[name], f"{where}.{name}")
            elif required:
                raise BadShape(f"{where} has no {name}")
        return hint(**known)

    return decode_dataclass


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _tuple_decoder(member: _Decoder) -> _Decoder:
    def decode_tuple(value: object, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise BadShape(f"{where} is not a list")
        return tuple(member(item, where) for item in value)

    return decode_tuple


def _dict_decoder(member: _Decoder) -> _Decoder:
    def decode_dict(value: object, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise BadShape(f"{where} is not an object")
        return {key: member(item, where) for key, item in value.items()}

    return decode_dict


def _optional_decoder(member: _Decoder) -> _Decoder:
    return lambda value, where: None if value is None else member(value, where)


def _enum_decoder(hint: type[Enum]) -> _Decoder:
    def decode_enum(value: object, where: str) -> Enum:
        try:
            return hint(value)
        except ValueError:
            raise BadShape(f"{where} is none of its known words") from None

    return decode_enum


def _scalar_decoder(hint: type) -> _Decoder:
    # JSON writes a whole float as an integer in some encoders; a bool is never a number.
    accepted = (int, float) if hint is float else (hint,)

    def decode_scalar(value: object, where: str) -> object:
        if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
            raise BadShape(f"{where} is not {hint.__name__}")
        return value

    return decode_scalar
