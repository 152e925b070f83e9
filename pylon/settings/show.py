"""What `pylon config show` tells: every key, its value with secrets masked, and where it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, SecretStr

from pylon.settings.example import plain
from pylon.settings.load import LoadedSettings, Origin

MASK: Final = "********"


@dataclass(frozen=True, slots=True)
class ShownValue:
    """One key. `value` is plain (text, number, bool, list, or None for "not set"), a secret is `MASK`."""

    key: str
    value: Any
    origin: Origin


def shown_values(loaded: LoadedSettings) -> list[ShownValue]:
    """Return every key in the order of the model; arrays of tables by index, from 0."""
    return [ShownValue(key, value, loaded.origin(key)) for key, value in _walk(loaded.settings, "")]


def _walk(value: object, key: str) -> Iterator[tuple[str, Any]]:
    match value:
        case BaseModel():
            for name, inner in value:
                yield from _walk(inner, f"{key}.{name}" if key else name)
        case tuple() if value and all(isinstance(item, BaseModel) for item in value):
            for index, item in enumerate(value):
                yield from _walk(item, f"{key}.{index}")
        case Mapping() if value:
            for name, inner in value.items():
                yield from _walk(inner, f"{key}.{name}")
        case SecretStr():
            yield key, MASK
        case None:
            yield key, None
        case _:
            yield key, plain(value)
