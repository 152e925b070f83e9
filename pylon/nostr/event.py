"""NIP-01 events: the value, its canonical bytes, its id, and the check of its signature.

Everything here takes what a stranger sent. `parse_event` accepts only the exact shape and raises `BadEvent`
with one reason; `verify` answers yes or no. Nothing else is raised.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from pylon.nostr.keys import SecretKey, verify_schnorr

MAX_KIND: Final = 65535
MAX_TAGS: Final = 2000
MAX_CREATED_AT: Final = 2**53
_HEX: Final = re.compile(r"[0-9a-f]*")

Tags = tuple[tuple[str, ...], ...]


class BadEvent(ValueError):
    """The JSON is not a NIP-01 event; the message names the fault in a few words."""


@dataclass(frozen=True, slots=True)
class Event:
    """A signed event as on the wire. `created_at` is unix seconds; `id`, `pubkey`, `sig` are lower-case hex."""

    id: str
    pubkey: str
    created_at: int
    kind: int
    tags: Tags
    content: str
    sig: str

    def tag(self, name: str) -> tuple[str, ...] | None:
        """Return the first tag called `name`, whole, or None."""
        for tag in self.tags:
            if tag and tag[0] == name:
                return tag
        return None

    def tag_values(self, name: str) -> list[str]:
        """Return the second member of every tag called `name` that has one."""
        return [tag[1] for tag in self.tags if len(tag) > 1 and tag[0] == name]

    def as_dict(self) -> dict[str, Any]:
        """Return the event as the JSON object of NIP-01."""
        return {
            "id": self.id,
            "pubkey": self.pubkey,
            "created_at": self.created_at,
            "kind": self.kind,
            "tags": self.tags,
            "content": self.content,
            "sig": self.sig,
        }

    def to_json(self) -> str:
        """Return the event as compact JSON."""
        return orjson.dumps(self.as_dict()).decode()


@dataclass(frozen=True, slots=True)
class Draft:
    """An event before it is signed: what it says, not yet who says it or when."""

    kind: int
    content: str = ""
    tags: Tags = ()

    def sign(self, key: SecretKey, created_at: int) -> Event:
        """Return the signed event. Raises `BadEvent` when the text cannot be encoded (a lone surrogate)."""
        event_id = compute_id(key.public_hex, created_at, self.kind, self.tags, self.content)
        return Event(
            id=event_id,
            pubkey=key.public_hex,
            created_at=created_at,
            kind=self.kind,
            tags=self.tags,
            content=self.content,
            sig=key.sign(bytes.fromhex(event_id)),
        )


def canonical_bytes(pubkey: str, created_at: int, kind: int, tags: Iterable[Sequence[str]], content: str) -> bytes:
    """Return the UTF-8 serialization that NIP-01 hashes.

    orjson escapes what `JSON.stringify` escapes and nothing else, which is what other clients hash.
    """
    try:
        return orjson.dumps([0, pubkey, created_at, kind, tags, content])
    except (TypeError, orjson.JSONEncodeError) as error:
        raise BadEvent("text that is not valid Unicode") from error


def compute_id(pubkey: str, created_at: int, kind: int, tags: Iterable[Sequence[str]], content: str) -> str:
    """Return the event id, hex."""
    return hashlib.sha256(canonical_bytes(pubkey, created_at, kind, tags, content)).hexdigest()


def is_hex(text: object, length: int) -> bool:
    """Tell whether `text` is a lower-case hex string of exactly `length` characters."""
    return isinstance(text, str) and len(text) == length and _HEX.fullmatch(text) is not None


def parse_event(value: object) -> Event:
    """Return the event that a parsed JSON value holds. Raises `BadEvent`; the id and signature are not checked."""
    if not isinstance(value, dict):
        raise BadEvent("not an object")
    try:
        event = Event(
            value["id"],
            value["pubkey"],
            value["created_at"],
            value["kind"],
            _parse_tags(value["tags"]),
            value["content"],
            value["sig"],
        )
    except KeyError as error:
        raise BadEvent(f"no {error.args[0]}") from None
    if not is_hex(event.id, 64):
        raise BadEvent("id is not 64 hex digits")
    if not is_hex(event.pubkey, 64):
        raise BadEvent("pubkey is not 64 hex digits")
    if not is_hex(event.sig, 128):
        raise BadEvent("sig is not 128 hex digits")
    if type(event.created_at) is not int or not 0 <= event.created_at < MAX_CREATED_AT:
        raise BadEvent("created_at is not unix seconds")
    if type(event.kind) is not int or not 0 <= event.kind <= MAX_KIND:
        raise BadEvent("kind is not 0 to 65535")
    if not isinstance(event.content, str):
        raise BadEvent("content is not text")
    return event


def _parse_tags(value: object) -> Tags:
    if not isinstance(value, list):
        raise BadEvent("tags is not a list")
    if len(value) > MAX_TAGS:
        raise BadEvent(f"more than {MAX_TAGS} tags")
    for tag in value:
        if type(tag) is not list:
            raise BadEvent("a tag is not a list")
        for member in tag:
            if type(member) is not str:
                raise BadEvent("a tag holds something other than text")
    return tuple(map(tuple, value))


def verify(event: Event) -> bool:
    """Tell whether id and signature are those of the content. About 50 µs; never raises."""
    try:
        event_id = compute_id(event.pubkey, event.created_at, event.kind, event.tags, event.content)
    except BadEvent:
        return False
    return event_id == event.id and verify_schnorr(event.pubkey, event.id, event.sig)
