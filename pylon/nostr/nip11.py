"""NIP-11: what a relay says of itself. Every field is optional, and any of them may be nonsense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson

MEDIA_TYPE: Final = "application/nostr+json"
MAX_DOCUMENT_BYTES: Final = 64 * 1024

_MAX_NUMBER: Final = 2**53
_MAX_NAME: Final = 200


class BadDocument(ValueError):
    """The text is no NIP-11 document; the message says why in a few words."""


@dataclass(frozen=True, slots=True)
class RelayDocument:
    """A relay's own words (not fit for a terminal) and limits; None where it does not say."""

    name: str = ""
    software: str = ""
    version: str = ""
    max_message_bytes: int | None = None
    max_subscriptions: int | None = None
    max_limit: int | None = None
    auth_required: bool = False
    payment_required: bool = False
    restricted_writes: bool = False


def parse_relay_document(raw: bytes) -> RelayDocument:
    """Return what a document says; fields of another type count as not there. Raises `BadDocument`."""
    try:
        value = orjson.loads(raw)
    except (orjson.JSONDecodeError, RecursionError):
        raise BadDocument("not JSON") from None
    if not isinstance(value, dict):
        raise BadDocument("not an object")
    found = value.get("limitation")
    limits = found if isinstance(found, dict) else {}
    return RelayDocument(
        name=_text(value.get("name")),
        software=_text(value.get("software")),
        version=_text(value.get("version")),
        max_message_bytes=_count(limits.get("max_message_length")),
        max_subscriptions=_count(limits.get("max_subscriptions")),
        max_limit=_count(limits.get("max_limit")),
        auth_required=limits.get("auth_required") is True,
        payment_required=limits.get("payment_required") is True,
        restricted_writes=limits.get("restricted_writes") is True,
    )


def _text(value: Any) -> str:
    return value[:_MAX_NAME] if isinstance(value, str) else ""


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 < value <= _MAX_NUMBER else None
