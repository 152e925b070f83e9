"""NIP-01 and NIP-42 messages between client and relay: bytes in, values out.

`parse_relay_message` is the first code that sees what a relay sent. It raises only `BadMessage`, whose
`reason` is a short word that the counters use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from pylon.nostr.event import BadEvent, Draft, Event, is_hex, parse_event

AUTH_KIND = 22242
MAX_SUBSCRIPTION_ID = 64
MAX_RELAY_TEXT = 1024

Filter = Mapping[str, Any]


class BadMessage(ValueError):
    """A frame that is not a relay message; `reason` is a short word for the counters."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class EventMessage:
    """`["EVENT", subscription, event]`; the event's shape is checked, its signature is not."""

    subscription: str
    event: Event


@dataclass(frozen=True, slots=True)
class OkMessage:
    """`["OK", id, accepted, text]`. `text` may start with a prefix such as `duplicate:` or `auth-required:`."""

    event_id: str
    accepted: bool
    text: str


@dataclass(frozen=True, slots=True)
class EoseMessage:
    """`["EOSE", subscription]`: stored events end here."""

    subscription: str


@dataclass(frozen=True, slots=True)
class ClosedMessage:
    """`["CLOSED", subscription, text]`: the relay ended a subscription."""

    subscription: str
    text: str


@dataclass(frozen=True, slots=True)
class NoticeMessage:
    """`["NOTICE", text]`: for humans."""

    text: str


@dataclass(frozen=True, slots=True)
class AuthMessage:
    """`["AUTH", challenge]` of NIP-42."""

    challenge: str


RelayMessage = EventMessage | OkMessage | EoseMessage | ClosedMessage | NoticeMessage | AuthMessage


def parse_relay_message(frame: str | bytes) -> RelayMessage:
    """Return what a relay's frame says. Raises `BadMessage` and nothing else."""
    try:
        value = orjson.loads(frame)
    except (orjson.JSONDecodeError, RecursionError):
        raise BadMessage("not-json") from None
    if not isinstance(value, list) or not value:
        raise BadMessage("not-a-message")
    read = _READERS.get(value[0]) if isinstance(value[0], str) else None
    if read is None:
        raise BadMessage("unknown-message")
    return read(value)


def _read_event(value: list[Any]) -> EventMessage:
    if len(value) != 3 or not isinstance(value[1], str):
        raise BadMessage("unknown-message")
    try:
        return EventMessage(_subscription(value[1]), parse_event(value[2]))
    except BadEvent as error:
        raise BadMessage("bad-event", str(error)) from None


def _read_ok(value: list[Any]) -> OkMessage:
    if len(value) < 3 or not isinstance(value[1], str) or not isinstance(value[2], bool):
        raise BadMessage("unknown-message")
    # Some relays answer a rejected event with an empty id; it then belongs to none of ours.
    if value[1] and not is_hex(value[1], 64):
        raise BadMessage("bad-ok")
    return OkMessage(value[1], value[2], _text(value[3:]))


def _read_eose(value: list[Any]) -> EoseMessage:
    return EoseMessage(_subscription(_second(value)))


def _read_closed(value: list[Any]) -> ClosedMessage:
    return ClosedMessage(_subscription(_second(value)), _text(value[2:]))


def _read_notice(value: list[Any]) -> NoticeMessage:
    return NoticeMessage(_text(value[1:]))


def _read_auth(value: list[Any]) -> AuthMessage:
    challenge = _second(value)
    if not 0 < len(challenge) <= MAX_RELAY_TEXT:
        raise BadMessage("unknown-message")
    return AuthMessage(challenge)


# A table: matching the shapes one after another cost more than parsing the JSON.
_READERS: Final[dict[str, Callable[[list[Any]], RelayMessage]]] = {
    "EVENT": _read_event,
    "OK": _read_ok,
    "EOSE": _read_eose,
    "CLOSED": _read_closed,
    "NOTICE": _read_notice,
    "AUTH": _read_auth,
}


def event_frame(event: Event) -> str:
    """Return the frame that publishes `event`."""
    return f'["EVENT",{event.to_json()}]'


def event_frame_of(event_json: str) -> str:
    """Return the frame that publishes an event already encoded by `Event.to_json`."""
    return f'["EVENT",{event_json}]'


def req_frame(subscription: str, filters: Sequence[Filter]) -> str:
    """Return the frame that opens or replaces a subscription."""
    return orjson.dumps(["REQ", subscription, *filters]).decode()


def close_frame(subscription: str) -> str:
    """Return the frame that ends a subscription."""
    return orjson.dumps(["CLOSE", subscription]).decode()


def auth_frame(event: Event) -> str:
    """Return the frame that answers a NIP-42 challenge."""
    return f'["AUTH",{event.to_json()}]'


def auth_draft(relay_url: str, challenge: str) -> Draft:
    """Return the NIP-42 event (kind 22242) that answers `challenge` of `relay_url`."""
    return Draft(kind=AUTH_KIND, tags=(("relay", relay_url), ("challenge", challenge)))


def _second(value: list[Any]) -> str:
    if len(value) < 2 or not isinstance(value[1], str):
        raise BadMessage("unknown-message")
    return value[1]


def _subscription(text: str) -> str:
    if len(text) > MAX_SUBSCRIPTION_ID:
        raise BadMessage("bad-subscription")
    return text


def _text(rest: list[Any]) -> str:
    return rest[0][:MAX_RELAY_TEXT] if rest and isinstance(rest[0], str) else ""
