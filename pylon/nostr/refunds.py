"""Where a customer wants its money back: our own tags in a job request and in a feedback, and kind 0's `lud16`.

- In a job request, `["lud16", "name@host"]` names a lightning address.
- Later, a kind 7000 that the customer signs, with `e` (the job), `p` (the provider) and
  `["refund", "<lightning address or BOLT11>"]`.

All of it is a stranger's text: what is malformed counts as not said.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import orjson

from pylon.nostr.event import Draft, Event, is_hex
from pylon.nostr.lnurl import BadLnurl, parse_lightning_address
from pylon.nostr.nip90 import FEEDBACK_KIND

ADDRESS_TAG: Final = "lud16"
REFUND_TAG: Final = "refund"
PROFILE_KIND: Final = 0
MAX_INVOICE: Final = 2000
"""Characters of an invoice in an event; more are never needed."""

_MAX_PROFILE: Final = 65_536
_INVOICE: Final = re.compile(r"ln(?:bc|bcrt|tb|tbs)[0-9a-z]{20,}", re.ASCII)


class BadDestination(ValueError):
    """The text names no place to pay to; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class RefundWish:
    """A customer's word about one job's refund."""

    job_id: str
    destination: str


def parse_address(text: str) -> str:
    """Return a lightning address (LUD-16) in lower case. Raises `BadDestination`.

    Whether its host may be contacted at all is for the guarded dialer to say.
    """
    try:
        return str(parse_lightning_address(text))
    except BadLnurl:
        raise BadDestination("a lightning address has the form name@host.example") from None


def parse_destination(text: str) -> str:
    """Return a lightning address or what looks like a BOLT11 invoice, in lower case. Raises `BadDestination`."""
    if "@" in text:
        return parse_address(text)
    invoice = text.strip().lower().removeprefix("lightning:")
    if len(invoice) > MAX_INVOICE or _INVOICE.fullmatch(invoice) is None:
        raise BadDestination("a refund goes to a lightning address (name@host.example) or a BOLT11 invoice (lnbc…)")
    return invoice


def is_invoice(destination: str) -> bool:
    """Tell whether a parsed destination is an invoice, not an address."""
    return "@" not in destination


def request_address(request: Event) -> str | None:
    """Return the lightning address that a job request names, or None."""
    return _address_or_none(next(iter(request.tag_values(ADDRESS_TAG)), None))


def profile_address(profile: Event) -> str | None:
    """Return the lightning address in a kind 0 event, or None."""
    if profile.kind != PROFILE_KIND or len(profile.content) > _MAX_PROFILE:
        return None
    try:
        told = orjson.loads(profile.content)
    except (orjson.JSONDecodeError, RecursionError):
        return None
    return _address_or_none(told.get("lud16")) if isinstance(told, dict) else None


def wish_draft(job_id: str, provider: str, destination: str) -> Draft:
    """Return the feedback by which a customer says where a job's refund goes, to sign. Raises `BadDestination`."""
    tags = (("e", job_id), ("p", provider), (REFUND_TAG, parse_destination(destination)))
    return Draft(kind=FEEDBACK_KIND, content="", tags=tags)


def parse_wish(event: Event) -> RefundWish | None:
    """Return what a feedback says about a refund, or None. Whether a customer signed it is for the caller."""
    text = next(iter(event.tag_values(REFUND_TAG)), None)
    job_id = next(iter(event.tag_values("e")), "")
    if event.kind != FEEDBACK_KIND or text is None or not is_hex(job_id, 64):
        return None
    try:
        return RefundWish(job_id, parse_destination(text))
    except BadDestination:
        return None


def _address_or_none(text: object) -> str | None:
    if not isinstance(text, str):
        return None
    try:
        return parse_address(text)
    except BadDestination:
        return None
