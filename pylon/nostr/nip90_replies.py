"""NIP-90 job feedback (kind 7000) and job results (kinds 6000 to 6999), written by us and read by a customer.

What we write beyond the NIP, so that clients can rely on it:

- `error`: the status tag's text is `prefix: sentence`, the prefix one of `nip90.ErrorPrefix`.
- `bid-too-low`: an `amount` tag without invoice holds our price.
- `partial`: content is all output so far, not a piece; `["partial", "<number>", "<attempt>"]` orders them. Numbers
  rise from 1 within an attempt; a later attempt starts over and replaces what came before. The highest
  (attempt, number) is the one to show; a partial may be missing or late.

Reading is tolerant, because providers differ: it raises `BadReply` only when a reply cannot be tied to a request.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import orjson

from pylon.nostr.event import Draft, Event, Tags, is_hex
from pylon.nostr.nip90 import (
    FEEDBACK_KIND,
    RESULT_KINDS,
    Denial,
    ErrorPrefix,
    FeedbackStatus,
    input_tags,
    is_relay_url,
    parse_msats,
    result_kind,
)

MAX_BOLT11: Final = 2000
"""Characters of an invoice in an event. Real ones have 200 to 700; route hints and descriptions add to that."""

MAX_INFO: Final = 1024
"""Characters of a status text, written or read."""

MAX_STATUS: Final = 64
"""Characters of a status that we do not know."""

_BOLT11: Final = re.compile(r"ln[a-z0-9]+", re.ASCII)
_COUNT: Final = re.compile(r"[0-9]{1,9}", re.ASCII)


class BadReply(ValueError):
    """An event that is not a feedback or result for any request; the message says why."""


_STATUSES: Final = {member.value: member for member in FeedbackStatus}
_PREFIXES: Final = {member.value: member for member in ErrorPrefix}


@dataclass(frozen=True, slots=True)
class Feedback:
    """A job feedback as read. `number` and `attempt` are those of a `partial` that carries them."""

    request_id: str
    status: FeedbackStatus
    info: str = ""
    content: str = ""
    amount_msats: int | None = None
    bolt11: str | None = None
    number: int | None = None
    attempt: int | None = None

    @property
    def prefix(self) -> ErrorPrefix | None:
        """The prefix of an `error`, when it is one of ours."""
        return _PREFIXES.get(self.info.partition(":")[0]) if self.status is FeedbackStatus.ERROR else None


@dataclass(frozen=True, slots=True)
class OtherFeedback:
    """A job feedback whose status is none of NIP-90's, as some providers send; `status` is not empty."""

    request_id: str
    status: str
    info: str = ""


@dataclass(frozen=True, slots=True)
class JobResult:
    """A job result as read. `amount_msats` is what the provider says the job costs."""

    request_id: str
    content: str
    amount_msats: int | None = None
    bolt11: str | None = None


# --- written by the provider ----------------------------------------------------------------------------------


def feedback_draft(
    request_id: str,
    customer: str,
    status: FeedbackStatus,
    *,
    info: str = "",
    content: str = "",
    amount_msats: int | None = None,
    bolt11: str | None = None,
    relay_hint: str = "",
    extra_tags: Tags = (),
) -> Draft:
    """Return a job feedback to sign. Raises `ValueError` on an invoice without amount or over `MAX_BOLT11`."""
    status_tag = ("status", status.value, info[:MAX_INFO]) if info else ("status", status.value)
    tags = (
        status_tag,
        *reference_tags(request_id, customer, relay_hint),
        *amount_tags(amount_msats, bolt11),
        *extra_tags,
    )
    return Draft(kind=FEEDBACK_KIND, content=content, tags=tags)


def payment_required_draft(
    request_id: str,
    customer: str,
    *,
    amount_msats: int,
    bolt11: str,
    invoice_expires_at: int,
    eta_s: int,
    deposit_msats: int = 0,
    relay_hint: str = "",
) -> Draft:
    """Return the feedback that asks for payment; its text tells price, expiry (UTC) and how long the work takes.

    `eta_s` 0 means that nothing was measured yet, and the text says so; `deposit_msats` is what of the price the
    customer has paid before.
    """
    until = datetime.fromtimestamp(invoice_expires_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    eta = f"about {eta_s} s" if eta_s else "a time not measured yet"
    info = f"Pay {_sats(amount_msats)} before {until}; the result then takes {eta}."
    if deposit_msats:
        info += f" Your deposit pays the other {_sats(deposit_msats)}."
    return feedback_draft(
        request_id,
        customer,
        FeedbackStatus.PAYMENT_REQUIRED,
        info=info,
        amount_msats=amount_msats,
        bolt11=bolt11,
        relay_hint=relay_hint,
    )


def partial_draft(
    request_id: str, customer: str, content: str, *, number: int, attempt: int, relay_hint: str = ""
) -> Draft:
    """Return a `partial` with all output so far; `number` rises from 1 within `attempt`, which rises from 1."""
    return feedback_draft(
        request_id,
        customer,
        FeedbackStatus.PARTIAL,
        content=content,
        relay_hint=relay_hint,
        extra_tags=(("partial", str(number), str(attempt)),),
    )


def error_draft(
    request_id: str, customer: str, denial: Denial, *, amount_msats: int | None = None, relay_hint: str = ""
) -> Draft:
    """Return the `error` that tells `denial`; `amount_msats` is our price when the bid is below it."""
    return feedback_draft(
        request_id,
        customer,
        FeedbackStatus.ERROR,
        info=denial.info,
        amount_msats=amount_msats,
        relay_hint=relay_hint,
    )


def result_draft(
    request: Event,
    content: str,
    *,
    amount_msats: int | None = None,
    bolt11: str | None = None,
    relay_hint: str = "",
    with_request: bool = True,
    with_inputs: bool = True,
) -> Draft:
    """Return the job result for `request`, to sign. `nip90_fit.fit_result` decides what to leave out.

    Raises `ValueError` on an invoice without amount or over `MAX_BOLT11`.
    """
    tags = (
        *((("request", request.to_json()),) if with_request else ()),
        *reference_tags(request.id, request.pubkey, relay_hint),
        *(input_tags(request) if with_inputs else ()),
        *amount_tags(amount_msats, bolt11),
    )
    return Draft(kind=result_kind(request.kind), content=content, tags=tags)


def reference_tags(request_id: str, customer: str, relay_hint: str) -> Tags:
    """Return the `e` and `p` tags of a reply; a hint that is no relay URL is left out."""
    hint = (relay_hint,) if is_relay_url(relay_hint) else ()
    return (("e", request_id, *hint), ("p", customer))


def amount_tags(amount_msats: int | None, bolt11: str | None) -> Tags:
    """Return the `amount` tag, or none. Raises `ValueError` on an invoice without amount or over `MAX_BOLT11`."""
    if amount_msats is None:
        if bolt11 is not None:
            raise ValueError("an invoice without its amount")
        return ()
    if bolt11 is None:
        return (("amount", str(amount_msats)),)
    if len(bolt11) > MAX_BOLT11 or _BOLT11.fullmatch(bolt11) is None:
        raise ValueError(f"not a BOLT11 invoice of at most {MAX_BOLT11} characters")
    return (("amount", str(amount_msats), bolt11),)


# --- read by the customer -------------------------------------------------------------------------------------


def parse_feedback(event: Event) -> Feedback:
    """Return what a kind 7000 event says. Raises `BadReply` and nothing else."""
    if event.kind != FEEDBACK_KIND:
        raise BadReply(f"kind {event.kind} is not a job feedback")
    tag = event.tag("status")
    status = _STATUSES.get(tag[1].strip().lower()) if tag is not None and len(tag) > 1 else None
    if tag is None or status is None:
        raise BadReply("a job feedback without a known status")
    amount_msats, bolt11 = _read_amount(event)
    number, attempt = _read_partial(event) if status is FeedbackStatus.PARTIAL else (None, None)
    return Feedback(
        request_id=_read_request_id(event),
        status=status,
        info=tag[2][:MAX_INFO] if len(tag) > 2 else "",
        content=event.content,
        amount_msats=amount_msats,
        bolt11=bolt11,
        number=number,
        attempt=attempt,
    )


def parse_other_feedback(event: Event) -> OtherFeedback:
    """Return what a kind 7000 event with an unknown status says. Raises `BadReply` and nothing else."""
    tag = event.tag("status") if event.kind == FEEDBACK_KIND else None
    status = tag[1].strip()[:MAX_STATUS] if tag is not None and len(tag) > 1 else ""
    if tag is None or not status:
        raise BadReply("not a job feedback with a status")
    return OtherFeedback(
        _read_request_id(event), status, tag[2][:MAX_INFO] if len(tag) > 2 else event.content[:MAX_INFO]
    )


def parse_result(event: Event) -> JobResult:
    """Return what a kind 6000 to 6999 event says. Raises `BadReply` and nothing else."""
    if event.kind not in RESULT_KINDS:
        raise BadReply(f"kind {event.kind} is not a job result")
    amount_msats, bolt11 = _read_amount(event)
    return JobResult(_read_request_id(event), event.content, amount_msats, bolt11)


def _read_request_id(event: Event) -> str:
    for value in event.tag_values("e"):
        if is_hex(value, 64):
            return value
    # Some providers name the request only by its copy.
    for text in event.tag_values("request"):
        try:
            request = orjson.loads(text)
        except (orjson.JSONDecodeError, RecursionError):
            continue
        if isinstance(request, dict) and isinstance(found := request.get("id"), str) and is_hex(found, 64):
            return found
    raise BadReply("a reply that names no job request")


def _read_amount(event: Event) -> tuple[int | None, str | None]:
    """Return amount and invoice; what is malformed counts as absent, since the reply still says something."""
    tag = event.tag("amount")
    if tag is None:
        return None, None
    amount_msats = parse_msats(tag[1]) if len(tag) > 1 else None
    bolt11 = tag[2].strip().lower() if len(tag) > 2 else ""
    if len(bolt11) > MAX_BOLT11 or _BOLT11.fullmatch(bolt11) is None:
        return amount_msats, None
    return amount_msats, bolt11


def _read_partial(event: Event) -> tuple[int | None, int | None]:
    tag = event.tag("partial")
    if tag is None or len(tag) < 3 or not (_COUNT.fullmatch(tag[1]) and _COUNT.fullmatch(tag[2])):
        return None, None
    return int(tag[1]), int(tag[2])


def _sats(amount_msats: int) -> str:
    sats, rest = divmod(amount_msats, 1000)
    text = f"{sats}.{rest:03d}" if rest else str(sats)
    return f"{text} sat" if text == "1" else f"{text} sats"
