"""The kinds of values that settings are made of: their checks, and what a message says is allowed."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, SecretStr, StringConstraints

from pylon.net.urls import DialRefused, parse_target

_RELAY_SCHEMES: Final = frozenset({"ws", "wss"})
_ADDRESS_NAME: Final = re.compile(r"[a-z0-9._+-]{1,64}", re.ASCII | re.IGNORECASE)
_ADDRESS_HOST: Final = re.compile(r"[a-z0-9-]+(?:\.[a-z0-9-]+)*(?::[0-9]{1,5})?", re.ASCII | re.IGNORECASE)


class KeyFault(ValueError):
    """A fault found by comparing keys. `key` is dotted, relative to where it is raised."""

    def __init__(self, key: str, fault: str) -> None:
        super().__init__(fault)
        self.key = key


class Section(BaseModel):
    """A table of settings: frozen, unknown keys refused, never repeating input in its errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, str_strip_whitespace=True)


def _not_bool(value: object) -> object:
    # pydantic would take `true` for 1.
    if isinstance(value, bool):
        raise ValueError("not a number")
    return value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("not a finite number")
    return value


def listed(value: object) -> object:
    """Take a list written as text, as the environment and `config set` give it: JSON, or parted by commas."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError("not a JSON list") from None
    return [part.strip() for part in text.split(",") if part.strip()]


def _unset_if_blank(value: object) -> object:
    return (value.strip() or None) if isinstance(value, str) else value


def _json_listed(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError("not a JSON list of tables") from None


def _web_url(value: str) -> str:
    """Return a base URL without its closing slash."""
    if not value.isprintable() or " " in value:
        raise ValueError("a URL has no spaces and no control characters")
    try:
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("not a URL") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError("the URL does not start with http:// or https://")
    if not host or port == 0:
        raise ValueError("the URL names no host")
    if "@" in parts.netloc:
        raise ValueError("a password in a URL would be shown; use the key made for it")
    if parts.query or parts.fragment:
        raise ValueError("a base URL has no query and no fragment")
    return parts.geturl().rstrip("/")


def _relay_urls(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return relay URLs in the one spelling that the dialer and the pool use too, each once."""
    try:
        return tuple(dict.fromkeys(parse_target(value, _RELAY_SCHEMES).url for value in values))
    except DialRefused as refused:
        raise ValueError(str(refused)) from None


def _kind(value: int) -> int:
    from pylon.jobs.kinds import KINDS

    if value not in KINDS:
        raise ValueError(f"{value} is not a job kind that can be sold")
    return value


def _kinds(values: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_kind(value) for value in values))


def _image_url(value: str) -> str:
    if not value.isprintable() or " " in value:
        raise ValueError("a URL has no spaces and no control characters")
    try:
        parts = urlsplit(value)
    except ValueError:
        raise ValueError("not a URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not an http:// or https:// URL with a host")
    return value


def _lightning_address(value: str) -> str:
    name, at, host = value.partition("@")
    if not (at and _ADDRESS_NAME.fullmatch(name) and _ADDRESS_HOST.fullmatch(host)):
        raise ValueError("not a Lightning address")
    return value


def _file_path(value: Path) -> Path:
    expanded = value.expanduser()
    if not expanded.is_absolute():
        raise ValueError("not an absolute path")
    return expanded


def _shown_name(value: str) -> str:
    if not value.isprintable():
        raise ValueError("a name has no control characters")
    return value


def _wallet_connection(value: SecretStr | None) -> SecretStr | None:
    if value is not None:
        from pylon.nostr.nip47 import parse_wallet_uri

        parse_wallet_uri(value.get_secret_value())
    return value


Whole = Annotated[int, BeforeValidator(_not_bool)]
"""An integer."""

Number = Annotated[float, BeforeValidator(_not_bool), AfterValidator(_finite)]
"""A finite number."""

Name = Annotated[str, StringConstraints(min_length=1, max_length=128), AfterValidator(_shown_name)]
"""A name of 1 to 128 printable characters."""

Names = Annotated[tuple[Name, ...], BeforeValidator(listed)]
"""A list of names."""

Kind = Annotated[Whole, AfterValidator(_kind)]
"""A job kind that Pylon can sell."""

Kinds = Annotated[tuple[Whole, ...], BeforeValidator(listed), AfterValidator(_kinds)]
"""Job kinds that Pylon can sell, each once."""


Prose = Annotated[str, StringConstraints(max_length=1_000)]
"""A text of at most 1,000 characters."""

WebUrl = Annotated[str, AfterValidator(_web_url)]
"""An http or https base URL."""

ImageUrl = Annotated[str, StringConstraints(max_length=512), AfterValidator(_image_url)]
"""An http or https URL of an image."""

LightningAddress = Annotated[str, StringConstraints(max_length=128), AfterValidator(_lightning_address)]
"""A Lightning address, as in `lud16`: name@host."""

RelayUrls = Annotated[tuple[str, ...], BeforeValidator(listed), AfterValidator(_relay_urls)]
"""Relay URLs, normalised, each once."""

FilePath = Annotated[Path, AfterValidator(_file_path)]
"""An absolute path; `~` is the user's home."""

Secret = Annotated[SecretStr | None, BeforeValidator(_unset_if_blank)]
"""A secret, shown nowhere; blank text counts as not set."""

WalletConnection = Annotated[SecretStr | None, BeforeValidator(_unset_if_blank), AfterValidator(_wallet_connection)]
"""A NIP-47 connection URI: a secret, shown nowhere."""

Tables: Any = BeforeValidator(_json_listed)
"""Marks an array of tables, which the environment gives as JSON."""
