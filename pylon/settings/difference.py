"""What differs between two settings, key by key, fit for a screen: of a secret only that it is another one.

Backends and models go by their names (`models[small].base_msats`), not by their places: a new one at the top
changes nothing of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, SecretStr

from pylon.settings.example import plain
from pylon.settings.model import Settings
from pylon.text import printable

HIDDEN: Final = "(secret)"
_LIMIT: Final = 80


@dataclass(frozen=True, slots=True)
class Difference:
    """One key; `before` and `after` are printable, None where it is not set, or the table is not there."""

    key: str
    before: str | None
    after: str | None


def differences(before: Settings, after: Settings) -> tuple[Difference, ...]:
    """Return every key whose value differs, in the order of the settings; a table that comes or goes as one."""
    old, new = dict(_leaves(before)), dict(_leaves(after))
    found: dict[str, Difference] = {}
    for key in dict.fromkeys((*old, *new)):
        if key in old and key in new:
            if old[key] != new[key]:
                found[key] = Difference(key, _shown(old[key]), _shown(new[key]))
            continue
        here, there = (old, new) if key in old else (new, old)
        table = _missing_table(key, there)
        told = "there" if table != key else _shown(here[key])
        found[table] = Difference(table, told if here is old else None, told if here is new else None)
    order, now = _names(before), _names(after)
    if order != now and sorted(order) == sorted(now):
        found["models"] = Difference("models", ", ".join(order), ", ".join(now))
    return tuple(found.values())


def _names(settings: Settings) -> list[str]:
    """Return the models in their order: the first is what a request without a model gets."""
    return [printable(model.name, limit=_LIMIT) for model in settings.models]


def _leaves(value: object, key: str = "") -> Iterator[tuple[str, Any]]:
    match value:
        case BaseModel():
            for name, inner in value:
                yield from _leaves(inner, f"{key}.{name}" if key else name)
        case tuple() if value and all(isinstance(item, BaseModel) for item in value):
            for item in value:
                yield from _leaves(item, f"{key}[{printable(getattr(item, 'name', ''), limit=_LIMIT)}]")
        case Mapping():
            for name, inner in value.items():
                yield from _leaves(inner, f"{key}[{name}]")
        case tuple() if key in ("backends", "models"):
            return
        case _:
            yield key, value


def _missing_table(key: str, other: Mapping[str, Any]) -> str:
    """Return the outermost table of a key that the other side has nothing of; the key itself where it has all."""
    ends = [at + 1 for at, char in enumerate(key) if char == "]"]
    return next((key[:end] for end in ends if not any(each.startswith(key[:end]) for each in other)), key)


def _shown(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, SecretStr):
        return HIDDEN
    try:
        made = plain(value)
    except TypeError:
        return HIDDEN  # a plug-in's own kind of value, which may hold anything
    text = ", ".join(map(str, made)) if isinstance(made, list) else str(made)
    return printable(str(made).lower() if isinstance(made, bool) else text, limit=_LIMIT)
