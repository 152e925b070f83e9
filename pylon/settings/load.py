"""Reading the settings from their sources, in rising order, and keeping where each value came from.

defaults < TOML file < wallet file < systemd credentials < environment < flags. The sources are read here one by
one and merged before pydantic sees them, because an operator must be able to ask which of them won.
"""

from __future__ import annotations

import json
import os
import stat
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource

from pylon.paths import HOME_VARIABLE, resolve_paths
from pylon.settings.errors import SettingsError, find_field, from_validation, is_secret, unknown_key
from pylon.settings.model import Settings, section_types
from pylon.settings.wallet_file import read_wallet_secret
from pylon.text import printable

PREFIX: Final = "PYLON_"
SHORT_VARIABLES: Final = MappingProxyType(
    {
        "PYLON_NSEC": "PYLON_IDENTITY__NSEC",
        "PYLON_MNEMONIC": "PYLON_IDENTITY__MNEMONIC",
        "PYLON_PASSPHRASE": "PYLON_IDENTITY__PASSPHRASE",
        "PYLON_WALLET_TOKEN": "PYLON_WALLET__TOKEN",
        "PYLON_WALLET_PAY_TOKEN": "PYLON_WALLET__PAY_TOKEN",
        "PYLON_WALLET_URI": "PYLON_WALLET__URI",
    }
)
"""Short names for the secrets, and what they stand for."""

CREDENTIALS: Final = MappingProxyType(
    {
        "nsec": "identity.nsec",
        "mnemonic": "identity.mnemonic",
        "passphrase": "identity.passphrase",
        "wallet_token": "wallet.token",
        "wallet_pay_token": "wallet.pay_token",
        "wallet_uri": "wallet.uri",
    }
)
"""Files looked for in systemd's `$CREDENTIALS_DIRECTORY`, and the keys that they set."""

_ALTERNATIVES: Final = (("nsec", "mnemonic"), ("passphrase", "passphrase_file"))
_MAX_CREDENTIAL_BYTES: Final = 4_096
_MAX_FILE_BYTES: Final = 1_048_576


class OriginKind(StrEnum):
    """The sources, in rising order."""

    DEFAULT = "default"
    FILE = "file"
    WALLET_FILE = "wallet file"
    CREDENTIAL = "credential"
    ENVIRONMENT = "environment"
    FLAG = "flag"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from. `place` is a path, a variable's name, or "" for defaults and flags."""

    kind: OriginKind
    place: str = ""

    def __str__(self) -> str:
        return self.place or self.kind


_DEFAULT: Final = Origin(OriginKind.DEFAULT)


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Settings with the origins of what was set; `config_file` is None when there was none to read."""

    settings: Settings
    origins: Mapping[str, Origin]
    config_file: Path | None

    def origin(self, key: str) -> Origin:
        """Return where the value of a dotted key came from."""
        parts = key.split(".")
        prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        return next((self.origins[prefix] for prefix in prefixes if prefix in self.origins), _DEFAULT)


def load_settings(
    config_path: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> LoadedSettings:
    """Return the settings. Raises `SettingsError`.

    `config_path` must exist when given; without it the file of `pylon.paths` is read where there is one.
    `overrides` are the flags, by dotted key; a value of None counts as not given. `environ` defaults to the
    process's environment.
    """
    environ = os.environ if environ is None else environ
    path = config_path or resolve_paths(environ).config_file
    if config_path is None and not path.exists():
        return merge_settings(None, {}, overrides or {}, environ)
    return merge_settings(path, parse_document(read_settings_file(path), path), overrides or {}, environ)


def parse_document(text: str, path: Path) -> dict[str, Any]:
    """Return a TOML text as plain values; `path` is for the message. Raises `SettingsError`."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError("", f"not valid TOML: {printable(error)}", place=str(path)) from None


def merge_settings(
    path: Path | None, document: Mapping[str, Any], overrides: Mapping[str, object], environ: Mapping[str, str]
) -> LoadedSettings:
    """Return the settings of a document already read, with the other sources over it. Raises `SettingsError`."""
    merged: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    if path is not None:
        _lay_over(merged, origins, document, {}, Origin(OriginKind.FILE, str(path)))
    for key, secret, place in _credentials(environ):
        _lay_over(merged, origins, _nested(key, secret), {}, Origin(OriginKind.CREDENTIAL, place))
    values, names = _environment(environ)
    _lay_over(merged, origins, values, names, Origin(OriginKind.ENVIRONMENT))
    for key, value in overrides.items():
        if value is not None:
            _merge(merged, _override(merged, key, value))
            _forget(origins, key)
            origins[key] = Origin(OriginKind.FLAG)
    _lay_wallet_secret(merged, origins, resolve_paths(environ).wallet_file)
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        places = {key: origin.place for key, origin in origins.items()}
        raise from_validation(error, places, _backends_of(merged)) from None
    return LoadedSettings(settings, MappingProxyType(origins), path)


def holds_secret(document: Mapping[str, Any]) -> str | None:
    """Return the dotted key of a secret that a document holds, None when it holds none."""
    backends = _backends_of(document)
    return next((key for key, value in leaves(document) if value and is_secret(_field_at(key, backends))), None)


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every plain value under its dotted key; arrays of tables count by index, other lists are one value.

    An empty table comes under its key and a dot, for it has a place but sets nothing.
    """
    if isinstance(value, Mapping):
        if not value and key:
            yield f"{key}.", value
        for name, inner in value.items():
            yield from leaves(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            yield from leaves(item, f"{key}.{index}")
    else:
        yield key, value


def _field_at(key: str, backends: Sequence[object]) -> Any:
    return find_field(tuple(int(part) if part.isdigit() else part for part in key.split(".")), backends)


def _backends_of(document: Mapping[str, Any]) -> Sequence[object]:
    """Return the tables of backends that a document has, as tables or as the JSON of the environment."""
    try:
        found = json.loads(given) if isinstance(given := document.get("backends"), str) else given
    except (ValueError, RecursionError):
        return ()
    return found if isinstance(found, list | tuple) else ()


def read_settings_file(path: Path) -> str:
    """Return the text of a settings file. Raises `SettingsError`, also for a secret that others can read."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            raw = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsError("", f"cannot be read: {error.strerror}", place=str(path)) from None
    if len(raw) > _MAX_FILE_BYTES:
        raise SettingsError("", "is larger than 1 MiB", place=str(path))
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise SettingsError("", f"not UTF-8 (at line {line})", place=str(path)) from None
    secret = holds_secret(parse_document(text, path)) if mode & 0o077 else None
    if secret:
        fault = f"a secret in a file that others can read; run: chmod 600 {path}"
        raise SettingsError(secret, fault, place=str(path))
    return text


def _credentials(environ: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield key, value and path of each systemd credential there is."""
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        return
    for name, key in CREDENTIALS.items():
        path = Path(folder) / name
        try:
            with path.open("rb") as file:
                value = file.read(_MAX_CREDENTIAL_BYTES).decode().strip()
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                key, f"the credential cannot be read ({type(error).__name__})", place=str(path)
            ) from None
        yield key, value, str(path)


def _environment(environ: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what the environment sets, and the variable that sets each dotted key."""
    variables: dict[str, str] = {}
    names: dict[str, str] = {}
    for name, value in environ.items():
        upper = name.upper()
        if not upper.startswith(PREFIX) or upper == HOME_VARIABLE or not value.strip():
            continue
        full = SHORT_VARIABLES.get(upper, upper)
        location = tuple(full.removeprefix(PREFIX).lower().split("__"))
        if not _is_settable(location):
            if len(location) == 1:
                continue  # not ours: PYLON_ is a common prefix, and only `__` is surely meant for us
            raise _unknown_variable(name, location)
        key = ".".join(location)
        if key in names and variables[full.lower()] != value.strip():
            raise SettingsError(key, f"set differently by {names[key]} and {name}")
        variables[full.lower()] = value.strip()
        names[key] = name
    source = EnvSettingsSource(Settings)
    source.env_vars = variables
    return source(), names


def _unknown_variable(name: str, location: tuple[str, ...]) -> SettingsError:
    if location[0] in section_types():
        return unknown_key(location if find_field(location[:2]) else location[:2], name)
    if location[0] in Settings.model_fields:
        return SettingsError(location[0], f"is set whole, by {PREFIX}{location[0].upper()}", place=name)
    return unknown_key(location[:1], name)


def _is_settable(location: tuple[str, ...]) -> bool:
    """Tell whether one variable sets what lies at `location`: a key, or a whole array of tables as JSON."""
    depth = 2 if location[0] in section_types() else 1
    return len(location) == depth and find_field(location) is not None


def _lay_over(
    merged: dict[str, Any],
    origins: dict[str, Origin],
    values: Mapping[str, Any],
    names: Mapping[str, str],
    origin: Origin,
) -> None:
    """Lay one source over those before it; `names` has the place of a key where `origin` alone does not tell."""
    _replace_alternatives(merged, origins, values.get("identity"))
    for top, value in values.items():
        if not isinstance(value, Mapping):
            _forget(origins, top)
    for key, _ in leaves(values):
        origins[key] = Origin(origin.kind, names[key]) if key in names else origin
    _merge(merged, values)


def _lay_wallet_secret(merged: dict[str, Any], origins: dict[str, Origin], path: Path) -> None:
    """Lay the wallet file over the TOML file and under the rest, which had to be known: it is for one wallet."""
    wallet, secret = merged.get("wallet"), read_wallet_secret(path)
    if secret is None or not isinstance(wallet, Mapping) or not secret.is_for(wallet):
        return
    key = f"wallet.{secret.key}"
    if origins.get(key, _DEFAULT).kind in (OriginKind.DEFAULT, OriginKind.FILE):
        _merge(merged, _nested(key, secret.value))
        origins[key] = Origin(OriginKind.WALLET_FILE, str(path))


def _replace_alternatives(merged: dict[str, Any], origins: dict[str, Origin], identity: object) -> None:
    """Drop what earlier sources gave in another form: a key replaces words, a passphrase the file that has one."""
    earlier = merged.get("identity")
    if not isinstance(identity, Mapping) or not isinstance(earlier, dict):
        return
    for forms in _ALTERNATIVES:
        if any(form in identity for form in forms):
            for form in forms:
                earlier.pop(form, None)
                _forget(origins, f"identity.{form}")


def _forget(origins: dict[str, Origin], key: str) -> None:
    """Drop the origins of a key that is replaced, and of all below it."""
    for old in [old for old in origins if old == key or old.startswith(f"{key}.")]:
        del origins[old]


def _merge(target: dict[str, Any], source: Mapping[str, Any]) -> None:
    for key, value in source.items():
        mine = target.get(key)
        if isinstance(mine, dict) and isinstance(value, Mapping):
            _merge(mine, value)
        else:
            target[key] = dict(value) if isinstance(value, Mapping) else value


def _override(merged: Mapping[str, Any], key: str, value: object) -> dict[str, Any]:
    """Return a flag as nested values; a key inside an array of tables replaces the array by a changed copy."""
    top, *rest = key.split(".")
    tables = merged.get(top, [])
    if len(rest) >= 2 and rest[0].isdigit() and isinstance(tables, list):
        index = int(rest[0])
        if index >= len(tables):
            raise SettingsError(key, f"there are {len(tables)} [[{top}]], counted from 0")
        if not isinstance(tables[index], Mapping):
            raise SettingsError(key, f"what {top}.{index} is set to is no table")
        changed = _changed(tables[index], rest[1:], value)
        return {top: [changed if at == index else item for at, item in enumerate(tables)]}
    return _nested(key, value)


def _changed(table: Mapping[str, Any], path: list[str], value: object) -> dict[str, Any]:
    """Return a copy of a table with the value at `path` in it."""
    key, *rest = path
    below = table.get(key)
    if rest:
        value = _changed(below if isinstance(below, Mapping) else {}, rest, value)
    return {**table, key: value}


def _nested(key: str, value: object) -> dict[str, Any]:
    top, _, rest = key.partition(".")
    return {top: _nested(rest, value) if rest else value}
