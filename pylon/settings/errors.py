"""One line for a fault in the settings: where it stands, which key, what is wrong, what is allowed.

Secrets never get into it: no input is repeated for a key that holds one, for a key that does not exist, or for
anything but a plain value.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, Literal, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from pylon.settings.kinds import installed_kinds, settings_type
from pylon.settings.model import Settings, section_types
from pylon.settings.offers import BACKEND_TYPES, BackendSettings, KindPriceSettings, ModelSettings
from pylon.settings.values import KeyFault
from pylon.text import printable

Location = tuple[str | int, ...]

_FAULTS: Final = {
    "missing": "missing",
    "int_from_float": "is not a whole number",
    "int_parsing": "is not a whole number",
    "int_parsing_size": "is out of range",
    "int_type": "is not a whole number",
    "float_parsing": "is not a number",
    "float_type": "is not a number",
    "bool_parsing": "is neither true nor false",
    "bool_type": "is neither true nor false",
    "greater_than_equal": "is out of range",
    "less_than_equal": "is out of range",
    "enum": "is unknown",
    "literal_error": "is unknown",
    "string_type": "is not text",
    "string_too_short": "is empty",
    "string_too_long": "is too long",
    "path_type": "is not text",
    "tuple_type": "is not a list",
    "too_short": "has too few entries",
    "too_long": "has too many entries",
    "model_type": "is not a table",
    "model_attributes_type": "is not a table",
    "union_tag_not_found": "missing",
    "union_tag_invalid": "is unknown",
}
_SECRET_SHAPES: Final = re.compile(
    r"n(?:cryptse|se)c1[0-9a-z]{16,}…?|nostr\+?walletconnect:[^\s']+|(?<=secret=)[^\s'&]+|(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])",
    re.IGNORECASE,
)
_TABLES: Final = re.compile(r"\s*\[?\s*\{")
_WITHOUT_VALUE: Final = frozenset({"missing", "union_tag_not_found"})


class SettingsError(ValueError):
    """A fault in the settings. `str` is one line for the operator; `key` is dotted, "" for a whole source."""

    exit_code = 2

    def __init__(self, key: str, fault: str, *, place: str = "", allowed: str = "") -> None:
        head = ": ".join(part for part in (place, key) if part)
        tail = f"; allowed: {allowed}" if allowed else ""
        super().__init__(_without_secrets(f"{head}: {fault}{tail}" if head else f"{fault}{tail}"))
        self.key = _without_secrets(key)


def _without_secrets(text: str) -> str:
    """Return a sentence without what has the shape of a secret: one may stand where none belongs, even as a key."""
    return _SECRET_SHAPES.sub("[secret]", text)


def from_validation(
    error: ValidationError, places: Mapping[str, str], backends: Sequence[object] = ()
) -> SettingsError:
    """Return the first fault of `error`; `places` tells where a dotted key (or its table) was set.

    `backends`, here and below, are the tables that a location may lead into: their kinds tell what is known there.
    """
    first = error.errors(include_url=False)[0]
    location = plain_location(first["loc"])
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, KeyFault):
        key = dotted((*location, cause.key))
        return SettingsError(key, str(cause), place=place_of(key, places))
    if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        location = (*location, "kind")
    key = dotted(location)
    place = place_of(key, places)
    if first["type"] == "extra_forbidden":
        return unknown_key(location, place, backends)
    found = find_field(location, backends)
    if first["type"] == "value_error":
        fault = f"{_shown(first['input'], found)}{cause}"
    else:
        fault = _FAULTS.get(first["type"], first["msg"])
        if first["type"] not in _WITHOUT_VALUE:
            value = first.get("ctx", {}).get("tag", first["input"])
            fault = (_shown(value, found).removesuffix(": ") or "the value") + f" {fault}"
    return SettingsError(key, fault, place=place, allowed=allowed(found) if found else "")


def unknown_key(location: Location, place: str = "", backends: Sequence[object] = ()) -> SettingsError:
    """Return the fault of a key that does not exist, with the closest one that does."""
    *parent, last = location
    siblings = keys_of(tuple(parent), backends)
    close = difflib.get_close_matches(str(last), siblings, n=1, cutoff=0.6)
    hint = f"unknown key; did you mean {dotted((*parent, close[0]))}?" if close else "unknown key"
    names = "" if close else ", ".join(siblings)
    return SettingsError(dotted(location), hint, place=place, allowed=names)


def plain_location(loc: Iterable[str | int]) -> Location:
    """Return pydantic's location without what it adds: the mark of a key."""
    parts = tuple(loc)
    return parts[:-1] if parts[-1:] == ("[key]",) else parts


def dotted(location: Iterable[str | int]) -> str:
    """Return a location as a dotted key, fit for a terminal."""
    return ".".join(printable(part, limit=64) for part in location if part != "")


def place_of(key: str, places: Mapping[str, str]) -> str:
    """Return where `key` was set: the place recorded for it, or for the nearest key above or below it."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in places:
            return places[prefix]
        below = next((place for other, place in places.items() if other.startswith(f"{prefix}.")), None)
        if below is not None:
            return below
    return ""


def keys_of(parent: Location, backends: Sequence[object] = ()) -> list[str]:
    """Return the keys that exist right under `parent`, in the order of the model."""
    tables: list[type[BaseModel]] = []
    match parent:
        case ():
            tables = [Settings]
        case ("backends", _):
            tables = [*_backend_types(parent, backends)]
        case ("backends", _, str(), *_):
            field = find_field(parent, backends)
            table = None if field is None else _table(field)
            tables = [] if table is None else [table]
        case ("models", _):
            tables = [ModelSettings]
        case ("models", _, "prices", _):
            tables = [KindPriceSettings]
        case (str(name),) if name in section_types():
            tables = [section_types()[name]]
    return list(dict.fromkeys(key for table in tables for key in table.model_fields))


def find_field(location: Location, backends: Sequence[object] = ()) -> FieldInfo | None:
    """Return the field at `location` (an index below a list counts as the list), None when there is none.

    Of a backend whose kind is not known all installed kinds count; a field that is a secret in one of them is one.
    """
    match location:
        case (str(name),):
            return Settings.model_fields.get(name)
        case ("backends", _, "kind"):
            return FieldInfo(annotation=Literal[*installed_kinds()])  # type: ignore[arg-type]
        case ("backends", _, str(key), *below):
            types = _backend_types(location, backends)
            fields = [each.model_fields[key] for each in types if key in each.model_fields]
            found = next((field for field in fields if is_secret(field)), fields[0] if fields else None)
            return _below(found, below)
        case ("models", _, str(key), *rest):
            own = len(rest) > 1 and key == "prices"
            return (KindPriceSettings.model_fields if own else ModelSettings.model_fields).get(
                str(rest[1]) if own else key
            )
        case (str(name), str(key), *_) if name in section_types():
            return section_types()[name].model_fields.get(key)
        case _:
            return None


def _backend_types(location: Location, backends: Sequence[object]) -> list[type[BackendSettings]]:
    """Return the class of the kind of the backend that a location lies in, or those of all kinds that it may be."""
    index = location[1]
    if isinstance(index, int) and index < len(backends):
        table = backends[index]
        kind = table.get("kind") if isinstance(table, Mapping) else getattr(table, "kind", None)
        if (told := settings_type(kind)) is not None:
            return [told]
    others = (settings_type(kind) for kind in installed_kinds() if kind not in BACKEND_TYPES)
    return [*BACKEND_TYPES.values(), *(each for each in others if each is not None)]


def _below(field: FieldInfo | None, parts: Iterable[str | int]) -> FieldInfo | None:
    """Return what lies below a field; of a table within a plug-in's own table the key itself."""
    for part in parts:
        table = None if field is None else _table(field)
        if table is not None and isinstance(part, str):
            field = table.model_fields.get(part)
    return field


def _table(field: FieldInfo) -> type[BaseModel] | None:
    """Return the class of a table, or of the tables of a list, None when a field holds neither."""
    inner = (part for outer in get_args(field.annotation) for part in (outer, *get_args(outer)))
    kinds = (part for part in (field.annotation, *inner) if isinstance(part, type))
    return next((part for part in kinds if issubclass(part, BaseModel)), None)


def is_secret(field: FieldInfo | None) -> bool:
    """Tell whether a field holds a secret."""
    return field is not None and SecretStr in (field.annotation, *get_args(field.annotation))


def allowed(field: FieldInfo) -> str:
    """Say in a few words what a field takes; "" when its description says all."""
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "allowed" in extra:
        return str(extra["allowed"])
    kind = _bare(field.annotation)
    if get_origin(kind) is Literal:
        return ", ".join(get_args(kind))
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return ", ".join(kind)
    if kind is bool:
        return "true or false"
    low = next((rule.ge for rule in field.metadata if hasattr(rule, "ge")), None)
    high = next((rule.le for rule in field.metadata if hasattr(rule, "le")), None)
    return f"{low} to {high}" if low is not None and high is not None else ""


def _bare(annotation: Any) -> Any:
    """Return an annotation without its `| None` and its metadata."""
    plain = next((part for part in get_args(annotation) if part is not type(None)), annotation)
    return annotation if get_origin(annotation) in (tuple, Literal) else plain


def _shown(value: object, field: FieldInfo | None) -> str:
    """Return a plain value as `'abc': `, or "" for secrets, tables and lists."""
    if field is None or is_secret(field) or not isinstance(value, str | int | float):
        return ""
    if isinstance(value, str) and ("nsec1" in value.lower() or "@" in value or _TABLES.match(value)):
        return ""  # a secret in the wrong place, a password in a URL, or tables as JSON with whatever is in them
    text = str(value).lower() if isinstance(value, bool) else printable(value, limit=60)
    return f"'{text}': " if isinstance(value, str) else f"{text}: "
