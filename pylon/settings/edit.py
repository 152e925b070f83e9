"""`pylon config set`: one key of the TOML file changed, its comments and layout kept.

The whole is validated before anything is written, and the file is replaced in one step.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import SecretStr
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Array

from pylon.paths import FolderError, private_folder
from pylon.settings.errors import SettingsError, find_field, is_secret, unknown_key
from pylon.settings.example import plain, render_example
from pylon.settings.files import replace_file
from pylon.settings.load import holds_secret, leaves, merge_settings, parse_document, read_settings_file
from pylon.settings.model import Settings, section_types


def split_key(key: str) -> tuple[str | int, ...]:
    """Return a dotted key of the file in its parts. Raises `SettingsError` when no value lies there."""
    location = tuple(int(part) if part.isdigit() else part for part in key.split("."))
    match location:
        case (str(name),) if find_field(location) and name not in section_types() and name not in _ARRAYS:
            return location
        case (str(name), str()) if name in section_types() and find_field(location):
            return location
        case ("models", int(), "prices"):
            raise SettingsError(key, f"is a table; name a key in it, such as {key}.5050.base_msats")
        case ("models", int() as index, "prices", int() as kind, str() as name) if find_field(location):
            return ("models", index, "prices", str(kind), name)
        case (str(name), int(), str()) if name in _ARRAYS and find_field(location):
            return location
        case ("models", int(), "prices", _, _):
            raise unknown_key(location)
        case (str(name), *_) if name in _ARRAYS and len(location) != 3:
            raise SettingsError(key, f"is no single value; write {name}.0.<key>, counted from 0")
        case (str(name),) if name in section_types():
            raise SettingsError(
                key, "is a table; name a key in it", allowed=", ".join(section_types()[name].model_fields)
            )
        case (str(name), *_) if name in section_types():
            raise unknown_key(location[:2] if not find_field(location[:2]) else location)
        case (_, int(), *_):
            raise unknown_key(location)
        case _:
            raise unknown_key(location[:1])


def holds_secret_key(key: str) -> bool:
    """Tell whether a dotted key's value is a secret. Raises `SettingsError` for a key that does not exist."""
    return is_secret(find_field(split_key(key)))


def set_value(path: Path, key: str, text: str, environ: Mapping[str, str]) -> Any:
    """Set a key in the file at `path` and return its value as TOML has it now, secrets unmasked.

    The file is made from the annotated example where there is none. Raises `SettingsError`, and then nothing was
    written.
    """
    return set_values(path, {key: text}, environ)[key]


def set_values(path: Path, texts: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, Any]:
    """Set several keys at once, as `set_value` sets one: all of them, or none."""
    locations = {key: split_key(key) for key in texts}
    path = path.resolve()
    before = read_settings_file(path) if path.exists() else render_example()
    document = parse_document(before, path)
    settings = merge_settings(path, document, dict(texts), environ).settings
    values = {key: _toml_value(settings, key) for key in texts}
    after = before
    for key, value in values.items():
        after = _edited(after, locations[key], value, path)
    changed = parse_document(after, path)
    if _set_in(changed) != {**_set_in(document), **values}:
        fault = "cannot be set without disturbing the rest; edit the file by hand"
        raise SettingsError(", ".join(texts), fault, place=str(path))
    merge_settings(path, changed, {}, environ)
    _write(path, after, secret=holds_secret(changed) is not None)
    return values


def add_tables(path: Path, tables: str, environ: Mapping[str, str]) -> None:
    """Append TOML tables to the file at `path`, made from the annotated example where there is none.

    Raises `SettingsError`, and then nothing was written.
    """
    path = path.resolve()
    before = read_settings_file(path) if path.exists() else render_example()
    after = f"{before.rstrip()}\n\n{tables}".rstrip() + "\n"
    changed = parse_document(after, path)
    merge_settings(path, changed, {}, environ)
    _write(path, after, secret=holds_secret(changed) is not None)


_ARRAYS = ("backends", "models")


def _set_in(document: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in leaves(document) if not key.endswith(".")}


def _toml_value(settings: Settings, key: str) -> Any:
    """Return the value of a key as TOML takes it."""
    value: Any = settings
    for part in split_key(key):
        if isinstance(value, Mapping):
            value = value[int(part)]  # a job kind
        else:
            value = value[part] if isinstance(part, int) else getattr(value, part)
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return plain(value) if value is not None else ""


def _edited(text: str, location: tuple[str | int, ...], value: Any, path: Path) -> str:
    try:
        document = tomlkit.parse(_with_line(text, location))
        table: Any = document
        for part in location[:-1]:
            if isinstance(part, str) and part not in table:
                table[part] = tomlkit.table(is_super_table=part == "prices")
            table = table[part]
        held = table.get(location[-1])
        if isinstance(held, Array) and isinstance(value, list):
            _change_list(held, value)
        else:
            table[location[-1]] = value
        return tomlkit.dumps(document)
    except TOMLKitError as error:
        raise SettingsError("", f"cannot be edited: {error}", place=str(path)) from None


def _change_list(held: Array, wanted: list[Any]) -> None:
    """Make a list hold what is wanted, touching what differs only: there may be comments between its items."""
    changes = SequenceMatcher(None, list(held), wanted, autojunk=False).get_opcodes()
    for _, start, end, wanted_start, wanted_end in reversed([each for each in changes if each[0] != "equal"]):
        kept = min(end - start, wanted_end - wanted_start)
        for offset in range(kept):
            held[start + offset] = wanted[wanted_start + offset]
        for at in reversed(range(start + kept, end)):
            del held[at]
        for offset, value in enumerate(wanted[wanted_start + kept : wanted_end]):
            held.insert(start + kept + offset, value)


def _with_line(text: str, location: tuple[str | int, ...]) -> str:
    """Take the `#` from the line that shows the default of a key, so that the value comes to stand there."""
    *parent, key = location
    if len(parent) > 1:
        return text
    lines = text.splitlines(keepends=True)
    here = not parent
    shown = None
    for index, line in enumerate(lines):
        if re.match(r"#?\[", line):
            here = bool(parent) and re.match(rf"\[\s*{re.escape(str(parent[0]))}\s*\]", line) is not None
        elif here and re.match(rf"{re.escape(str(key))}\s*=", line):
            return text
        elif here and shown is None and re.match(rf"#{re.escape(str(key))}\s*=", line):
            shown = index
    if shown is not None:
        lines[shown] = lines[shown].removeprefix("#")
    return "".join(lines)


def _write(path: Path, text: str, *, secret: bool) -> None:
    try:
        if not path.parent.exists():
            private_folder(path.parent)
        mode = 0o600
        with suppress(FileNotFoundError):
            mode = stat.S_IMODE(path.stat().st_mode)
        replace_file(path, text, mode=0o600 if secret else mode)
    except FolderError as error:
        raise SettingsError("", str(error)) from None
    except OSError as error:
        raise SettingsError("", f"cannot be written: {os.strerror(error.errno or 0)}", place=str(path)) from None
